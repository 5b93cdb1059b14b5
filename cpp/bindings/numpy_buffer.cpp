#include "numpy_buffer.hpp"

#include <chrono>
#include <cstdint>
#include <type_traits>

#include "weightshare/error.hpp"

namespace weightshare {
namespace {

std::string name_of_dtype(const py::array& array) {
  return py::cast<std::string>(py::str(array.dtype()));
}

[[noreturn]] void refuse(const py::array& array, const std::string& name, const std::string& expected) {
  throw ElementError(name + ": expected " + expected + ", got " + name_of_dtype(array));
}

Element element_of(const py::array& array, const std::string& name) {
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  if (order == '=' || order == '|') {
    if (dtype.kind() == 'f' && dtype.itemsize() == 2) return Element::f16;
    if (dtype.kind() == 'f' && dtype.itemsize() == 4) return Element::f32;
    if (dtype.kind() == 'f' && dtype.itemsize() == 8) return Element::f64;
    if (dtype.itemsize() == 2 && name_of_dtype(array) == "bfloat16") return Element::bf16;
  }
  refuse(array, name, "a native float16, bfloat16, float32 or float64");
}

void check_layout(const py::array& array, const std::string& name) {
  require<ShapeError>((array.flags() & py::array::c_style) != 0,
      name + ": array is not C-contiguous; pass numpy.ascontiguousarray(x)");
  require<ShapeError>((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0,
      name + ": array is not aligned to its elements; pass a copy");
}

void check_writable(const py::array& array, const std::string& name) {
  require<ArgumentError>(array.writeable(), name + ": array is read-only; pass a writable one");
}

struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

Range range_of(const ConstBuffer& buffer) {
  const auto begin = reinterpret_cast<std::uintptr_t>(buffer.data);
  return {begin, begin + buffer.count * size_of(buffer.element)};
}

bool overlap(const Range& a, const Range& b) {
  return a.begin < b.end && b.begin < a.end;
}

bool same(const ConstBuffer& a, const ConstBuffer& b) {
  return a.data == b.data && a.count == b.count && a.element == b.element;
}

}  // namespace

ConstBuffer buffer(const py::array& array, const std::string& name) {
  const Element element = element_of(array, name);
  check_layout(array, name);
  return {array.data(), static_cast<std::size_t>(array.size()), element};
}

Buffer writable_buffer(const py::array& array, const std::string& name) {
  const ConstBuffer view = buffer(array, name);
  check_writable(array, name);
  return {const_cast<void*>(view.data), view.count, view.element};
}

std::vector<ConstBuffer> buffers(const std::vector<py::array>& arrays, const std::string& name) {
  std::vector<ConstBuffer> views;
  views.reserve(arrays.size());
  for (const py::array& array : arrays) {
    views.push_back(buffer(array, name + "[" + std::to_string(views.size()) + "]"));
  }
  return views;
}

std::vector<Buffer> writable_buffers(const std::vector<py::array>& arrays, const std::string& name) {
  std::vector<Buffer> views;
  views.reserve(arrays.size());
  for (const py::array& array : arrays) {
    views.push_back(writable_buffer(array, name + "[" + std::to_string(views.size()) + "]"));
  }
  return views;
}

template <class Number>
const Number* numbers(const py::array& array, const std::string& name, std::size_t count) {
  if (!py::isinstance<py::array_t<Number>>(array)) {
    refuse(array, name, py::cast<std::string>(py::str(py::dtype::of<Number>())));
  }
  check_layout(array, name);
  const auto size = static_cast<std::size_t>(array.size());
  require<ShapeError>(
      size == count, name + ": expected " + std::to_string(count) + " elements, got " + std::to_string(size));
  return static_cast<const Number*>(array.data());
}

template <class Number>
Number* writable_numbers(const py::array& array, const std::string& name, std::size_t count) {
  const Number* data = numbers<Number>(array, name, count);
  check_writable(array, name);
  return const_cast<Number*>(data);
}

template const float* numbers<float>(const py::array&, const std::string&, std::size_t);
template const double* numbers<double>(const py::array&, const std::string&, std::size_t);
template const std::int64_t* numbers<std::int64_t>(const py::array&, const std::string&, std::size_t);
template const std::uint8_t* numbers<std::uint8_t>(const py::array&, const std::string&, std::size_t);
template float* writable_numbers<float>(const py::array&, const std::string&, std::size_t);
template double* writable_numbers<double>(const py::array&, const std::string&, std::size_t);
template std::int64_t* writable_numbers<std::int64_t>(const py::array&, const std::string&, std::size_t);
template std::uint8_t* writable_numbers<std::uint8_t>(const py::array&, const std::string&, std::size_t);

void check_overlap(const std::vector<Buffer>& out, const std::vector<ConstBuffer>& inputs) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Range written = range_of(out[i]);
    for (std::size_t k = 0; k < i; ++k) {
      require<ShapeError>(!overlap(written, range_of(out[k])), "out: two outputs share memory");
    }
    for (const ConstBuffer& input : inputs) {
      require<ShapeError>(same(out[i], input) || !overlap(written, range_of(input)),
          "out: shares memory with an input without being it; pass the input itself or other memory");
    }
  }
}

Execution execution(int threads) {
  using Clock = std::chrono::steady_clock;
  auto last = std::make_shared<Clock::time_point>(Clock::now());
  return {threads, [last] {
            if (Clock::now() - *last < std::chrono::milliseconds(100)) {
              return;
            }
            *last = Clock::now();
            const py::gil_scoped_acquire locked;
            if (PyErr_CheckSignals() != 0) {
              throw py::error_already_set();
            }
          }};
}

}  // namespace weightshare
