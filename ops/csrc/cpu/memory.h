// Large results without a page fault for every 4 KB.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mmplus {

// Ask for huge pages under a tensor that was just allocated, before anything is written to it. What
// takes the time in a large copy is the first touch of each page. A hint: it may be refused.
inline void prefer_huge_pages(const at::Tensor& value) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t HUGE_PAGE = uintptr_t(1) << 21;
  const auto begin = reinterpret_cast<uintptr_t>(value.const_data_ptr());
  const uintptr_t end = begin + value.nbytes();
  const uintptr_t first = (begin + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), last = end & ~(HUGE_PAGE - 1);
  if (last > first + HUGE_PAGE) {
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)value;
#endif
}

}  // namespace mmplus
