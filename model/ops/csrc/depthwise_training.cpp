// Depthwise convolutions with ReLU6 in training: maps [B, H, W, C] in float32 or bfloat16, sums in
// float32.
//
// A unit of work is a few channels of one image, whose rows pass through rings of as many rows as
// the kernel has; these stay in the cache. The gradients of the weights are sums over one image each,
// in a fixed order, so that they do not depend on the number of threads.
#include "depthwise_training.h"

#include <algorithm>
#include <cstring>

#include "bfloat16.h"
#include "depthwise.h"
#include "parallel.h"
#include "vectors.h"

namespace lite_detr {
namespace {

constexpr int64_t kGroup = 32;  // channels of a unit: whole cache lines in both types

thread_local Buffer<float> memory;

// The gradient of a ReLU6, from its argument or its result.
inline Floats within_relu6(Floats value, Floats gradient) {
  const Floats zero{};
  const auto inside = (value > zero) & (value < all(6.0f));
  return inside ? gradient : zero;
}

// Rows of a map, padded with zero pixels on both sides; the last `rows` of them are kept.
struct Ring {
  float* first;
  int64_t rows, padding, width, channels;

  int64_t row_floats() const { return (width + 2 * padding) * channels; }
  // The row's first pixel of padding.
  float* row(int64_t y) const { return first + y % rows * row_floats(); }
  float* pixels(int64_t y) const { return row(y) + padding * channels; }
  void clear() const { std::memset(first, 0, rows * row_floats() * sizeof(float)); }
};

// What one unit works on.
template <typename T>
struct Unit {
  Unit(const DepthwiseTraining& arguments, int64_t unit) : d(arguments) {
    const int64_t groups = (d.channels + kGroup - 1) / kGroup;
    image = unit / groups;
    channel = unit % groups * kGroup;
    channels = std::min(kGroup, d.channels - channel);
    height = d.output_height();
    width = d.output_width();
    taps = d.kernel * d.kernel;
    inputs = {nullptr, d.kernel, d.padding(), d.width, channels};
    gradients = {nullptr, d.kernel, d.kernel, width, channels};
    const int64_t ring_floats = d.kernel * (inputs.row_floats() + gradients.row_floats());
    weight = memory.reserve(2 * taps * channels + ring_floats + width * channels +
                            inputs.row_floats());
    grad_weight = weight + taps * channels;
    row = grad_weight + taps * channels;
    zeros = row + width * channels;
    inputs.first = zeros + inputs.row_floats();
    gradients.first = inputs.first + d.kernel * inputs.row_floats();
    for (int64_t k = 0; k < taps; ++k)
      std::memcpy(weight + k * channels, d.weight + k * d.channels + channel,
                  channels * sizeof(float));
    inputs.clear();
    std::memset(zeros, 0, inputs.row_floats() * sizeof(float));
  }

  // The unit's channels of a row of pixels of a map.
  T* at(const void* map, int64_t rows, int64_t y, int64_t pixels) const {
    const int64_t offset = ((image * rows + y) * pixels) * d.channels + channel;
    return const_cast<T*>(static_cast<const T*>(map)) + offset;
  }

  // Fills the ring with the rows of the input below `end`.
  void read_inputs(int64_t end) {
    for (end = std::min(end, d.height); next_input < end; ++next_input) {
      const T* from = at(d.input, d.height, next_input, d.width);
      float* to = inputs.pixels(next_input);
      for (int64_t x = 0; x < d.width; ++x, from += d.channels, to += channels)
        for (int64_t c = 0; c < channels; c += kLanes) {
          const Floats value = load(from + c);
          store(to + c, d.input_relu6 ? activated<Activation::kRelu6>(value) : value);
        }
    }
  }

  const DepthwiseTraining& d;
  int64_t image, channel, channels, height, width, taps;
  int64_t next_input = 0;
  Ring inputs, gradients;
  float *weight, *grad_weight;  // [kernel, kernel, channels]
  float* row;                   // of the output
  float* zeros;                 // a row of the input
};

template <typename T>
void filter(const DepthwiseTraining& d, int64_t number) {
  Unit<T> unit(d, number);
  const bool in_place = sizeof(T) == sizeof(float);
  for (int64_t y = 0; y < unit.height; ++y) {
    const int64_t top = y * d.stride - d.padding();
    unit.read_inputs(top + d.kernel);
    T* to = unit.at(d.output, unit.height, y, unit.width);
    DepthwiseRow r{{}, unit.channels, unit.weight, unit.channels, d.bias + unit.channel,
                   in_place ? reinterpret_cast<float*>(to) : unit.row,
                   in_place ? d.channels : unit.channels, unit.width, unit.channels};
    for (int64_t k = 0; k < d.kernel; ++k) {
      const bool inside = top + k >= 0 && top + k < d.height;
      r.rows[k] = inside ? unit.inputs.row(top + k) : unit.zeros;
    }
    depthwise(d.kernel, d.stride, r);
    if (in_place) continue;
    const float* from = unit.row;
    for (int64_t x = 0; x < unit.width; ++x, from += unit.channels, to += d.channels)
      for (int64_t c = 0; c < unit.channels; c += kLanes) store(to + c, load(from + c));
  }
}

// Writes a row of the gradient before the ReLU6 of the output into the ring; adds it to the bias's.
template <typename T>
void read_gradients(const Unit<T>& unit, int64_t y, float* grad_bias) {
  const T* gradient = unit.at(unit.d.grad_output, unit.height, y, unit.width);
  const T* output = unit.at(unit.d.output, unit.height, y, unit.width);
  float* to = unit.gradients.pixels(y);
  for (int64_t c = 0; c < unit.channels; c += kLanes) {
    Floats sum = load(grad_bias + c);
    for (int64_t x = 0; x < unit.width; ++x) {
      const int64_t place = x * unit.d.channels + c;
      const Floats inside = within_relu6(load(output + place), load(gradient + place));
      store(to + x * unit.channels + c, inside);
      sum += inside;
    }
    store(grad_bias + c, sum);
  }
}

// Adds the products of a row of gradients with a row of the input to one row of a kernel.
template <int kKernel, int kStride>
void add_weight_gradients(const float* gradients, const float* inputs, int64_t width,
                          int64_t channels, float* sums) {
  constexpr int kPixels = kKernel == 3 ? 4 : 2;  // chains of sums for each weight
  for (int64_t c = 0; c < channels; c += kLanes) {
    Floats parts[kPixels][kKernel] = {};
    int64_t x = 0;
    for (; x + kPixels <= width; x += kPixels)
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) {
        const Floats gradient = load(gradients + (x + i) * channels + c);
        const float* input = inputs + (x + i) * kStride * channels + c;
#pragma GCC unroll 5
        for (int k = 0; k < kKernel; ++k) parts[i][k] += gradient * load(input + k * channels);
      }
    for (; x < width; ++x) {
      const Floats gradient = load(gradients + x * channels + c);
      const float* input = inputs + x * kStride * channels + c;
#pragma GCC unroll 5
      for (int k = 0; k < kKernel; ++k) parts[0][k] += gradient * load(input + k * channels);
    }
#pragma GCC unroll 5
    for (int k = 0; k < kKernel; ++k) {
      Floats sum = parts[0][k];
#pragma GCC unroll 4
      for (int i = 1; i < kPixels; ++i) sum += parts[i][k];
      store(sums + k * channels + c, load(sums + k * channels + c) + sum);
    }
  }
}

// kPixels pixels of the input's gradient, kStride apart from column j * kStride + phase on. `rows`
// are the padded rows of the output's gradients that reach them, each by one row of the kernel;
// `inputs` and `to` begin with the first pixel. Adds the pixels to `total`.
template <int kKernel, int kStride, int kPixels, typename T>
inline void input_pixels(const Unit<T>& unit, const float* const* rows, const int* kernel_rows,
                         int row_count, int64_t j, int phase, const T* inputs, T* to,
                         float* total) {
  constexpr int kPadding = kKernel / 2;
  const int64_t step = unit.d.channels * kStride, channels = unit.channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Floats sums[kPixels] = {};
    for (int r = 0; r < row_count; ++r)
      for (int kx = (phase + kPadding) % kStride; kx < kKernel; kx += kStride) {
        const Floats w = load(unit.weight + (kernel_rows[r] * kKernel + kx) * channels + c);
        const int64_t column = j + (phase + kPadding - kx) / kStride + kKernel;
        const float* gradient = rows[r] + column * channels + c;
#pragma GCC unroll 8
        for (int i = 0; i < kPixels; ++i) sums[i] += w * load(gradient + i * channels);
      }
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      const int64_t place = i * step + c;
      if (unit.d.input_relu6) sums[i] = within_relu6(load(inputs + place), sums[i]);
      store(to + place, sums[i]);
    }
    Floats sum = load(total + c);
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) sum += sums[i];
    store(total + c, sum);
  }
}

// A row of the input's gradient.
template <int kKernel, int kStride, typename T>
void input_row(const Unit<T>& unit, int64_t y, float* total) {
  const float* rows[kKernel];
  int kernel_rows[kKernel], count = 0;
  for (int ky = 0; ky < kKernel; ++ky) {
    const int64_t from = y + kKernel / 2 - ky;
    if (from < 0 || from % kStride != 0 || from / kStride >= unit.height) continue;
    rows[count] = unit.gradients.row(from / kStride);
    kernel_rows[count++] = ky;
  }
  const T* inputs = unit.at(unit.d.input, unit.d.height, y, unit.d.width);
  T* to = unit.at(unit.d.grad_input, unit.d.height, y, unit.d.width);
  for (int phase = 0; phase < kStride; ++phase) {
    const int64_t pixels = (unit.d.width - phase + kStride - 1) / kStride;
    int64_t j = 0;
    for (; j + 8 <= pixels; j += 8) {
      const int64_t place = (j * kStride + phase) * unit.d.channels;
      input_pixels<kKernel, kStride, 8>(unit, rows, kernel_rows, count, j, phase, inputs + place,
                                        to + place, total);
    }
    for (; j < pixels; ++j) {
      const int64_t place = (j * kStride + phase) * unit.d.channels;
      input_pixels<kKernel, kStride, 1>(unit, rows, kernel_rows, count, j, phase, inputs + place,
                                        to + place, total);
    }
  }
}

template <int kKernel, int kStride, typename T>
void differentiate(const DepthwiseTraining& d, int64_t number) {
  constexpr int kPadding = kKernel / 2;
  Unit<T> unit(d, number);
  unit.gradients.clear();
  std::memset(unit.grad_weight, 0, unit.taps * unit.channels * sizeof(float));
  float* grad_bias = d.grad_bias + unit.image * d.channels + unit.channel;
  std::memset(grad_bias, 0, unit.channels * sizeof(float));
  float* total = nullptr;
  if (d.grad_input != nullptr) {
    total = d.grad_input_sum + unit.image * d.channels + unit.channel;
    std::memset(total, 0, unit.channels * sizeof(float));
  }
  int64_t next = 0;  // row of the input's gradient
  for (int64_t y = 0; y < unit.height; ++y) {
    const int64_t top = y * kStride - kPadding;
    unit.read_inputs(top + kKernel);
    read_gradients(unit, y, grad_bias);
    for (int k = 0; k < kKernel; ++k) {
      if (top + k < 0 || top + k >= d.height) continue;
      add_weight_gradients<kKernel, kStride>(unit.gradients.pixels(y), unit.inputs.row(top + k),
                                             unit.width, unit.channels,
                                             unit.grad_weight + k * kKernel * unit.channels);
    }
    if (d.grad_input == nullptr) continue;
    // Rows that no later row of the output reaches.
    const int64_t end = y + 1 == unit.height ? d.height : std::min(d.height, top + kStride);
    for (; next < end; ++next) input_row<kKernel, kStride>(unit, next, total);
  }
  for (int64_t k = 0; k < unit.taps; ++k)
    std::memcpy(d.grad_weight + (unit.image * unit.taps + k) * d.channels + unit.channel,
                unit.grad_weight + k * unit.channels, unit.channels * sizeof(float));
}

template <typename T>
void differentiate(const DepthwiseTraining& d, int64_t unit) {
  if (d.kernel == 3)
    d.stride == 1 ? differentiate<3, 1, T>(d, unit) : differentiate<3, 2, T>(d, unit);
  else
    d.stride == 1 ? differentiate<5, 1, T>(d, unit) : differentiate<5, 2, T>(d, unit);
}

int64_t units_of(const DepthwiseTraining& d) {
  return d.batch * ((d.channels + kGroup - 1) / kGroup);
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Writes the output.
void lite_detr_depthwise_forward(const lite_detr::DepthwiseTraining* d) {
  lite_detr::parallel_for(lite_detr::units_of(*d), d->threads, [d](int64_t unit) {
    d->bfloat16 ? lite_detr::filter<lite_detr::Bfloat16>(*d, unit)
                : lite_detr::filter<float>(*d, unit);
  });
}

// Writes the gradients.
void lite_detr_depthwise_backward(const lite_detr::DepthwiseTraining* d) {
  lite_detr::parallel_for(lite_detr::units_of(*d), d->threads, [d](int64_t unit) {
    d->bfloat16 ? lite_detr::differentiate<lite_detr::Bfloat16>(*d, unit)
                : lite_detr::differentiate<float>(*d, unit);
  });
}
}
