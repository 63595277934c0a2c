// What stacks of layers share: memory, units of rows, norms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace lite_detr {

// Rows of a unit of work: a multiple of kRows.
constexpr int64_t kMinRows = 12, kMaxRows = 48;

// So many that all threads end together, as few as keep the unit in the cache.
inline int64_t rows_of_units(int64_t rows, int64_t threads) {
  const int64_t fair = rows / (2 * threads) / kMinRows * kMinRows;
  return std::min(kMaxRows, std::max(kMinRows, fair));
}

// Divides memory into arrays.
class Arrays {
 public:
  // The first pass, with null, counts.
  explicit Arrays(float* memory) : memory_(memory) {}
  float* take(int64_t floats) {
    float* taken = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (floats + 15) / 16 * 16;
    return taken;
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

// out[i] = x[i] + y[i], for a multiple of kLanes.
inline void add(const float* x, const float* y, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) store(out + i, load(x + i) + load(y + i));
}

// x = norm(x), rows of channels, a multiple of kLanes.
inline void layer_norm(const float* scale, const float* shift, float eps, int64_t channels,
                       float* x, int64_t rows) {
  const auto count = static_cast<float>(channels);
  for (float* row = x; row < x + rows * channels; row += channels) {
    Floats sums{};
    for (int64_t c = 0; c < channels; c += kLanes) sums += load(row + c);
    const Floats mean = broadcast(sum_of(sums) / count);
    Floats squares{};
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Floats apart = load(row + c) - mean;
      squares += apart * apart;
    }
    const Floats factor = broadcast(1.0f / std::sqrt(sum_of(squares) / count + eps));
    for (int64_t c = 0; c < channels; c += kLanes)
      store(row + c, (load(row + c) - mean) * factor * load(scale + c) + load(shift + c));
  }
}

}  // namespace lite_detr
