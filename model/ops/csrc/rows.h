// Arithmetic on one head's rows of channels.
//
// Rows<D>, for a D known at compile time, keeps a row in D / kLanes vector registers; Rows<0> is for
// any other number of channels and leaves vectorising to the compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace lite_detr {

// Dot products are computed four rows at a time; buffers of samples are padded accordingly.
constexpr int64_t kRowsAtOnce = 4;

// Four corners of a sample; `address` and `weight` hold all northwest corners, then all northeast
// ones, and so on.
template <typename T>
struct Corners {
  const uintptr_t* address;
  const float* weight;
  int64_t step;

  T* row(int c) const { return reinterpret_cast<T*>(address[c * step]); }
};

template <int D>
struct Rows {
  static_assert(D % kLanes == 0, "a row must fill its vectors");
  static constexpr int kVectors = D / kLanes;

  explicit Rows(int64_t) {}
  static constexpr int64_t channels() { return D; }

  template <typename T>
  void blend(const Corners<T>& corners, float* out) const {
    const T *nw = corners.row(0), *ne = corners.row(1), *sw = corners.row(2),
            *se = corners.row(3);
    const float a = corners.weight[0], b = corners.weight[corners.step],
                c = corners.weight[2 * corners.step], d = corners.weight[3 * corners.step];
    for (int v = 0; v < kVectors; ++v)
      put(out, v, (a * at(nw, v) + b * at(ne, v)) + (c * at(sw, v) + d * at(se, v)));
  }

  // out[i] = x . rows[i], for n rounded up to a multiple of kRowsAtOnce.
  void dots(const float* x, const float* rows, int64_t n, float* out) const {
    Floats x_values[kVectors];
    for (int v = 0; v < kVectors; ++v) x_values[v] = at(x, v);
    for (int64_t i = 0; i < n; i += kRowsAtOnce) {
      Floats sums[kRowsAtOnce];
      for (int r = 0; r < kRowsAtOnce; ++r) {
        sums[r] = x_values[0] * at(rows + (i + r) * D, 0);
        for (int v = 1; v < kVectors; ++v) sums[r] += x_values[v] * at(rows + (i + r) * D, v);
      }
      sums_of(sums[0], sums[1], sums[2], sums[3], out + i);
    }
  }

  // out = sum of weights[i] * rows[i].
  void combine(const float* weights, const float* rows, int64_t n, float* out) const {
    Floats sums[kVectors] = {};
    for (int64_t i = 0; i < n; ++i)
      for (int v = 0; v < kVectors; ++v) sums[v] += weights[i] * at(rows + i * D, v);
    for (int v = 0; v < kVectors; ++v) put(out, v, sums[v]);
  }

  // With g = a * x + b * y: adds each corner's weight * g to its row of `sums`, and returns the
  // four dot products of g with the corners.
  void scatter(float a, const float* x, float b, const float* y, const Corners<float>& corners,
               const Corners<float>& sums, float* dots) const {
    Floats g[kVectors], products[4];
    for (int v = 0; v < kVectors; ++v) g[v] = a * at(x, v) + b * at(y, v);
    for (int c = 0; c < 4; ++c) {
      const float weight = corners.weight[c * corners.step];
      const float* row = corners.row(c);
      float* sum = sums.row(c);
      products[c] = g[0] * at(row, 0);
      for (int v = 1; v < kVectors; ++v) products[c] += g[v] * at(row, v);
      for (int v = 0; v < kVectors; ++v) put(sum, v, at(sum, v) + weight * g[v]);
    }
    sums_of(products[0], products[1], products[2], products[3], dots);
  }

 private:
  template <typename T>
  static Floats at(const T* row, int v) { return load(row + v * kLanes); }
  static void put(float* row, int v, Floats x) { store(row + v * kLanes, x); }
};

template <>
struct Rows<0> {
  explicit Rows(int64_t channels) : channels_(channels) {}
  int64_t channels() const { return channels_; }

  template <typename T>
  void blend(const Corners<T>& corners, float* out) const {
    std::memset(out, 0, sizeof(float) * channels_);
    for (int c = 0; c < 4; ++c) add(corners.weight[c * corners.step], corners.row(c), out);
  }

  void dots(const float* x, const float* rows, int64_t n, float* out) const {
    for (int64_t i = 0; i < n; ++i) out[i] = dot(x, rows + i * channels_);
  }

  void combine(const float* weights, const float* rows, int64_t n, float* out) const {
    std::memset(out, 0, sizeof(float) * channels_);
    for (int64_t i = 0; i < n; ++i) add(weights[i], rows + i * channels_, out);
  }

  void scatter(float a, const float* x, float b, const float* y, const Corners<float>& corners,
               const Corners<float>& sums, float* dots) const {
    for (int c = 0; c < 4; ++c) {
      const float weight = corners.weight[c * corners.step];
      const float* row = corners.row(c);
      float* sum = sums.row(c);
      dots[c] = a * dot(x, row) + b * dot(y, row);
      add(weight * a, x, sum);
      add(weight * b, y, sum);
    }
  }

 private:
  float dot(const float* a, const float* b) const {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < channels_; ++d) sum += a[d] * b[d];
    return sum;
  }

  template <typename T>
  void add(float weight, const T* __restrict row, float* __restrict out) const {
#pragma omp simd
    for (int64_t d = 0; d < channels_; ++d) out[d] += weight * widened(row[d]);
  }

  int64_t channels_;
};

}  // namespace lite_detr
