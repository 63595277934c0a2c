// The arguments of a decoder; `model/ops/decoder_stack.py` mirrors them field by field.
#pragma once

#include <cstdint>

#include "places.h"

namespace lite_detr {

struct DecoderLayer {
  Product query_key, value, attended;  // self-attention
  Norm after_attention;
  Product offsets, scores, sampled;  // cross-attention; scores: its queries or logits
  Norm after_sampling;
  Product widen, narrow;
  Norm after_feed_forward;
  Product box[3];  // deltas of the boxes that the next layer gets; not used in the last layer
};

struct Decoder {
  const float* weights;
  const DecoderLayer* layers;
  int64_t layer_count;
  Product position[2];         // from encoded boxes
  int64_t frequencies;         // place of [channels / 2] divisors of the angles
  int64_t channels, heads, feed_forward;
  int64_t levels, points, key_aware;
  const int64_t* spatial_shapes;  // [levels, 2], (H, W)
  int64_t batch, queries, tokens;
  const float* const* values;  // of each layer, [batch, tokens, channels]
  const float* content;        // [queries, channels] of each image, `content_step` apart
  int64_t content_step;
  const float* boxes;          // [batch, queries, 4], cxcywh
  const float* query_ratios;   // [batch, 4]
  const float* box_ratios;     // [batch, levels, 4]
  float eps;                   // of the inverse sigmoid
  float norm_eps;
  float* hidden;      // [batch, queries, channels], of the last layer
  float* references;  // [batch, queries, 4], the boxes that the last layer got
  int64_t threads;
};

}  // namespace lite_detr
