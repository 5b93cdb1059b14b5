// Tells which instruction-set levels the CPU and the operating system run. Built without any extension
// of the instruction set and without pybind11, because it is loaded before the level is known.
#include <Python.h>

namespace {

PyObject* levels(PyObject*, PyObject*) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (v3) {
    return Py_BuildValue("(ss)", "v3", "v2");
  }
  if (v2) {
    return Py_BuildValue("(s)", "v2");
  }
  return PyTuple_New(0);
#else
  return Py_BuildValue("(s)", "plain");
#endif
}

PyMethodDef methods[] = {
    {"levels", levels, METH_NOARGS, "Names of the levels that run here, best first."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "cpu_probe", "Which instruction-set levels run here.", 0,
    methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_cpu_probe() {
  return PyModule_Create(&definition);
}
