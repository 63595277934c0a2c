// The arguments of the input projections; `model/ops/level_projections.py` mirrors them field by
// field.
#pragma once

#include <cstdint>

#include "places.h"

namespace lite_detr {

// A convolution with a 1x1 window, or with a 3x3 one, stride 2 and one pixel of zeros around the
// map; and the group norm after it.
struct Projection {
  Product product;  // inputs in the order of the window's rows, columns, channels
  Norm norm;
  int64_t inputs, window;
};

struct Projections {
  const float* weights;
  const Projection* levels;
  int64_t level_count;
  const float* const* maps;       // of each level, [batch, height, width, inputs]
  const int64_t* map_shapes;      // of each level, (height, width) of its map
  const int64_t* spatial_shapes;  // of each level, (H, W) of the tokens, not more than the result
  int64_t batch, channels, groups;
  float eps;
  float* projected;  // of all levels, for batch * pixels of the results * channels numbers
  float* tokens;     // [batch, tokens, channels]
  int64_t threads;
};

}  // namespace lite_detr
