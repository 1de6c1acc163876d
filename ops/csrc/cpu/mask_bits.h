// Binary masks packed into words of 64 pixels.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace mmplus {

// Eight bytes to eight bits, the first byte lowest; every byte but 0 is a 1, as in uint8 masks of 255.
MMPLUS_INLINE uint64_t pack_eight(const uint8_t* bytes) {
  constexpr uint64_t ONES = 0x0101010101010101ull, LOW_BITS = 0x7F * ONES;
  uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
  // Seven bits plus 127 reach the eighth unless they are 0, and never the next byte.
  value = (((value & LOW_BITS) + LOW_BITS) | value) >> 7 & ONES;
  // Every byte lands in the top byte at a bit of its own (little-endian machines).
  return (value * 0x0102040810204080ull) >> 56;
}

// pixels: so many bytes; words: (pixels + 63) / 64, the rest of the last one 0.
MMPLUS_INLINE void pack_row(const uint8_t* bytes, int64_t pixels, uint64_t* words) {
  int64_t pixel = 0;
  for (; pixel + 64 <= pixels; pixel += 64) {
    uint64_t word = 0;
    for (int part = 0; part < 8; ++part) {
      word |= pack_eight(bytes + pixel + 8 * part) << (8 * part);
    }
    *words++ = word;
  }
  if (pixel < pixels) {
    uint64_t word = 0;
    for (int64_t bit = 0; pixel + bit < pixels; ++bit) {
      word |= static_cast<uint64_t>(bytes[pixel + bit] != 0) << bit;
    }
    *words = word;
  }
}

}  // namespace mmplus
