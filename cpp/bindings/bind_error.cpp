#include <pybind11/pybind11.h>

#include "weightshare/error.hpp"

namespace py = pybind11;

namespace weightshare {
namespace {

void set_error(const char* name, const char* message) {
  const py::object type = py::module_::import("weightshare.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) {
      std::rethrow_exception(thrown);
    }
  } catch (const ShapeError& error) {
    set_error("ShapeError", error.what());
  } catch (const ElementError& error) {
    set_error("ElementError", error.what());
  } catch (const ArgumentError& error) {
    set_error("ArgumentError", error.what());
  }
}

}  // namespace

void bind_error(py::module_& parent) {
  static_cast<void>(parent);
  py::register_local_exception_translator(&translate);
}

}  // namespace weightshare
