// Layer normalisation of a sum of two arrays, in one pass: each row is read once and stays in registers.
//
// A row lies over 1 to 32 lanes of a warp, eight channels at a time, so that a load of a warp touches
// adjacent memory. The sum of both arrays, the mean and the variance are float32, and the variance is
// that of the differences from the mean. A row with a number that is not finite becomes NaN.
#pragma once

#include "formats.cuh"

namespace lite_detr {

template <class Math, template <class> class WarpOf, class T, int kWidth>
class AddNorm {
 public:
  using Values = Format<T, Math>;

  static constexpr int kParts = kWidth / kPart;  // groups of eight channels
  static_assert(kParts * kPart == kWidth, "a row must be whole groups of channels");
  static constexpr int kEven = kParts & -kParts;             // the largest power of two that divides them
  static constexpr int kLanes = kEven < 32 ? kEven : 32;     // of a row
  static constexpr int kGroups = kParts / kLanes;            // of a lane
  static constexpr int kRows = 32 / kLanes;                  // of a warp

  // A lane's state between phases.
  struct Lane {
    int number;
    long long row;
    bool exists;  // false: beyond the last row; computes that one again, stores nothing
    float channels[kGroups][kPart];
    float mean, variance;
  };
  using Warp = WarpOf<Lane>;

  explicit AddNorm(const NormCall& call) : call_(call) {}

  // The rows of an image that a warp computes, by its number among all of the image's warps.
  void run(Warp& warp, int image, int number) const {
    const int first = number * kRows;
    if (first >= call_.rows) return;
    warp.each([&](int lane_number, Lane& lane) { begin(lane_number, lane, image, first); });
    warp.template sum<1, kLanes>([](Lane& lane) -> float& { return lane.mean; });
    warp.each([&](int, Lane& lane) { spread(lane); });
    warp.template sum<1, kLanes>([](Lane& lane) -> float& { return lane.variance; });
    warp.each([&](int, Lane& lane) { finish(lane); });
  }

 private:
  static constexpr int kQuadsOfRow = kParts * Values::kVectors;
  // Shares are added and not divided later: the sum of large numbers would be infinite.
  static constexpr float kShare = 1.0f / static_cast<float>(kWidth);

  void begin(int lane_number, Lane& lane, int image, int first) const {
    lane.number = lane_number % kLanes;
    int row = first + lane_number / kLanes;
    lane.exists = row < call_.rows;
    row = lane.exists ? row : call_.rows - 1;
    lane.row = static_cast<long long>(image) * call_.rows + row;
    const long long other = static_cast<long long>(image) * call_.residual_stride + row;
    lane.mean = 0.0f;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float added[kPart];
      load(call_.x, lane.row, lane.number, g, lane.channels[g]);
      load(call_.residual, other, lane.number, g, added);
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        lane.channels[g][k] += added[k];
        lane.mean += lane.channels[g][k] * kShare;
      }
    }
  }

  void spread(Lane& lane) const {
    lane.variance = 0.0f;
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        lane.channels[g][k] -= lane.mean;
        lane.variance += lane.channels[g][k] * kShare * lane.channels[g][k];
      }
  }

  void finish(Lane& lane) const {
    const float scale = Math::rsqrt(lane.variance + call_.eps);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float weight[kPart], bias[kPart];
      load(call_.weight, 0, lane.number, g, weight);
      load(call_.bias, 0, lane.number, g, bias);
#pragma unroll
      for (int k = 0; k < kPart; ++k)
        lane.channels[g][k] = lane.channels[g][k] * scale * weight[k] + bias[k];
      Quad packed[Values::kVectors];
      Values::pack(lane.channels[g], packed);
      if (!lane.exists) continue;
#pragma unroll
      for (int v = 0; v < Values::kVectors; ++v)
        *const_cast<Quad*>(quad(call_.output, lane.row, lane.number, g, v)) = packed[v];
    }
  }

  static void load(const void* array, long long row, int number, int group, float (&out)[kPart]) {
    Quad quads[Values::kVectors];
#pragma unroll
    for (int v = 0; v < Values::kVectors; ++v)
      quads[v] = Math::load(quad(array, row, number, group, v));
    Values::floats(quads, out);
  }

  // Which channels a lane has is the same in every array: the lanes' quads are adjacent.
  static const Quad* quad(const void* array, long long row, int number, int group, int v) {
    return static_cast<const Quad*>(array) + row * kQuadsOfRow +
           ((group * Values::kVectors + v) * kLanes + number);
  }

  const NormCall& call_;
};

}  // namespace lite_detr
