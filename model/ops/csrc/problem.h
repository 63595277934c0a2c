// What one call of the operation is about: shapes and input arrays, as the Python binding fills
// them in. `cpu_library.py` mirrors this struct field by field.
#pragma once

#include <cstdint>

namespace lite_detr {

struct Problem {
  const float* value;             // [B, S, M, D]
  const float* key;               // [B, S, M, D]; null: keys are the values
  const float* query;             // [B, Q, M, D]; null: plain attention
  const float* logits;            // [B, Q, M, L*P]; null: key-aware attention
  const float* reference_points;  // [B, Q, L, reference_size]
  const float* offsets;           // [B, Q, M, offset_levels, P, 2]
  const int64_t* spatial_shapes;  // [L, 2], (H, W)
  int64_t batch, tokens, heads, channels, queries, levels, points;
  int64_t offset_levels;   // L, or 1 when all levels share the offsets
  int64_t reference_size;  // 2: points, 4: cxcywh boxes
  int64_t threads;

  int64_t samples() const { return levels * points; }
  int64_t offset_size() const { return offset_levels * points * 2; }
  bool key_aware() const { return query != nullptr; }
  bool separate_keys() const { return key != nullptr; }
};

struct Gradients {
  const float* output;      // [B, Q, M, D], given
  float* value;             // [B, S, M, D]
  float* key;               // [B, S, M, D]; null: keys are the values
  float* query;             // [B, Q, M, D]; null: plain attention
  float* logits;            // [B, Q, M, L*P]; null: key-aware attention
  float* reference_points;  // [B, M, Q, L, reference_size], a share a head; null: not asked for
  float* offsets;           // [B, Q, M, offset_levels, P, 2]
};

}  // namespace lite_detr
