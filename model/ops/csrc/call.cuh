// The arguments of one call of the warp kernels. `cuda.py` mirrors these structs field by field.
//
// The .cuh files include no headers, not even standard ones, so that NVRTC can compile them; g++
// compiles the same code for the tests.
#pragma once

namespace lite_detr {

using Word = unsigned int;

constexpr int kMaxLevels = 8;

enum class Kind { plain, shared_keys, separate_keys };

struct Level {
  int height, width;
  int start;       // its first token
  int first_tile;  // of queries; see tiles.cuh
  int tiles_across;
  float inverse_across;  // 1 / tiles_across
};

// Passed to the kernel by value: nothing is read back, so CUDA graphs can record the call.
struct Call {
  const void* value;             // [B, S, M, D]
  const void* key;               // [B, S, M, D]; null: keys are the values
  const void* query;             // [B, Q, M, D]; null: plain attention
  const void* logits;            // [B, Q, M, L*P]; null: key-aware attention
  const float* reference_points; // [B, Q, L, reference_size]
  const void* offsets;           // [B, Q, M, offset_levels, P, 2]
  const float* valid_ratios;     // [B, L, 2], share (w, h) of a map that is not padding; null: all
  void* output;                  // [B, Q, M, D]
  int tokens, queries;
  Word one;   // 1; see `DeviceMath::at`
  int tiled;  // 1: the queries are the tokens of the last levels and are computed tile by tile
  Level levels[kMaxLevels];
};

// The same for the backward pass; `output` is not used.
struct BackwardCall {
  Call call;
  const void* grad_output;      // [B, Q, M, D], of the values' type
  void* grad_value;             // [B, S, M, D], sums that begin with 0, see `sum_scale`
  void* grad_key;               // the same; null: keys are the values
  void* grad_query;             // [B, Q, M, D], of the values' type; null: plain attention
  float* grad_logits;           // [B, Q, M, L*P]; null: key-aware attention
  float* grad_reference_points; // [B, M, Q, L, reference_size], per head; null: not requested
  float* grad_offsets;          // [B, Q, M, offset_levels, P, 2]
  const float* sum_scale;       // null: sums are float32; else int64, in units of 1 / this number
};

// Layer normalisation of x + residual; all arrays have one type.
struct NormCall {
  const void* x;         // [B, N, width]
  const void* residual;  // [B, N, width]; rows are adjacent, images `residual_stride` rows apart
  const void* weight;    // [width]
  const void* bias;      // [width]
  void* output;          // [B, N, width]
  int rows;              // N
  int residual_stride;
  float eps;
};

// Sizes known to the GPU's compiler, which then unrolls loops and divides by constants.
template <int kLevels, int kPoints, int kHeads, int kReferenceSize, int kOffsetLevels>
struct FixedSizes {
  static constexpr int levels = kLevels, points = kPoints, heads = kHeads;
  static constexpr int reference_size = kReferenceSize, offset_levels = kOffsetLevels;
};

// Sizes known only at run time.
struct AnySizes {
  int levels, points, heads;
  int reference_size;  // 2: points, 4: cxcywh boxes
  int offset_levels;   // `levels`, or 1 when all levels share the offsets
};

}  // namespace lite_detr
