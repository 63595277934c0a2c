// The arguments of depthwise convolutions in training; `depthwise_training.py` mirrors them.
#pragma once

#include <cstdint>

namespace lite_detr {

// relu6(convolution(relu6(input)) + bias), padded by kernel / 2 on all sides, and its gradients; the
// inner ReLU6 only with `input_relu6`.
struct DepthwiseTraining {
  const void* input;        // [B, H, W, C]
  const float* weight;      // [kernel, kernel, C]
  const float* bias;        // [C]
  void* output;             // [B, H', W', C]: written forward, read backward
  const void* grad_output;  // [B, H', W', C]
  void* grad_input;         // [B, H, W, C]; null: not requested
  float* grad_weight;       // [B, kernel, kernel, C]: of every image
  float* grad_bias;         // [B, C]: of every image
  float* grad_input_sum;    // [B, C]: sums of `grad_input` over the pixels; null with it
  int64_t bfloat16;         // type of the maps; 1: bfloat16, 0: float32
  int64_t batch, height, width;
  int64_t channels;     // a multiple of 16
  int64_t kernel;       // 3 or 5
  int64_t stride;       // 1 or 2
  int64_t input_relu6;
  int64_t threads;

  int64_t padding() const { return kernel / 2; }
  int64_t output_height() const { return (height + stride - 1) / stride; }
  int64_t output_width() const { return (width + stride - 1) / stride; }
};

}  // namespace lite_detr
