// Where the packed weights of a stack of layers have its parts, in floats.
#pragma once

#include <cstdint>

namespace lite_detr {

struct Product {
  int64_t panels, bias;
};
struct Norm {
  int64_t scale, shift;
};

}  // namespace lite_detr
