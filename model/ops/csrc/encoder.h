// The arguments of an encoder; `model/ops/encoder_stack.py` mirrors them field by field.
#pragma once

#include <cstdint>

#include "places.h"

namespace lite_detr {

struct FeedForward {
  Product widen, narrow;
  Norm after;
  int64_t width;
};

struct EncoderLayer {
  Product value, offsets, scores, sampled;  // scores: queries or logits
  Norm after_sampling;
  FeedForward high, low;  // of high-level and of low-level tokens
  int64_t updates_low;    // 0: low-level tokens stay as they are
};

struct Encoder {
  const float* weights;
  const EncoderLayer* layers;
  int64_t layer_count;
  int64_t channels, heads;
  int64_t levels, points, offset_levels, key_aware;
  const int64_t* spatial_shapes;       // [levels, 2], (H, W)
  int64_t batch, tokens, low_tokens;   // low-level tokens come first
  float* x;                            // [batch, tokens, channels], updated
  const float* position;               // as `x`
  const float* reference_points;       // [batch, tokens, levels, 2]
  const uint8_t* padding;              // [batch, tokens], 1: not to be sampled; null: none is
  float* values;                       // for 2 * batch * tokens * channels numbers
  float norm_eps;
  int64_t threads;
};

}  // namespace lite_detr
