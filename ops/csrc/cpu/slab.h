// A feature map cut into slabs of LANES channels, cell by cell: (Hf * Wf, LANES). All channels of a
// cell of a slab fill one or two vector registers, a slab stays in the cache while all RoIs of the
// image are read from it, and threads that own different slabs never write to the same place.
#pragma once

#include <algorithm>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "simd.h"

namespace mmplus {

constexpr int64_t LANES = 16;

// Rows [top, bottom) of a feature map; what no RoI reads need not be copied.
struct Band {
  int64_t top = 0;
  int64_t bottom = 0;

  void cover(int64_t first, int64_t last) {
    if (bottom == top) {
      top = first;
      bottom = last + 1;
    } else {
      top = std::min(top, first);
      bottom = std::max(bottom, last + 1);
    }
  }
};

// Strides of one image of a (N, C, Hf, Wf) tensor, in elements.
struct Strides {
  int64_t channel;
  int64_t row;
  int64_t col;

  explicit Strides(const at::Tensor& map)
      : channel(map.stride(1)), row(map.stride(2)), col(map.stride(3)) {}
};

// Copy channels [0, lanes) of a band into a slab, zeros in the lanes that are left over.
template <typename In, typename T>
void pack_slab(
    const In* MMPLUS_RESTRICT image,
    const Strides& strides,
    Band band,
    int64_t cols,
    int64_t lanes,
    T* MMPLUS_RESTRICT slab) {
  constexpr int64_t TILE = 16;
  for (int64_t row = band.top; row < band.bottom; ++row) {
    const In* source = image + row * strides.row;
    T* target = slab + row * cols * LANES;
    if (lanes < LANES) {
      std::fill(target, target + cols * LANES, T(0));
    }
    for (int64_t left = 0; left < cols; left += TILE) {
      const int64_t right = std::min(left + TILE, cols);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const In* plane = source + lane * strides.channel;
        for (int64_t col = left; col < right; ++col) {
          target[col * LANES + lane] = static_cast<T>(plane[col * strides.col]);
        }
      }
    }
  }
}

// The way back, for a whole image: lanes [0, lanes) of a slab into channels.
template <typename T, typename Out>
void unpack_slab(
    const T* MMPLUS_RESTRICT slab,
    int64_t rows,
    int64_t cols,
    int64_t lanes,
    const Strides& strides,
    Out* MMPLUS_RESTRICT image) {
  constexpr int64_t TILE = 16;
  for (int64_t row = 0; row < rows; ++row) {
    const T* source = slab + row * cols * LANES;
    Out* target = image + row * strides.row;
    for (int64_t left = 0; left < cols; left += TILE) {
      const int64_t right = std::min(left + TILE, cols);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        Out* plane = target + lane * strides.channel;
        for (int64_t col = left; col < right; ++col) {
          plane[col * strides.col] = static_cast<Out>(source[col * LANES + lane]);
        }
      }
    }
  }
}

}  // namespace mmplus
