// The arguments of a decoder; `model/ops/decoder_stack.py` mirrors them field by field.
#pragma once

#include <cstdint>

#include "places.h"

namespace lite_detr {

struct DecoderLayer {
  Product query_key, value, attended;  // self-attention
  Norm after_attention;
  Product memory, offsets, scores, sampled;  // cross-attention; scores: its queries or logits
  Norm after_sampling;
  Product widen, narrow;
  Norm after_feed_forward;
  Product box[3];  // deltas of the boxes
};

struct Decoder {
  const float* weights;
  const DecoderLayer* layers;
  int64_t layer_count;
  Product position[2];         // from encoded boxes
  int64_t frequencies;         // place of [channels / 2] divisors of the angles
  Norm last;                   // of the last layer's queries
  int64_t has_last;            // 0: there is no such norm
  Product classes;
  int64_t class_count;
  int64_t channels, heads, feed_forward;
  int64_t levels, points, key_aware;
  const int64_t* spatial_shapes;  // [levels, 2], (H, W)
  int64_t batch, queries, tokens;
  const float* memory;         // [batch, tokens, channels]
  const uint8_t* padding;      // [batch, tokens], 1: not to be sampled; null: none is
  float* memory_values;        // for layer_count * batch * tokens * channels numbers
  const float* content;        // [queries, channels] of each image, `content_step` apart
  int64_t content_step;
  const float* box_logits;     // [batch, queries, 4], boxes cxcywh before the sigmoid
  const float* query_ratios;   // [batch, 4]
  const float* box_ratios;     // [batch, levels, 4]
  float eps;                   // of the inverse sigmoid
  float norm_eps;
  float* logits;     // [batch, queries, class_count]
  float* predicted;  // [batch, queries, 4], the refined boxes
  int64_t threads;
};

}  // namespace lite_detr
