// Deformable attention by warps of 32 lanes, plain and key-aware.
//
// A warp computes several rows (see places.cuh): with 8 heads of 32 channels exactly one query. For
// a chunk of points the lanes first compute the places (each lane those of four points): four
// corners and their weights, written to shared memory. Then all lanes read them, blend and sum.
// Key-aware attention does that in one pass with an online softmax: a sample is blended once, scored
// and added.
//
// `Warp` runs one phase after another for every lane: `each(phase)`, sums and maxima over lanes at
// distances of kFrom, 2 kFrom, ... below kTo, and `sync`, after which a lane sees what other lanes
// stored. On the GPU a phase is plain code of one thread; on the host it is a loop over 32 lanes, so
// the tests compare this same code with the reference.
#pragma once

#include "places.cuh"

namespace lite_detr {

template <class Math, template <class> class WarpOf, class T, class U, Kind kKind, int kChannels,
          int kSplits, class Sizes>
class Attention : public Places<Math, T, U, kChannels, kSplits, Sizes> {
 public:
  using Base = Places<Math, T, U, kChannels, kSplits, Sizes>;
  using typename Base::Values;
  using Base::kChunk, Base::kLanes, Base::kOwn, Base::kParts, Base::kRows, Base::kSlots;

  struct Lane;
  using Warp = WarpOf<Lane>;

  static constexpr bool kKeyAware = kKind != Kind::plain;
  // Points loaded at the same time, and between two adjustments of the online softmax: as many as
  // the registers hold.
  static constexpr int kGroup = sizeof(T) == 2 && kKind != Kind::separate_keys ? 4 : 2;
  static constexpr bool kHalf = sizeof(typename Values::Sample) == sizeof(Quad);  // float16
  // What the registers allow, measured with NVRTC 13.0; the tests check that nothing spills.
  // Addresses by multiplication (`DeviceMath::at`) would cost some kernels a register too many.
  static constexpr bool kAdds =
      kKeyAware && kSplits == 1 &&
      ((Math::kArchitecture == 900 && kHalf) ||
       (Math::kArchitecture == 750 && sizeof(T) == 4 && kKind == Kind::shared_keys));
  // Which points are inside is read again rather than kept: 16 passes over shared memory of a query.
  static constexpr bool kLooksAgain =
      sizeof(T) == 2 && ((Math::kArchitecture >= 1000 && (kHalf || kKind == Kind::shared_keys)) ||
                         (Math::kArchitecture == 900 && !kHalf && kKind == Kind::shared_keys));
  static constexpr int kStride = kGroup * kSplits;  // from a split's group to its next one
  static constexpr int kSharedQuads = 2 * kSlots;   // of a warp: corners, then weights

  // A lane's state between phases.
  struct Lane : Seat {
    const Quad *value, *key;
    float logits[kOwn];  // of the own points, times log2(e); -infinity if there are none
    float query[kPart];  // times log2(e) / sqrt(D)
    float top, total;    // of the softmax, to base 2
    float own_top;       // of this split
    float sums[kPart];
    float scores[kGroup];
    bool inside[kGroup];
    typename Values::Sample samples[kGroup];
  };

  using Base::Base;

  // The rows of an image that a warp computes, by its number among all of the image's warps.
  void run(Warp& warp, int image, int number) const {
    const int first = number * kRows, query = this->query_of_warp(first);
    if (query < 0) return;
    warp.each([&](int number, Lane& lane) { begin(number, lane, image, first, query); });
    if constexpr (kKeyAware)
      warp.template sum<1, kParts>([](Lane& lane) -> float& { return lane.total; });
    else
      weigh_logits(warp);
#pragma unroll 1
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
      warp.each([&](int, Lane& lane) { place(lane, chunk, warp); });
      warp.sync();
      const int count = samples() - chunk < kChunk ? samples() - chunk : kChunk;
#pragma unroll 1
      for (int first = 0; first < count; first += kStride) visit(warp, first, count);
      if (samples() > kChunk) warp.sync();  // before the next chunk's places replace these
    }
    if constexpr (kSplits > 1) join(warp);
    warp.each([&](int, Lane& lane) { finish(lane); });
  }

 private:
  using Base::call_, Base::sizes_;
  using Base::samples, Base::slot;

  void begin(int number, Lane& lane, int image, int first, int query) const {
    static_cast<Seat&>(lane) = this->seat(number, image, first, query);
    lane.value = this->source(call_.value, lane);
    if constexpr (kKind == Kind::separate_keys) lane.key = this->source(call_.key, lane);
    if constexpr (kKeyAware) {
      this->load_row(call_.query, lane, lane.query);
      lane.total = 0.0f;  // NaN if the query is not finite, even if all points lie outside
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        lane.query[k] *= kLog2E * Math::inverse_root(static_cast<float>(kChannels));
        lane.total += lane.query[k] * 0.0f;
      }
      lane.top = kLowestScore;
      clear(lane, 0.0f);
    }
  }

  static void clear(Lane& lane, float start) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) lane.sums[k] = start;
  }

  // Plain attention: the largest logit and the sum of the exponentials, over a row's lanes.
  void weigh_logits(Warp& warp) const {
    warp.each([&](int, Lane& lane) { find_top(lane); });
    warp.template max<1, kLanes>([](Lane& lane) -> float& { return lane.top; });
    warp.each([&](int, Lane& lane) { find_total(lane); });
    warp.template sum<1, kLanes>([](Lane& lane) -> float& { return lane.total; });
    // NaN instead of 0 where the logits give no weights, even if all points lie outside.
    warp.each([&](int, Lane& lane) { clear(lane, lane.total * 0.0f); });
  }

  void load_logits(Lane& lane, int chunk) const {
    const int first = this->own_point(lane, chunk);
    const long long row = this->index(lane) * samples();
    if (samples() % kOwn == 0) {
      if (first < samples())
        load_elements<Values>(call_.logits, row + first, lane.logits);
      else
        for (float& logit : lane.logits) logit = -Math::infinity();
    } else {
#pragma unroll
      for (int j = 0; j < kOwn; ++j)
        lane.logits[j] = first + j < samples() ? Values::element(call_.logits, row + first + j)
                                               : -Math::infinity();
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) lane.logits[j] *= kLog2E;
  }

  void find_top(Lane& lane) const {
    lane.top = -Math::infinity();
#pragma unroll
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
      load_logits(lane, chunk);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) lane.top = Math::larger(lane.top, lane.logits[j]);
    }
  }

  void find_total(Lane& lane) const {
    lane.total = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
      if (samples() > kChunk) load_logits(lane, chunk);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) lane.total += Math::exp2(lane.logits[j] - lane.top);
    }
  }

  // Computes the places of the lane's points.
  void place(Lane& lane, int chunk, Warp& warp) const {
    float inverse = 1.0f;
    if constexpr (!kKeyAware) {
      if (samples() > kChunk) load_logits(lane, chunk);
      inverse = Math::inverse(lane.total);
    }
    const int first = lane.number * kOwn, base = slot(first, lane.row);
    this->template locate<false>(lane, chunk, [&](int j, const Spot& spot) {
      const float weight = kKeyAware ? 1.0f : Math::exp2(lane.logits[j] - lane.top) * inverse;
      const float top = weight * spot.down.first_weight, bottom = weight * spot.down.second_weight;
      Quad weights = {{Values::weight(top * spot.across.first_weight),
                       Values::weight(top * spot.across.second_weight),
                       Values::weight(bottom * spot.across.first_weight),
                       Values::weight(bottom * spot.across.second_weight)}};
      if (!spot.inside) weights.words[3] = kOutsideWeight;
      const int at = Base::slot_near(base, first, j, lane.row);
      warp.store(at, spot.corners);
      warp.store(kSlots + at, weights);
    });
  }

  typename Values::Sample sample(const Quad* source, const Quad& corners,
                                 const Quad& weights) const {
    Quad rows[4][Values::kVectors];
    this->template load_corners<kAdds>(source, corners, rows);
    return Values::blend(rows, weights);
  }

  // Whether a chunk of `count` points has this one; always, where groups fill chunks.
  bool has(int point, int count) const {
    return (samples() % kStride == 0 && kChunk % kStride == 0) || point < count;
  }

  // A group of points of each split, the first of them by its number in the chunk.
  void visit(Warp& warp, int first, int count) const {
    warp.each([&](int, Lane& lane) { look(lane, first + lane.split * kGroup, count, warp); });
    if constexpr (kKeyAware) {
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        warp.template sum<1, kParts>([j](Lane& lane) -> float& { return lane.scores[j]; });
      warp.each([&](int, Lane& lane) { weigh(lane, first + lane.split * kGroup, count, warp); });
    } else {
      warp.each([&](int, Lane& lane) { add_all(lane, first + lane.split * kGroup, count); });
    }
  }

  // The slot of a group's point by that of the first one.
  static int slot_of(int base, int first, int j, const Lane& lane) {
    return kOwn % kGroup == 0 ? Base::slot_near(base, first, j, lane.row)
                              : slot(first + j, lane.row);
  }

  // Reads again which points of a group are inside: registers that kept it were spilled.
  void look_again(Lane& lane, int first, int count, Warp& warp) const {
    const int base = slot(first, lane.row);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      const int at = slot_of(base, first, j, lane);
      lane.inside[j] = warp.word(kSlots + at, 3) != kOutsideWeight;
    }
  }

  // Samples of a group and, key-aware, this lane's share of their scores.
  void look(Lane& lane, int first, int count, Warp& warp) const {
    const int base = slot(first, lane.row);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      const int at = slot_of(base, first, j, lane);
      const Quad corners = warp.load(at), weights = warp.load(kSlots + at);
      lane.inside[j] = weights.words[3] != kOutsideWeight;
      lane.samples[j] = sample(lane.value, corners, weights);
      if constexpr (kKind == Kind::shared_keys)
        lane.scores[j] = score(lane, lane.samples[j]);
      else if constexpr (kKind == Kind::separate_keys)
        lane.scores[j] = score(lane, sample(lane.key, corners, weights));
    }
  }

  static float score(const Lane& lane, const typename Values::Sample& sample) {
    float key[kPart];
    Values::floats(sample, key);
    float sum = lane.query[0] * key[0];
#pragma unroll
    for (int k = 1; k < kPart; ++k) sum += lane.query[k] * key[k];
    return sum;
  }

  static void add(Lane& lane, int j, float weight) {
    float channels[kPart];
    Values::floats(lane.samples[j], channels);
    if (!lane.inside[j]) return;  // placed last, so that it compiles to a predicate and not a branch
#pragma unroll
    for (int k = 0; k < kPart; ++k)
      lane.sums[k] = kKeyAware ? lane.sums[k] + weight * channels[k] : lane.sums[k] + channels[k];
  }

  void add_all(Lane& lane, int first, int count) const {
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (has(first + j, count)) add(lane, j, 1.0f);
  }

  // The online softmax over a group whose scores are complete.
  void weigh(Lane& lane, int first, int count, Warp& warp) const {
    if (!has(first, count)) return;
    if constexpr (kLooksAgain) look_again(lane, first, count, warp);
    float top = lane.top;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      if (!lane.inside[j]) lane.scores[j] = 0.0f;
      top = Math::larger(top, lane.scores[j]);
    }
    const float shrink = Math::exp2(lane.top - top);
    lane.top = top;
    shrink_sums(lane, shrink);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      const float weight = Math::exp2(lane.scores[j] - top);
      lane.total += weight;
      add(lane, j, weight);
    }
  }

  static void shrink_sums(Lane& lane, float factor) {
    lane.total *= factor;
#pragma unroll
    for (int k = 0; k < kPart; ++k) lane.sums[k] *= factor;
  }

  // Joins the splits of each row: every lane gets the row's sums.
  void join(Warp& warp) const {
    if constexpr (kKeyAware) {
      warp.each([](int, Lane& lane) { lane.own_top = lane.top; });
      warp.template max<kParts, kLanes>([](Lane& lane) -> float& { return lane.top; });
      // A split without points has a sum of 0, and exp2(kLowestScore - top) = 0.
      warp.each(
          [](int, Lane& lane) { shrink_sums(lane, Math::exp2(lane.own_top - lane.top)); });
      warp.template sum<kParts, kLanes>([](Lane& lane) -> float& { return lane.total; });
    }
#pragma unroll
    for (int k = 0; k < kPart; ++k)
      warp.template sum<kParts, kLanes>([k](Lane& lane) -> float& { return lane.sums[k]; });
  }

  void finish(Lane& lane) const {
    if (!lane.exists || lane.split != 0) return;
    const float inverse = kKeyAware ? Math::inverse(lane.total) : 1.0f;
    float channels[kPart];
#pragma unroll
    for (int k = 0; k < kPart; ++k) channels[k] = lane.sums[k] * inverse;
    this->store_row(call_.output, lane, channels);
  }
};

}  // namespace lite_detr
