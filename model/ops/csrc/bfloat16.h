// bfloat16, the upper half of a float32: a storage format; all arithmetic is float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace lite_detr {

struct Bfloat16 {
  uint16_t bits;
};

inline float widened(float x) { return x; }
inline float widened(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline Bfloat16 narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline void put_narrowed(const float* from, int64_t count, Bfloat16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrowed(from[i]);
}

}  // namespace lite_detr
