// Sines and cosines of vectors of angles.
#pragma once

#include "vectors.h"

namespace lite_detr {

// Sine of the even lanes and cosine of the odd ones, to about 1e-7, for angles from 0 to some
// hundreds; NaN stays NaN.
inline Floats alternating_sines(Floats x) {
  Floats odd{};
  for (int i = 1; i < kLanes; i += 2) odd[i] = 1.0f;
  // A cosine is a sine a quarter turn further.
  const Ints turns = to_ints(x * 0.636619772f + 0.5f);
  const Floats n = to_floats(turns);
  const Floats r = ((x - n * 1.5703125f) - n * 4.83751297e-4f) - n * 7.54978995e-8f;
  const Ints quarter = turns + to_ints(odd);
  const Floats square = r * r;
  Floats sine = square * (1.0f / 362880.0f) - 1.0f / 5040.0f;
  sine = sine * square + 1.0f / 120.0f;
  sine = sine * square - 1.0f / 6.0f;
  sine = r + r * square * sine;
  Floats cosine = square * (-1.0f / 3628800.0f) + 1.0f / 40320.0f;
  cosine = cosine * square - 1.0f / 720.0f;
  cosine = cosine * square + 1.0f / 24.0f;
  cosine = cosine * square - 0.5f;
  cosine = cosine * square + 1.0f;
  const Floats value = (quarter & 1) != 0 ? cosine : sine;
  return (quarter & 2) != 0 ? -value : value;
}

}  // namespace lite_detr
