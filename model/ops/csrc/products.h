// Matrix products of few columns at a time, with bias, residual and activation in the registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace lite_detr {

// A tile of the result is kRows x kPanel numbers; the processors with 32 registers hold twice as
// many of them.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;

enum class Activation { kNone, kRelu, kRelu6 };

template <Activation kActivation>
inline Floats activated(Floats v) {
  if (kActivation == Activation::kNone) return v;
  if (kActivation == Activation::kRelu) return v < Floats{} ? Floats{} : v;
  return clamped(v, Floats{}, broadcast(6.0f));
}

// The right side of a product and what follows it: columns of the result in panels of kPanel, the
// last one of kLanes if that is enough; each panel is [inner][its columns], padded with zeros.
struct Weights {
  const float* panels;
  const float* bias;  // padded as the panels are
  int64_t inner;
  int64_t columns;
};

// Rows of float32 numbers, `step` apart.
template <typename T>
struct Rows {
  T* first;
  int64_t step;

  Rows from(int64_t row) const { return {first == nullptr ? nullptr : first + row * step, step}; }
};

// c = activation(sums + add), column by column.
__attribute__((noinline)) inline void finish(int64_t rows, Rows<const float> sums, Rows<float> c,
                                             Rows<const float> add, int64_t columns,
                                             Activation activation) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      float v = sums.from(i).first[j];
      if (add.first != nullptr) v += add.from(i).first[j];
      if (activation != Activation::kNone && v < 0.0f) v = 0.0f;
      if (activation == Activation::kRelu6 && v > 6.0f) v = 6.0f;
      c.from(i).first[j] = v;
    }
}

// A tile of kHeight rows and kVectors vectors, of which `columns` columns exist.
template <int kHeight, int kVectors, Activation kActivation>
inline void tile(Rows<const float> a, const float* panel, const float* bias, int64_t inner,
                 Rows<float> c, Rows<const float> add, int64_t columns) {
  Floats sums[kHeight][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) sums[i][j] = load(bias + j * kLanes);
  for (int64_t k = 0; k < inner; ++k) {
    Floats b[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) b[j] = load(panel + k * kVectors * kLanes + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
      const Floats x = broadcast(a.first[i * a.step + k]);
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sums[i][j] += x * b[j];
    }
  }
  if (columns < kVectors * kLanes) {  // the panel's last vector is not full
    float whole[kHeight * kVectors * kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j)
        store(whole + (i * kVectors + j) * kLanes, sums[i][j]);
    finish(kHeight, {whole, kVectors * kLanes}, c, add, columns, kActivation);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      if (add.first != nullptr) sums[i][j] += load(add.first + i * add.step + j * kLanes);
      store(c.first + i * c.step + j * kLanes, activated<kActivation>(sums[i][j]));
    }
}

template <int kHeight, int kVectors, Activation kActivation>
struct LastRows {  // fewer than kRows
  static void run(int64_t rows, Rows<const float> a, const float* panel, const float* bias,
                  int64_t inner, Rows<float> c, Rows<const float> add, int64_t columns) {
    if (rows == kHeight)
      tile<kHeight, kVectors, kActivation>(a, panel, bias, inner, c, add, columns);
    else
      LastRows<kHeight - 1, kVectors, kActivation>::run(rows, a, panel, bias, inner, c, add,
                                                        columns);
  }
};
template <int kVectors, Activation kActivation>
struct LastRows<0, kVectors, kActivation> {
  static void run(int64_t, Rows<const float>, const float*, const float*, int64_t, Rows<float>,
                  Rows<const float>, int64_t) {}
};

template <int kVectors, Activation kActivation>
void panel_product(int64_t rows, Rows<const float> a, const float* panel, const float* bias,
                   int64_t inner, Rows<float> c, Rows<const float> add, int64_t columns) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    tile<kRows, kVectors, kActivation>(a.from(row), panel, bias, inner, c.from(row), add.from(row),
                                       columns);
  LastRows<kRows - 1, kVectors, kActivation>::run(rows - row, a.from(row), panel, bias, inner,
                                                  c.from(row), add.from(row), columns);
}

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// c = activation(a * weights + bias + add) for one panel of columns, all of whose numbers are sums
// in the same order, however rows and panels are divided among calls.
//
// `c` and `add` point to the panel's first column; `add` may be null.
template <Activation kActivation>
void product(int64_t rows, Rows<const float> a, const Weights& w, int64_t panel, Rows<float> c,
             Rows<const float> add) {
  const int64_t first = panel * kPanel, columns = std::min<int64_t>(kPanel, w.columns - first);
  const float* weights = w.panels + first * w.inner;
  if (columns > kLanes)
    panel_product<2, kActivation>(rows, a, weights, w.bias + first, w.inner, c, add, columns);
  else
    panel_product<1, kActivation>(rows, a, weights, w.bias + first, w.inner, c, add, columns);
}

// All columns of c = activation(a * weights + bias + add); `c` may be `add`, not `a`.
template <Activation kActivation>
void whole_product(int64_t rows, Rows<const float> a, const Weights& w, Rows<float> c,
                   Rows<const float> add = {nullptr, 0}) {
  for (int64_t panel = 0; panel < panels_of(w.columns); ++panel) {
    const int64_t first = panel * kPanel;
    product<kActivation>(rows, a, w, panel, {c.first + first, c.step},
                         {add.first == nullptr ? nullptr : add.first + first, add.step});
  }
}

}  // namespace lite_detr
