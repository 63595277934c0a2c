// The backward pass of deformable attention, plain and key-aware, by warps of 32 lanes.
//
// A lane has eight channels of a row as in the forward pass (attention.cuh), which is computed again:
// only its inputs are kept. A first pass over the points gives the softmax and the mean of the
// weights' gradients, a second one everything else. With g the gradient of the row's output, v and k
// the sampled value and key, w the weight of a point:
//   dw = g . v,  ds = w (dw - sum of w dw),  gradient of v: w g,  of k: ds q / sqrt(D),
//   of q: sum of ds k / sqrt(D).
// Each corner gets its share of the sample's gradient by atomic additions. The position's gradient
// follows from the products of the sample's gradient with the four corners.
//
// All arithmetic is float32. `Sum` is the type of the sums over queries: float, or long long for
// fixed-point numbers, whose sum does not depend on the order of the additions.
#pragma once

#include "point_gradients.cuh"

namespace lite_detr {

template <class Math, template <class> class WarpOf, class T, class U, Kind kKind, int kChannels,
          class Sizes, class Sum>
class Gradient : public PointGradients<Math, T, U, kChannels, Sizes> {
 public:
  using Base = PointGradients<Math, T, U, kChannels, Sizes>;
  using typename Base::Values;
  using Base::kChunk, Base::kOwn, Base::kParts, Base::kRows, Base::kSlots;

  struct Lane;
  using Warp = WarpOf<Lane>;

  static constexpr bool kKeyAware = kKind != Kind::plain;
  static constexpr bool kSeparate = kKind == Kind::separate_keys;
  static constexpr int kSharedQuads = Base::kGradients + kSlots;

  struct Lane : Seat {
    const Quad *value, *key;
    float grad[kPart];        // of the output
    float query[kPart];       // times log2(e) / sqrt(D)
    float grad_query[kPart];  // times sqrt(D)
    float top, total;         // of the softmax, to base 2
    float mean;               // of the weights' gradients, times `total` in the first pass
    bool inside;
    float value_dot, key_dot;              // products of the sample with `grad` and `query`
    float value_slope_x, value_slope_y;    // derivatives of `value_dot` by the position
    float key_slope_x, key_slope_y;
  };

  using Base::Base;

  // The rows of an image that a warp computes, by its number among all of the image's warps.
  void run(Warp& warp, int image, int number) const {
    const int first = number * kRows, query = this->query_of_warp(first);
    if (query < 0) return;
    warp.each([&](int number, Lane& lane) { begin(number, lane, image, first, query); });
    over_chunks(warp, true, [&](int point, int chunk) { measure(warp, point, chunk); });
    warp.each([](int, Lane& lane) {
      lane.mean *= Math::inverse(lane.total);
      lane.total = Math::inverse(lane.total);
    });
    over_chunks(warp, samples() > kChunk,
                [&](int point, int chunk) { scatter(warp, point, chunk); },
                [&](int chunk, int count) {
                  warp.sync();  // the gradients of the points' positions are in memory
                  warp.each([&](int, Lane& lane) { this->settle(lane, chunk, count, warp); });
                });
    if constexpr (kKeyAware) warp.each([&](int, Lane& lane) { finish(lane); });
  }

 private:
  using Base::call_, Base::sizes_, Base::grads_;
  using Base::samples, Base::slot;

  // Calls `visit(point, chunk)` for every point of every chunk, by its number in the chunk, and
  // `then(chunk, count)` after each chunk. Without `anew` the places of the only chunk are in memory.
  template <class Visit, class Then>
  void over_chunks(Warp& warp, bool anew, Visit visit, Then then) const {
#pragma unroll 1
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
      if (anew) {
        if (samples() > kChunk) warp.sync();  // before these places replace the last ones
        warp.each([&](int, Lane& lane) { place(lane, chunk, warp); });
        warp.sync();
      }
      const int count = samples() - chunk < kChunk ? samples() - chunk : kChunk;
#pragma unroll 1
      for (int point = 0; point < count; ++point) visit(point, chunk);
      then(chunk, count);
    }
  }

  template <class Visit>
  void over_chunks(Warp& warp, bool anew, Visit visit) const {
    over_chunks(warp, anew, visit, [](int, int) {});
  }

  void begin(int number, Lane& lane, int image, int first, int query) const {
    static_cast<Seat&>(lane) = this->seat(number, image, first, query);
    lane.value = this->source(call_.value, lane);
    if constexpr (kSeparate) lane.key = this->source(call_.key, lane);
    this->load_row(grads_.grad_output, lane, lane.grad);
    if constexpr (kKeyAware) {
      this->load_row(call_.query, lane, lane.query);
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        lane.query[k] *= kLog2E * Math::inverse_root(static_cast<float>(kChannels));
        lane.grad_query[k] = 0.0f;
      }
    }
    lane.top = kLowestScore;
    lane.total = lane.mean = 0.0f;
  }

  void place(Lane& lane, int chunk, Warp& warp) const {
    this->template locate<true>(lane, chunk, [&](int j, const Spot& spot) {
      const Axis &across = spot.across, &down = spot.down;
      Quad weights = words(across.first_weight, across.second_weight, down.first_weight,
                           down.second_weight);
      if (!spot.inside) weights.words[3] = kOutsideWeight;
      const int at = slot(lane.number * kOwn + j, lane.row);
      warp.store(at, spot.corners);
      warp.store(kSlots + at, weights);
      warp.store(2 * kSlots + at, words(across.first_slope, across.second_slope, down.first_slope,
                                        down.second_slope));
    });
  }

  static Quad words(float a, float b, float c, float d) {
    return {{Math::bits(a), Math::bits(b), Math::bits(c), Math::bits(d)}};
  }

  static float dot(const float (&a)[kPart], const float (&b)[kPart]) {
    float sum = a[0] * b[0];
#pragma unroll
    for (int k = 1; k < kPart; ++k) sum += a[k] * b[k];
    return sum;
  }

  // The lane's shares of the products of four corners with `row`.
  static void corner_dots(const Quad (&corners)[4][Values::kVectors], const float (&row)[kPart],
                          float (&dots)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float channels[kPart];
      Values::floats(corners[c], channels);
      dots[c] = dot(channels, row);
    }
  }

  // Of corner c: to the left or right (along x), upper or lower (along y).
  static float weight_of(const Quad& weights, int c) {
    return Math::number(weights.words[c % 2]) * Math::number(weights.words[2 + c / 2]);
  }

  static float blend(const float (&dots)[4], const Quad& weights) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < 4; ++c) sum += weight_of(weights, c) * dots[c];
    return sum;
  }

  // The point's score to base 2, from `key_dot`.
  float score(const Lane& lane, int point) const {
    if constexpr (kKeyAware) return lane.key_dot;
    return kLog2E * Values::element(call_.logits, this->index(lane) * samples() + point);
  }

  // First pass: the softmax, and the mean of the weights' gradients.
  void measure(Warp& warp, int point, int chunk) const {
    warp.each([&](int, Lane& lane) {
      const int at = slot(point, lane.row);
      const Quad corners = warp.load(at), weights = warp.load(kSlots + at);
      lane.inside = weights.words[3] != kOutsideWeight;
      Quad rows[4][Values::kVectors];
      this->load_corners(lane.value, corners, rows);
      float dots[4];
      corner_dots(rows, lane.grad, dots);
      lane.value_dot = blend(dots, weights);
      if constexpr (kKeyAware) {
        if constexpr (kSeparate) this->load_corners(lane.key, corners, rows);
        corner_dots(rows, lane.query, dots);
        lane.key_dot = blend(dots, weights);
      }
      silence(lane);
    });
    warp.template sum<1, kParts>([](Lane& lane) -> float& { return lane.value_dot; });
    if constexpr (kKeyAware)
      warp.template sum<1, kParts>([](Lane& lane) -> float& { return lane.key_dot; });
    warp.each([&](int, Lane& lane) {
      const float score = this->score(lane, chunk + point);
      const float top = Math::larger(lane.top, score);
      const float shrink = Math::exp2(lane.top - top), weight = Math::exp2(score - top);
      lane.top = top;
      lane.total = lane.total * shrink + weight;
      lane.mean = lane.mean * shrink + weight * lane.value_dot;
    });
  }

  // A point outside samples zeros, whatever is at the pixels that were loaded for it.
  static void silence(Lane& lane) {
    if (!lane.inside) lane.value_dot = lane.key_dot = 0.0f;
  }

  // Second pass: gradients of the corners and the query, and those of the point's position and
  // score into shared memory.
  void scatter(Warp& warp, int point, int chunk) const {
    warp.each([&](int, Lane& lane) { share_dots(lane, point, warp); });
    const auto sum = [&](auto field) { warp.template sum<1, kParts>(field); };
    sum([](Lane& lane) -> float& { return lane.value_dot; });
    sum([](Lane& lane) -> float& { return lane.value_slope_x; });
    sum([](Lane& lane) -> float& { return lane.value_slope_y; });
    if constexpr (kKeyAware) {
      sum([](Lane& lane) -> float& { return lane.key_dot; });
      sum([](Lane& lane) -> float& { return lane.key_slope_x; });
      sum([](Lane& lane) -> float& { return lane.key_slope_y; });
    }
    warp.each([&](int, Lane& lane) { spread(lane, point, chunk, warp); });
  }

  // The lane's shares of the sample's products and of their derivatives by the position.
  void share_dots(Lane& lane, int point, Warp& warp) const {
    const int at = slot(point, lane.row);
    const Quad corners = warp.load(at), weights = warp.load(kSlots + at);
    const Quad slopes = warp.load(2 * kSlots + at);
    lane.inside = weights.words[3] != kOutsideWeight;
    Quad rows[4][Values::kVectors];
    this->load_corners(lane.value, corners, rows);
    float dots[4];
    corner_dots(rows, lane.grad, dots);
    lane.value_dot = blend(dots, weights);
    slope(dots, weights, slopes, lane.value_slope_x, lane.value_slope_y);
    if constexpr (kKeyAware) {
      if constexpr (kSeparate) this->load_corners(lane.key, corners, rows);
      corner_dots(rows, lane.query, dots);
      lane.key_dot = blend(dots, weights);
      slope(dots, weights, slopes, lane.key_slope_x, lane.key_slope_y);
    }
    silence(lane);
  }

  static void slope(const float (&dots)[4], const Quad& weights, const Quad& slopes, float& x,
                    float& y) {
    const auto number = [](Word word) { return Math::number(word); };
    const float left = number(slopes.words[0]), right = number(slopes.words[1]);
    const float upper = number(weights.words[2]), lower = number(weights.words[3]);
    x = upper * (left * dots[0] + right * dots[1]) + lower * (left * dots[2] + right * dots[3]);
    const float above = number(slopes.words[2]), below = number(slopes.words[3]);
    const float first = number(weights.words[0]), second = number(weights.words[1]);
    y = above * (first * dots[0] + second * dots[1]) + below * (first * dots[2] + second * dots[3]);
  }

  void spread(Lane& lane, int point, int chunk, Warp& warp) const {
    const float weight = Math::exp2(score(lane, chunk + point) - lane.top) * lane.total;
    const float slope = weight * (lane.value_dot - lane.mean);  // gradient of the score, base e
    const int at = slot(point, lane.row);
    // `query` has a factor log2(e) that the key's gradient must not have.
    const float key_share = slope * (1.0f / kLog2E);
    if (lane.part == 0) {
      float x = 0.0f, y = 0.0f;
      if (lane.inside) {
        x = weight * lane.value_slope_x;
        y = weight * lane.value_slope_y;
        if constexpr (kKeyAware) {
          x += key_share * lane.key_slope_x;
          y += key_share * lane.key_slope_y;
        }
      }
      warp.store(Base::kGradients + at, words(x, y, slope, 0.0f));
    }
    if (!lane.inside) return;
    const Quad corners = warp.load(at), weights = warp.load(kSlots + at);
    if constexpr (kKeyAware) add_keys(lane, corners, weights, slope);
    if (!lane.exists) return;
    float channels[kPart];
#pragma unroll
    for (int k = 0; k < kPart; ++k) channels[k] = weight * lane.grad[k];
    if constexpr (kKind == Kind::shared_keys) {
#pragma unroll
      for (int k = 0; k < kPart; ++k) channels[k] += key_share * lane.query[k];
    }
    add_corners(grads_.grad_value, lane, corners, weights, channels);
    if constexpr (kSeparate) {
#pragma unroll
      for (int k = 0; k < kPart; ++k) channels[k] = key_share * lane.query[k];
      add_corners(grads_.grad_key, lane, corners, weights, channels);
    }
  }

  // Adds ds k to the gradient of the query.
  void add_keys(Lane& lane, const Quad& corners, const Quad& weights, float slope) const {
    Quad rows[4][Values::kVectors];
    this->load_corners(kSeparate ? lane.key : lane.value, corners, rows);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float channels[kPart];
      Values::floats(rows[c], channels);
      const float share = slope * weight_of(weights, c);
#pragma unroll
      for (int k = 0; k < kPart; ++k) lane.grad_query[k] += share * channels[k];
    }
  }

  // Adds each corner's share to its sums, which lie as the values do.
  void add_corners(void* sums, const Lane& lane, const Quad& corners, const Quad& weights,
                   const float (&channels)[kPart]) const {
    constexpr int kOfQuad = static_cast<int>(sizeof(Quad) / sizeof(T));  // channels
    const Quad* none = nullptr;  // where the lane's channels of the image lie in any such array
    Sum* first = static_cast<Sum*>(sums) + (this->source(none, lane) - none) * kOfQuad;
    const float scale = sum_scale();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float weight = weight_of(weights, c);
      Sum* to = first + corners.words[c] / sizeof(T);
#pragma unroll
      for (int k = 0; k < kPart; k += 4)
        add_four(to + (Values::kVectors == 1 ? k : k / 4 * kParts * kOfQuad), weight, scale,
                 channels, k);
    }
  }

  float sum_scale() const {
    if constexpr (sizeof(Sum) == sizeof(float)) return 1.0f;
    return Math::number(Math::load(reinterpret_cast<const Word*>(grads_.sum_scale)));
  }

  static void add_four(Sum* sums, float weight, float scale, const float (&channels)[kPart],
                       int k) {
    if constexpr (sizeof(Sum) == sizeof(float)) {
      Math::add(sums, weight * channels[k], weight * channels[k + 1], weight * channels[k + 2],
                weight * channels[k + 3]);
    } else {
#pragma unroll
      for (int i = k; i < k + 4; ++i) Math::add(sums + (i - k), weight * channels[i] * scale);
    }
  }

  void finish(Lane& lane) const {
    if (!lane.exists) return;
    float channels[kPart];
#pragma unroll
    for (int k = 0; k < kPart; ++k)
      channels[k] = lane.grad_query[k] * Math::inverse_root(static_cast<float>(kChannels));
    this->store_row(grads_.grad_query, lane, channels);
  }
};

}  // namespace lite_detr
