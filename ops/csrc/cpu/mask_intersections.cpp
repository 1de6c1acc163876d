// Pairwise intersections of masks on the CPU: bits, and-ed and counted.
#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "mask_bits.h"
#include "simd.h"

namespace mmplus {
namespace {

// So many words of every mask are compared at a time, so that they stay in the cache.
constexpr int64_t CHUNK = 256;

MMPLUS_SIMD int64_t count_common(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t count = 0;
  for (int64_t i = 0; i < words; ++i) {
    count += __builtin_popcountll(a[i] & b[i]);
  }
  return count;
}

MMPLUS_SIMD void pack_chunk(const uint8_t* bytes, int64_t pixels, uint64_t* words) {
  pack_row(bytes, pixels, words);
}

at::Tensor mask_intersections(const at::Tensor& masks) {
  const at::Tensor dense = masks.contiguous();
  const int64_t count = dense.size(0), pixels = dense.size(1) * dense.size(2);
  at::Tensor areas = at::zeros({count, count}, dense.options().dtype(at::kLong));
  const auto* bytes = static_cast<const uint8_t*>(dense.const_data_ptr());
  const int64_t chunks = (pixels + CHUNK * 64 - 1) / (CHUNK * 64);
  std::vector<std::vector<int64_t>> sums(at::get_num_threads());
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t>& sum = sums[at::get_thread_num()];
    sum.resize(static_cast<size_t>(count * count), 0);
    std::vector<uint64_t> words(static_cast<size_t>(count * CHUNK));
    std::vector<int64_t> present;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * CHUNK * 64;
      const int64_t here = std::min(CHUNK * 64, pixels - first), used = (here + 63) / 64;
      // Most masks are absent from most parts of an image.
      present.clear();
      for (int64_t n = 0; n < count; ++n) {
        uint64_t* row = words.data() + n * CHUNK;
        pack_chunk(bytes + n * pixels + first, here, row);
        if (std::any_of(row, row + used, [](uint64_t word) { return word != 0; })) {
          present.push_back(n);
        }
      }
      for (size_t i = 0; i < present.size(); ++i) {
        const uint64_t* row = words.data() + present[i] * CHUNK;
        for (size_t j = i; j < present.size(); ++j) {
          sum[present[i] * count + present[j]] +=
              count_common(row, words.data() + present[j] * CHUNK, used);
        }
      }
    }
  });
  auto* total = areas.mutable_data_ptr<int64_t>();
  for (const std::vector<int64_t>& sum : sums) {
    for (size_t i = 0; i < sum.size(); ++i) {
      total[i] += sum[i];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      total[i * count + j] = total[j * count + i];
    }
  }
  return areas;
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("mask_intersections", &mask_intersections);
}

}  // namespace mmplus
