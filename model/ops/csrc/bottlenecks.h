// The arguments of a network of inverted bottlenecks; `model/ops/bottlenecks.py` mirrors them field
// by field.
#pragma once

#include <cstdint>

namespace lite_detr {

constexpr int64_t kStemChannels = 32;

// The numbers from `expand` to `project_bias` are places in `Network::weights`, in floats.
struct Block {
  int64_t inputs, width, outputs;    // channels: before, between and after
  int64_t kernel, stride, residual;  // of the depthwise convolution; whether the input is added
  int64_t expand, expand_bias;       // -1 where the block has no expansion
  int64_t depthwise, depthwise_bias; // [kernel, kernel, width]
  int64_t project, project_bias;
  int64_t map;  // which result the block's output is; -1: none
};

struct Network {
  const float* images;
  int64_t batch, height, width;
  int64_t image_step, channel_step, row_step, column_step;  // of the images, in floats
  const float* weights;
  int64_t stem, stem_bias;  // places: [3, 3, 3, kStemChannels]
  const Block* blocks;
  int64_t block_count;
  float* const* maps;  // of the whole batch
  int64_t threads;
};

}  // namespace lite_detr
