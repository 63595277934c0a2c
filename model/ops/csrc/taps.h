// The sampling points of one head of one query: for each point four tokens and their bilinear
// weights, and the gradients of offsets and reference points from those of the positions.
#pragma once

#include <cstdint>
#include <cstring>

#include "problem.h"
#include "vectors.h"

namespace lite_detr {

constexpr int32_t kOutside = -1;  // the row of a corner that lies outside its map

// The level of every sampling point, stored per point so that vectors run over points. The padding
// has a map of no pixels: every position is outside it.
class Levels {
 public:
  explicit Levels(const Problem& p)
      : heights(padded(p.samples())), widths(padded(p.samples())), starts(padded(p.samples())) {
    int32_t start = 0;
    for (int64_t l = 0; l < p.levels; ++l) {
      const auto height = static_cast<int32_t>(p.spatial_shapes[2 * l]);
      const auto width = static_cast<int32_t>(p.spatial_shapes[2 * l + 1]);
      for (int64_t i = l * p.points; i < (l + 1) * p.points; ++i) {
        heights.data()[i] = height;
        widths.data()[i] = width;
        starts.data()[i] = start;
      }
      start += height * width;
    }
  }

  Buffer<int32_t> heights, widths, starts;  // [L*P]
};

// Arrays over the L*P sampling points; `step` is the padded length.
class Taps {
 public:
  Taps(const Problem& p, const Levels& levels)
      : step(padded(p.samples())), rows(4 * step), weights(4 * step), fx(step), fy(step), p_(p),
        levels_(levels), base_(2 * step), scale_(2 * step), offsets_(2 * step) {
    for (int64_t i = 0; i < 2 * step; ++i) scale_.data()[i] = 1.0f;
  }

  // Computes the taps of the query with these reference points and offsets.
  void locate(const float* reference, const float* offsets) {
    place(reference);
    if (p_.offset_levels == 1) offsets = spread(offsets);
    const int64_t whole = p_.samples() / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) find(i, offsets + 2 * i);
    if (whole == step) return;
    float* tail = offsets_.data() + 2 * whole;  // reading beyond `offsets` could leave the array
    if (offsets != offsets_.data())
      std::memcpy(tail, offsets + 2 * whole, 2 * (p_.samples() - whole) * sizeof(float));
    find(whole, tail);
  }

  const int64_t step;
  Buffer<int32_t> rows;        // [4, step] tokens of the corners (nw, ne, sw, se), or kOutside
  Buffer<float> weights;       // [4, step]
  Buffer<float> fx, fy;        // [step] fractional part of the position

  // For the query located last: gradients of the offsets and, unless null, of the reference points
  // from those of the positions in pixels. The gradient of a position outside is 0 and must remain
  // so even if the offset is infinite.
  void backpropagate(const float* grad_x, const float* grad_y, const float* offsets,
                     float* grad_offsets, float* grad_reference) const {
    const int64_t shared = p_.offset_levels == 1 ? 0 : 2 * p_.points;
    for (int64_t i = 0; i < p_.offset_size(); ++i) grad_offsets[i] = 0.0f;
    for (int64_t l = 0; l < p_.levels; ++l) {
      const int64_t first = l * p_.points;
      const float* scale = scale_.data() + 2 * first;
      for (int64_t i = 0; i < p_.points; ++i) {
        const float gx = grad_x[first + i], gy = grad_y[first + i];
        grad_offsets[l * shared + 2 * i] += gx == 0.0f ? 0.0f : gx * scale[0];
        grad_offsets[l * shared + 2 * i + 1] += gy == 0.0f ? 0.0f : gy * scale[1];
      }
      if (grad_reference != nullptr)
        reference_backward(grad_x + first, grad_y + first, l, offsets + l * shared,
                           grad_reference + l * p_.reference_size);
    }
  }

 private:
  // Positions in pixels, where pixel i's centre is at i, are base + scale * offset:
  // loc = ref + offset / size for points, loc = ref + offset / P * wh * 0.5 for boxes.
  void place(const float* reference) {
    for (int64_t l = 0; l < p_.levels; ++l, reference += p_.reference_size) {
      const int64_t first = l * p_.points;
      const auto width = static_cast<float>(levels_.widths.data()[first]);
      const auto height = static_cast<float>(levels_.heights.data()[first]);
      const float base[2] = {reference[0] * width - 0.5f, reference[1] * height - 0.5f};
      for (int64_t i = first; i < first + p_.points; ++i)
        std::memcpy(base_.data() + 2 * i, base, sizeof(base));
      if (p_.reference_size != 4) continue;
      const float unit = 0.5f / static_cast<float>(p_.points);
      const float scale[2] = {reference[2] * width * unit, reference[3] * height * unit};
      for (int64_t i = first; i < first + p_.points; ++i)
        std::memcpy(scale_.data() + 2 * i, scale, sizeof(scale));
    }
  }

  // The same offsets for every level.
  const float* spread(const float* offsets) {
    for (int64_t l = 0; l < p_.levels; ++l)
      std::memcpy(offsets_.data() + 2 * l * p_.points, offsets, p_.offset_size() * sizeof(float));
    return offsets_.data();
  }

  // Taps of the kLanes points from i on.
  void find(int64_t i, const float* offsets) {
    const float *base = base_.data() + 2 * i, *scale = scale_.data() + 2 * i;
    const Floats first = load(base) + load(offsets) * load(scale);
    const Floats second = load(base + kLanes) + load(offsets + kLanes) * load(scale + kLanes);
    Floats x = pick<EvenLanes>(first, second), y = pick<OddLanes>(first, second);
    const Ints width = load(levels_.widths.data() + i), height = load(levels_.heights.data() + i);
    // Comparisons with NaN are false, so NaN and infinite positions count as outside.
    const Ints inside =
        (x >= -1.0f) & (x < to_floats(width)) & (y >= -1.0f) & (y < to_floats(height));
    x = inside ? x : all(0.0f);
    y = inside ? y : all(0.0f);
    Ints x0 = to_ints(x), y0 = to_ints(y);
    x0 += x < to_floats(x0);  // towards zero -> down: true is -1
    y0 += y < to_floats(y0);
    const Floats dx = x - to_floats(x0), dy = y - to_floats(y0);
    store(fx.data() + i, dx);
    store(fy.data() + i, dy);
    const Ints left = inside & (x0 >= 0), right = inside & (x0 + 1 < width);
    const Ints top = y0 >= 0, bottom = y0 + 1 < height;
    const Ints row = load(levels_.starts.data() + i) + y0 * width + x0;
    put(0, i, top & left, row, (1.0f - dy) * (1.0f - dx));
    put(1, i, top & right, row + 1, (1.0f - dy) * dx);
    put(2, i, bottom & left, row + width, dy * (1.0f - dx));
    put(3, i, bottom & right, row + width + 1, dy * dx);
  }

  void put(int corner, int64_t i, Ints exists, Ints row, Floats weight) {
    store(rows.data() + corner * step + i, exists ? row : Ints{} + kOutside);
    store(weights.data() + corner * step + i, weight);
  }

  void reference_backward(const float* grad_x, const float* grad_y, int64_t level,
                          const float* offsets, float* grad_box) const {
    const auto width = static_cast<float>(levels_.widths.data()[level * p_.points]);
    const auto height = static_cast<float>(levels_.heights.data()[level * p_.points]);
    float sum_x = 0.0f, sum_y = 0.0f, sum_w = 0.0f, sum_h = 0.0f;
    for (int64_t i = 0; i < p_.points; ++i) {
      sum_x += grad_x[i];
      sum_y += grad_y[i];
      sum_w += grad_x[i] == 0.0f ? 0.0f : grad_x[i] * offsets[2 * i];
      sum_h += grad_y[i] == 0.0f ? 0.0f : grad_y[i] * offsets[2 * i + 1];
    }
    grad_box[0] = sum_x * width;
    grad_box[1] = sum_y * height;
    if (p_.reference_size != 4) return;
    const float unit = 0.5f / static_cast<float>(p_.points);
    grad_box[2] = sum_w * width * unit;
    grad_box[3] = sum_h * height * unit;
  }

  const Problem& p_;
  const Levels& levels_;
  Buffer<float> base_, scale_, offsets_;  // [step, 2], (x, y)
};

}  // namespace lite_detr
