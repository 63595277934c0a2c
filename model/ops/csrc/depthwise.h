// Depthwise convolutions with ReLU6 over rows of pixels, each pixel's channels side by side.
#pragma once

#include <cstdint>

#include "products.h"
#include "vectors.h"

namespace lite_detr {

constexpr int kMaxKernel = 5;

// One row of the result.
struct DepthwiseRow {
  const float* rows[kMaxKernel];  // of the input, from the leftmost pixel that is needed
  int64_t pixel_step;             // floats from one pixel of the input to the next
  const float* weight;            // [kernel, kernel, weight_step], from the first channel
  int64_t weight_step;
  const float* bias;
  float* output;
  int64_t output_step;
  int64_t width;     // pixels of the result
  int64_t channels;  // a multiple of kLanes
};

// kPixels pixels side by side, for vectors of channels.
template <int kKernel, int kStride, int kPixels>
inline void depthwise_pixels(const DepthwiseRow& r, int64_t x) {
  constexpr int kInputs = (kPixels - 1) * kStride + kKernel;
  for (int64_t c = 0; c < r.channels; c += kLanes) {
    Floats sums[kPixels];
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i) sums[i] = load(r.bias + c);
#pragma GCC unroll 5
    for (int ky = 0; ky < kKernel; ++ky) {
      const float* row = r.rows[ky] + x * kStride * r.pixel_step + c;
      Floats inputs[kInputs];
#pragma GCC unroll 16
      for (int i = 0; i < kInputs; ++i) inputs[i] = load(row + i * r.pixel_step);
#pragma GCC unroll 5
      for (int kx = 0; kx < kKernel; ++kx) {
        const Floats w = load(r.weight + (ky * kKernel + kx) * r.weight_step + c);
#pragma GCC unroll 16
        for (int i = 0; i < kPixels; ++i) sums[i] += w * inputs[i * kStride + kx];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kPixels; ++i)
      store(r.output + (x + i) * r.output_step + c, activated<Activation::kRelu6>(sums[i]));
  }
}

template <int kKernel, int kStride>
void depthwise(const DepthwiseRow& r) {
  int64_t x = 0;
  for (; x + 4 <= r.width; x += 4) depthwise_pixels<kKernel, kStride, 4>(r, x);
  for (; x + 2 <= r.width; x += 2) depthwise_pixels<kKernel, kStride, 2>(r, x);
  for (; x < r.width; ++x) depthwise_pixels<kKernel, kStride, 1>(r, x);
}

inline void depthwise(int64_t kernel, int64_t stride, const DepthwiseRow& r) {
  if (kernel == 3)
    stride == 1 ? depthwise<3, 1>(r) : depthwise<3, 2>(r);
  else
    stride == 1 ? depthwise<5, 1>(r) : depthwise<5, 2>(r);
}

}  // namespace lite_detr
