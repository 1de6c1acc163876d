// Functions compiled once for each generation of processors; the loader picks the best.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define MMPLUS_SIMD \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MMPLUS_SIMD
#endif

#if defined(_MSC_VER)
#define MMPLUS_INLINE __forceinline
#define MMPLUS_RESTRICT __restrict
#else
#define MMPLUS_INLINE inline __attribute__((always_inline))
#define MMPLUS_RESTRICT __restrict__
#endif
