// Tells which instruction-set levels the CPU and the operating system run. Built without any extension
// of the instruction set and without pybind11, because it is loaded before the level is known.
#include <Python.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

#if defined(__x86_64__)
// What x86-64-v3 adds to AVX2, FMA and BMI, which not every compiler knows by name: F16C, MOVBE, LZCNT.
bool has_rest_of_v3() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool basic = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0 && (c & bit_MOVBE) != 0;
  return basic && __get_cpuid(0x80000001U, &a, &b, &c, &d) != 0 && (c & bit_LZCNT) != 0;
}
#endif

PyObject* levels(PyObject*, PyObject*) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_rest_of_v3();
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
