// From the gradients of points' positions and scores, in shared memory, to those of offsets, reference
// points and logits.
#pragma once

#include "places.cuh"

namespace lite_detr {

template <class Math, class T, class U, int kChannels, class Sizes>
class PointGradients : public Places<Math, T, U, kChannels, 1, Sizes, false> {
 public:
  using Base = Places<Math, T, U, kChannels, 1, Sizes, false>;
  using Base::kLanes, Base::kSlots;

  // First slot of the gradients: of the position along x and y, in pixels, and of the score. Before it
  // are the corners, their weights along both axes and the weights' slopes.
  static constexpr int kGradients = 3 * kSlots;

  PointGradients(const BackwardCall& call, Sizes sizes) : Base(call.call, sizes), grads_(call) {}

 protected:
  using Base::call_, Base::sizes_;
  using Base::samples, Base::slot;

  // Writes the gradients of logits, offsets and reference points of a chunk; each lane of the row
  // those of other points and levels. Sums over several chunks are continued in global memory.
  template <class Warp>
  void settle(const Seat& seat, int chunk, int count, Warp& warp) const {
    if (!seat.exists) return;
    if (grads_.grad_logits != nullptr) {
      for (int point = seat.number; point < count; point += kLanes)
        grads_.grad_logits[this->index(seat) * samples() + chunk + point] =
            Math::number(warp.load(kGradients + slot(point, seat.row)).words[2]);
    }
    settle_offsets(seat, chunk, count, warp);
    if (grads_.grad_reference_points == nullptr) return;
    for (int level = seat.number; level < sizes_.levels; level += kLanes)
      settle_level(seat, level, chunk, count, warp);
  }

  const BackwardCall& grads_;

 private:
  // A gradient of 0 stays 0, even if the scale is infinite: the point lies outside.
  static float product(float gradient, float factor) {
    return gradient == 0.0f ? 0.0f : gradient * factor;
  }

  template <class Warp>
  void settle_offsets(const Seat& seat, int chunk, int count, Warp& warp) const {
    const int offsets = sizes_.offset_levels * sizes_.points;
    for (int own = seat.number; own < offsets; own += kLanes) {
      float x = 0.0f, y = 0.0f;
      bool any = false;
      for (int point = own; point < samples(); point += offsets) {  // one, or one of each level
        if (point < chunk || point >= chunk + count) continue;
        const Frame frame = this->frame(seat, point / sizes_.points);
        const Quad grad = warp.load(kGradients + slot(point - chunk, seat.row));
        x += product(Math::number(grad.words[0]), frame.scale_x);
        y += product(Math::number(grad.words[1]), frame.scale_y);
        any = true;
      }
      if (!any) continue;
      float* to = grads_.grad_offsets + 2 * (this->first_offset(seat) + own);
      const bool begun = own < chunk;  // an earlier chunk had a point of this offset
      to[0] = begun ? to[0] + x : x;
      to[1] = begun ? to[1] + y : y;
    }
  }

  template <class Warp>
  void settle_level(const Seat& seat, int level, int chunk, int count, Warp& warp) const {
    const int first = level * sizes_.points, last = first + sizes_.points;
    if (last <= chunk || first >= chunk + count) return;
    float sums[4] = {};
    for (int point = first > chunk ? first : chunk; point < last && point < chunk + count;
         ++point) {
      const Quad grad = warp.load(kGradients + slot(point - chunk, seat.row));
      const float x = Math::number(grad.words[0]), y = Math::number(grad.words[1]);
      float offset_x[1], offset_y[1];
      Base::Offsets::pairs(call_.offsets, this->first_offset(seat) + this->offset_of(point),
                           offset_x, offset_y);
      sums[0] += x;
      sums[1] += y;
      sums[2] += product(x, offset_x[0]);
      sums[3] += product(y, offset_y[0]);
    }
    const auto width = static_cast<float>(call_.levels[level].width);
    const auto height = static_cast<float>(call_.levels[level].height);
    const float unit = 0.5f / static_cast<float>(sizes_.points);
    const float factors[4] = {width, height, width * unit, height * unit};
    const long long share = (static_cast<long long>(seat.image) * sizes_.heads + seat.head) *
                                call_.queries + seat.query_index;
    float* to =
        grads_.grad_reference_points + (share * sizes_.levels + level) * sizes_.reference_size;
    const bool begun = first < chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= sizes_.reference_size) break;
      to[i] = (begun ? to[i] : 0.0f) + sums[i] * factors[i];
    }
  }
};

}  // namespace lite_detr
