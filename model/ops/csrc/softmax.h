// The softmax over a query's sampling points.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace lite_detr {

// exp for x <= 0, to 2 ulp; 0 below -87, where the result would leave the normal numbers (and
// arithmetic on subnormal ones is slow); NaN stays NaN.
inline Floats exp_nonpositive(Floats x) {
  const Floats floor = all(-87.0f);
  const Floats bounded = x < floor ? floor : x;
  const Ints n = to_ints(bounded * 1.44269504f - 0.5f);            // round(x / ln 2), as x <= 0
  const Floats whole = to_floats(n);
  const Floats r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;  // x - n ln 2
  Floats e = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Ints bits = (n + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < floor ? Floats{} : e * power;
}

// values = softmax(scale * values) over the first n; the padding becomes 0.
inline void softmax(float* values, float scale, int64_t n) {
  for (int64_t i = n; i < padded(n); ++i) values[i] = -INFINITY;
  Floats tops = load(values) * scale;
  for (int64_t i = kLanes; i < padded(n); i += kLanes) {
    const Floats scaled = load(values + i) * scale;
    tops = scaled > tops ? scaled : tops;
  }
  const float top = max_of(tops);
  Floats sums{};
  for (int64_t i = 0; i < padded(n); i += kLanes) {
    const Floats e = exp_nonpositive(load(values + i) * scale - top);
    store(values + i, e);
    sums += e;
  }
  const float inverse = 1.0f / sum_of(sums);
  for (int64_t i = 0; i < padded(n); i += kLanes) store(values + i, load(values + i) * inverse);
}

}  // namespace lite_detr
