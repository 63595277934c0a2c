// One head of one image: its rows of keys, values or gradient sums, and where the taps find them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"
#include "taps.h"
#include "vectors.h"

namespace lite_detr {

// Rows of one head, `stride` elements apart, and the row for everything outside the maps.
template <typename T>
struct Slice {
  T* data;
  int64_t stride;
  T* outside;

  // The address of each corner's row.
  void addresses(const Taps& taps, uintptr_t* __restrict out) const {
    const int32_t* __restrict rows = taps.rows.data();
    const auto first = reinterpret_cast<uintptr_t>(data);
    const auto elsewhere = reinterpret_cast<uintptr_t>(outside);
    const auto bytes = stride * static_cast<int64_t>(sizeof(T));
#pragma omp simd
    for (int64_t i = 0; i < 4 * taps.step; ++i)
      out[i] = rows[i] == kOutside ? elsewhere : first + static_cast<int64_t>(rows[i]) * bytes;
  }
};

// A head's keys or values in place, in [B, S, M, D]; only read.
template <typename T>
Slice<T> slice_in_place(const Problem& p, const void* source, int64_t image, int64_t head,
                        const float* zeros) {
  const int64_t stride = p.heads * p.channels;
  const T* first = static_cast<const T*>(source) + image * p.tokens * stride + head * p.channels;
  return {const_cast<T*>(first), stride, reinterpret_cast<T*>(const_cast<float*>(zeros))};
}

// The same, copied head-major: in [B, S, M, D] a head's rows map to a fraction of the cache's sets.
template <typename T>
Slice<T> slice_copied(const Problem& p, const void* source, int64_t image, int64_t head,
                      const float* zeros, Buffer<float>& buffer) {
  const Slice<T> from = slice_in_place<T>(p, source, image, head, zeros);
  T* rows = reinterpret_cast<T*>(buffer.reserve(p.tokens * p.channels));
  for (int64_t s = 0; s < p.tokens; ++s)
    std::copy_n(from.data + s * from.stride, p.channels, rows + s * p.channels);
  return {rows, p.channels, from.outside};
}

// Sums of gradients, set to zero; what falls outside goes to an extra row that is never read.
inline Slice<float> cleared_sums(const Problem& p, Buffer<float>& buffer) {
  float* rows = buffer.reserve((p.tokens + 1) * p.channels);
  std::fill_n(rows, (p.tokens + 1) * p.channels, 0.0f);
  return {rows, p.channels, rows + p.tokens * p.channels};
}

inline void store_sums(const Problem& p, const Slice<float>& sums, int64_t image, int64_t head,
                       float* grad) {
  const Slice<float> to = slice_in_place<float>(p, grad, image, head, nullptr);
  for (int64_t s = 0; s < p.tokens; ++s)
    std::copy_n(sums.data + s * sums.stride, p.channels, to.data + s * to.stride);
}

}  // namespace lite_detr
