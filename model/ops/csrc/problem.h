// The arguments of one call: shapes and arrays, as the Python binding fills them in. `cpu.py`
// mirrors these structs field by field.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace lite_detr {

// An input, in float32 or bfloat16.
struct Array {
  const void* data;
  int64_t bfloat16;  // 1: bfloat16, 0: float32

  // `count` floats from index `first` on: in place, or widened into the buffer.
  const float* floats(int64_t first, int64_t count, float* buffer) const {
    if (!bfloat16) return static_cast<const float*>(data) + first;
    const Bfloat16* narrow = static_cast<const Bfloat16*>(data) + first;
    for (int64_t i = 0; i < count; ++i) buffer[i] = widened(narrow[i]);
    return buffer;
  }
};

struct Problem {
  Array value;                    // [B, S, M, D]
  Array key;                      // [B, S, M, D], type of `value`; null: keys are the values
  Array query;                    // [B, Q, M, D]; null: plain attention
  Array logits;                   // [B, Q, M, L*P]; null: key-aware attention
  Array reference_points;         // [B, Q, L, reference_size]
  Array offsets;                  // [B, Q, M, offset_levels, P, 2]
  const int64_t* spatial_shapes;  // [L, 2], (H, W)
  int64_t batch, tokens, heads, channels, queries, levels, points;
  int64_t offset_levels;   // L, or 1 when all levels share the offsets
  int64_t reference_size;  // 2: points, 4: cxcywh boxes
  int64_t threads;

  int64_t samples() const { return levels * points; }
  int64_t offset_size() const { return offset_levels * points * 2; }
  bool key_aware() const { return query.data != nullptr; }
  bool separate_keys() const { return key.data != nullptr; }
};

// Attention of the queries `first` to `last` of one image, all of its heads, on the calling thread;
// float32 arrays. `output` is that of all queries, [B, Q, M, D].
void attend(const Problem& p, int64_t image, int64_t first, int64_t last, float* output);

// All float32, for float32 inputs.
struct Gradients {
  const float* output;      // [B, Q, M, D], given
  float* value;             // [B, S, M, D]
  float* key;               // [B, S, M, D]; null: keys are the values
  float* query;             // [B, Q, M, D]; null: plain attention
  float* logits;            // [B, Q, M, L*P]; null: key-aware attention
  float* reference_points;  // [B, M, Q, L, reference_size], per head; null: not requested
  float* offsets;           // [B, Q, M, offset_levels, P, 2]
};

}  // namespace lite_detr
