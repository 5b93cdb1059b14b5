#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

namespace py = pybind11;

/// Views of NumPy arrays, checked and never copied: type, element, byte order, contiguity, writable.
/// Each throws ElementError or ShapeError with a sentence that names the argument.
ConstBuffer buffer(const py::array& array, const std::string& name);
Buffer writable_buffer(const py::array& array, const std::string& name);
std::vector<ConstBuffer> buffers(const std::vector<py::array>& arrays, const std::string& name);
std::vector<Buffer> writable_buffers(const std::vector<py::array>& arrays, const std::string& name);

/// The same for arrays of one known element and number of elements.
template <class Number>
const Number* numbers(const py::array& array, const std::string& name, std::size_t count);
template <class Number>
Number* writable_numbers(const py::array& array, const std::string& name, std::size_t count);

/// Throws ShapeError when an output shares memory with another output, or with an input that is not it.
void check_overlap(const std::vector<Buffer>& out, const std::vector<ConstBuffer>& inputs);

/// Threads as told, and a poll that lets Python handle signals ten times a second.
/// To be made with the GIL held, and used without it.
Execution execution(int threads);

}  // namespace weightshare
