// exp for arguments up to 0, in a form that compilers vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mmplus {

// Relative error below 2e-7; 0 below -87. x <= 0, or NaN, which gives NaN.
MMPLUS_INLINE float exp_of_negative(float x) {
  const float clipped = x < -87.0f ? -87.0f : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding and taking away 1.5 * 2^23 rounds to whole numbers.
  const float shifted = clipped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n, put together from its bits: the low bits of `shifted` hold n.
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000 + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

inline double exp_of_negative(double x) {
  return std::exp(x);
}

}  // namespace mmplus
