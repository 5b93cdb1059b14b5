#pragma once

#include <cstddef>

#include "weightshare/element.hpp"

namespace weightshare {

/// A contiguous run of `count` elements that is read.
struct ConstBuffer {
  const void* data = nullptr;
  std::size_t count = 0;
  Element element = Element::f32;

  const void* at(std::size_t index) const {
    return static_cast<const std::byte*>(data) + index * size_of(element);
  }
};

/// A contiguous run of `count` elements that is written.
struct Buffer {
  void* data = nullptr;
  std::size_t count = 0;
  Element element = Element::f32;

  void* at(std::size_t index) const { return static_cast<std::byte*>(data) + index * size_of(element); }
  operator ConstBuffer() const { return {data, count, element}; }
};

}  // namespace weightshare
