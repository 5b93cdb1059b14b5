#include <utility>

#include "numpy_buffer.hpp"
#include "weightshare/error.hpp"
#include "weightshare/integrity.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

std::pair<std::uint64_t, std::uint64_t> digest_of(const py::array& data, std::uint64_t start) {
  if (data.itemsize() != 1 || data.ndim() != 1 || (data.flags() & py::array::c_style) == 0) {
    throw ElementError("data: expected flat bytes without gaps");
  }
  const std::span<const std::byte> bytes(
      static_cast<const std::byte*>(data.data()), static_cast<std::size_t>(data.size()));
  const py::gil_scoped_release unlocked;
  const Digest found = digest(bytes, start);
  return {found.low, found.high};
}

std::pair<std::size_t, std::size_t> count_nonfinite_of(const py::array& values) {
  const ConstBuffer numbers = buffer(values, "values");
  const py::gil_scoped_release unlocked;
  const NonFinite found = count_nonfinite(numbers);
  return {found.nan, found.infinite};
}

}  // namespace

void bind_integrity(py::module_& parent) {
  auto m = parent.def_submodule("integrity", "Checksums of tensors, and numbers that are not finite.");
  m.def("digest", &digest_of, "data"_a, "start"_a = 0,
      "Low and high 64 bits of the checksum of bytes that begin at that byte of their tensor.");
  m.def("count_nonfinite", &count_nonfinite_of, "values"_a, "How many elements are NaN, and infinite.");
}

}  // namespace weightshare
