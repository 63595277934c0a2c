// Deformable attention by warps of 32 lanes, plain and key-aware.
//
// A row is one head of one query. Its channels are spread over D / 8 lanes, so a warp computes
// several rows: with 8 heads of 32 channels exactly one query. For a chunk of points the lanes first
// compute the places (each lane those of four points): four corners and their weights, written to
// shared memory. Then all lanes read them, blend and sum. Key-aware attention does that in one pass
// with an online softmax: a sample is blended once, scored and added.
//
// `Warp` runs one phase after another for every lane: `each(phase)`, sums and maxima over
// neighbouring lanes, `sync`. On the GPU a phase is plain code of one thread; on the host it is
// a loop over 32 lanes, so the tests compare this same code with the reference.
#pragma once

#include "call.cuh"
#include "formats.cuh"

namespace lite_detr {

constexpr int kLanesOfWarp = 32;
constexpr int kPlacesALane = 4;
constexpr int kPlaces = kLanesOfWarp * kPlacesALane;  // of all rows, at a time

// Stored instead of the last weight: the point lies outside its map or is not finite. A NaN that no
// arithmetic produces.
constexpr Word kOutsideWeight = 0xffffa5a5u;

constexpr float kLog2E = 1.44269504f;

template <class Math, template <class> class WarpOf, class T, class U, Kind kKind, int kChannels,
          class Sizes>
class Attention {
 public:
  static constexpr int kParts = kChannels / kPart;  // lanes of a row
  static constexpr int kRows = kLanesOfWarp / kParts;
  static_assert(kParts * kRows == kLanesOfWarp && kParts * kPart == kChannels,
                "a head's channels must fill 1, 2, 4, ... lanes");

  struct Lane;
  using Warp = WarpOf<Lane>;
  using Values = Format<T, Math>;
  using Offsets = Format<U, Math>;

  static constexpr bool kKeyAware = kKind != Kind::plain;
  static constexpr int kChunk = kPlacesALane * kParts;  // points of a row whose places are in memory
  // Points loaded at the same time, and between two adjustments of the online softmax: as many as
  // the registers hold.
  static constexpr int kGroup = sizeof(T) == 2 && kKind != Kind::separate_keys ? 4 : 2;
  static constexpr int kQuadsOfHead = kParts * Values::kVectors;

  // A lane's state between phases.
  struct Lane {
    int row;  // within the warp
    int part;
    int query_index, head;
    long long index;  // of the row among all of [B, Q, M]
    bool exists;      // false beyond the last row: computes the last row again, stores nothing
    const Quad *value, *key;
    float query[kPart];  // times log2(e) / sqrt(D)
    float nothing;       // the score of a zero sample: 0, or NaN if the query is not finite
    float top, total;    // of the softmax, to base 2
    float sums[kPart];
    float scores[kGroup];
    bool inside[kGroup];
    typename Values::Sample samples[kGroup];
  };

  Attention(const Call& call, Sizes sizes) : call_(call), sizes_(sizes) {}

  // Rows first, first + 1, ... of an image, as many as the warp has.
  void run(Warp& warp, int image, int first) const {
    warp.each([&](int number, Lane& lane) { begin(number, lane, image, first); });
    if constexpr (kKeyAware) {
      warp.template sum<kParts>([](Lane& lane) -> float& { return lane.nothing; });
    } else {
      warp.each([&](int, Lane& lane) { find_top(lane); });
      warp.template max<kParts>([](Lane& lane) -> float& { return lane.top; });
      warp.each([&](int, Lane& lane) { find_total(lane); });
      warp.template sum<kParts>([](Lane& lane) -> float& { return lane.total; });
      // NaN instead of 0 where the logits give no weights, even if all points lie outside.
      warp.each([&](int, Lane& lane) { clear(lane, lane.total * 0.0f); });
    }
    Quad* places = warp.shared();
#pragma unroll 1
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
      warp.each([&](int, Lane& lane) { place(lane, image, chunk, places); });
      warp.sync();
      const int count = samples() - chunk < kChunk ? samples() - chunk : kChunk;
#pragma unroll 1
      for (int first = 0; first < count; first += kGroup) visit(warp, first, count, places);
      if (samples() > kChunk) warp.sync();  // before the next chunk's places replace these
    }
    warp.each([&](int, Lane& lane) { finish(lane); });
  }

 private:
  constexpr int samples() const { return sizes_.levels * sizes_.points; }

  void begin(int number, Lane& lane, int image, int first) const {
    lane.row = number / kParts;
    lane.part = number % kParts;
    const int last = call_.queries * sizes_.heads - 1;
    const int row = first + lane.row;
    lane.exists = row <= last;
    const int at = lane.exists ? row : last;
    lane.query_index = at / sizes_.heads;
    lane.head = at % sizes_.heads;
    lane.index = static_cast<long long>(image) * call_.queries * sizes_.heads + at;
    const long long quad = static_cast<long long>(image) * call_.tokens * sizes_.heads * kQuadsOfHead +
                           lane.head * kQuadsOfHead + lane.part;
    lane.value = static_cast<const Quad*>(call_.value) + quad;
    if constexpr (kKind == Kind::separate_keys)
      lane.key = static_cast<const Quad*>(call_.key) + quad;
    if constexpr (kKeyAware) {
      Quad query[Values::kVectors];
#pragma unroll
      for (int v = 0; v < Values::kVectors; ++v)
        query[v] = Math::load(static_cast<const Quad*>(call_.query) + quad_of_row(lane, v));
      Values::floats(query, lane.query);
      lane.nothing = 0.0f;
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        lane.query[k] *= kLog2E * Math::inverse_root(static_cast<float>(kChannels));
        lane.nothing += lane.query[k] * 0.0f;
      }
      lane.top = -Math::infinity();
      lane.total = 0.0f;
      clear(lane, 0.0f);
    }
  }

  static void clear(Lane& lane, float start) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) lane.sums[k] = start;
  }

  // Where 16 bytes of a lane's row lie in [B, Q, M, D]. The lanes' first 16 bytes are adjacent,
  // and so are their second ones: a warp's load touches as few cache lines as possible.
  static long long quad_of_row(const Lane& lane, int v) {
    return lane.index * kQuadsOfHead + v * kParts + lane.part;
  }

  int own_point(const Lane& lane, int chunk, int j) const {
    return chunk + lane.part * kPlacesALane + j;
  }

  float logit(const Lane& lane, int chunk, int j) const {
    return kLog2E * Values::element(call_.logits, lane.index * samples() + own_point(lane, chunk, 0), j);
  }

  // Whether the lane's j-th point of a chunk exists.
  bool owns(const Lane& lane, int chunk, int j) const {
    return samples() % kChunk == 0 || own_point(lane, chunk, j) < samples();
  }

  void find_top(Lane& lane) const {
    lane.top = -Math::infinity();
#pragma unroll
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
#pragma unroll
      for (int j = 0; j < kPlacesALane; ++j) {
        if (owns(lane, chunk, j)) lane.top = Math::larger(lane.top, logit(lane, chunk, j));
      }
    }
  }

  void find_total(Lane& lane) const {
    lane.total = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < samples(); chunk += kChunk) {
#pragma unroll
      for (int j = 0; j < kPlacesALane; ++j) {
        if (owns(lane, chunk, j)) lane.total += Math::exp2(logit(lane, chunk, j) - lane.top);
      }
    }
  }

  // A position along one axis: two pixels inside the map and their weights. Where one of them
  // would lie outside, the other is used twice with half its weight: no load needs a condition, and
  // no pixel of weight 0 is read (0 times an infinite one would be NaN).
  struct Axis {
    int first, second;
    float first_weight, second_weight;
  };

  static Axis along(float position, int size) {
    const int pixel = Math::floor(position);
    const float past = position - static_cast<float>(pixel);
    const bool before = pixel < 0, edge = before || pixel + 1 >= size;
    const float half = 0.5f * (before ? past : 1.0f - past);
    const int first = before ? 0 : pixel;
    return {first, edge ? first : pixel + 1, edge ? half : 1.0f - past, edge ? half : past};
  }

  // What is common to the places of one level, for one query.
  struct Frame {
    int start, width, height;
    float base_x, base_y, scale_x, scale_y;  // positions in pixels are base + scale * offset
  };

  // In pixels, where pixel i's centre is at i: loc = ref + offset / size for points,
  // loc = ref + offset / P * wh * 0.5 for boxes.
  Frame frame(const Lane& lane, int image, int number) const {
    const Level& level = call_.levels[number];
    const auto width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    const long long query = static_cast<long long>(image) * call_.queries + lane.query_index;
    const Word* reference = reinterpret_cast<const Word*>(call_.reference_points) +
                            (query * sizes_.levels + number) * sizes_.reference_size;
    float scale_x = 1.0f, scale_y = 1.0f;
    if (sizes_.reference_size == 4) {
      const float unit = 0.5f / static_cast<float>(sizes_.points);
      scale_x = Math::number(Math::load(reference + 2)) * width * unit;
      scale_y = Math::number(Math::load(reference + 3)) * height * unit;
    }
    return {level.start,
            level.width,
            level.height,
            Math::number(Math::load(reference)) * width - 0.5f,
            Math::number(Math::load(reference + 1)) * height - 0.5f,
            scale_x,
            scale_y};
  }

  // Computes the places of the lane's points. Where they are all of one level, as usual, their frame
  // is computed once.
  void place(Lane& lane, int image, int chunk, Quad* places) const {
    const float inverse = kKeyAware ? 1.0f : Math::inverse(lane.total);
    const int first = own_point(lane, chunk, 0);
    const bool one_level = sizes_.points % kPlacesALane == 0;
    const int number = first / sizes_.points;
    const int own = sizes_.offset_levels == 1 ? first - number * sizes_.points : first;
    const long long offset = lane.index * sizes_.offset_levels * sizes_.points + own;
    if (first >= samples()) return;
    const Frame shared = frame(lane, image, number);
#pragma unroll
    for (int j = 0; j < kPlacesALane; ++j) {
      const int point = first + j;
      if (samples() % kPlacesALane != 0 && point >= samples()) break;
      const float weight =
          kKeyAware ? 1.0f : Math::exp2(logit(lane, chunk, j) - lane.top) * inverse;
      const int slot = (lane.part * kPlacesALane + j) * kRows + lane.row;
      float x, y;
      if (one_level) {
        Offsets::pair(call_.offsets, offset, j, x, y);
        find(shared, x, y, weight, places[slot], places[kPlaces + slot]);
      } else {
        const int level = point / sizes_.points;
        const int back = sizes_.offset_levels == 1 ? (level - number) * sizes_.points : 0;
        Offsets::pair(call_.offsets, offset, j - back, x, y);
        find(frame(lane, image, level), x, y, weight, places[slot], places[kPlaces + slot]);
      }
    }
  }

  void find(const Frame& frame, float x, float y, float weight, Quad& corners,
            Quad& weights) const {
    x = frame.base_x + frame.scale_x * x;
    y = frame.base_y + frame.scale_y * y;
    // Comparisons with NaN are false, so NaN and infinite positions count as outside.
    const bool inside = x > -1.0f && x < static_cast<float>(frame.width) && y > -1.0f &&
                        y < static_cast<float>(frame.height);
    const Axis across = along(inside ? x : 0.0f, frame.width);
    const Axis down = along(inside ? y : 0.0f, frame.height);
    const Word step = sizes_.heads * kQuadsOfHead;  // from token to token
    const Word upper = (frame.start + down.first * frame.width) * step;
    const Word lower = (frame.start + down.second * frame.width) * step;
    const Word left = across.first * step, right = across.second * step;
    corners = {{upper + left, upper + right, lower + left, lower + right}};
    const float top = weight * down.first_weight, bottom = weight * down.second_weight;
    weights = {{Values::weight(top * across.first_weight), Values::weight(top * across.second_weight),
                Values::weight(bottom * across.first_weight),
                Values::weight(bottom * across.second_weight)}};
    if (!inside) weights.words[3] = kOutsideWeight;
  }

  static typename Values::Sample blend(const Quad* source, const Quad& corners,
                                       const Quad& weights) {
    Quad rows[4][Values::kVectors];
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int v = 0; v < Values::kVectors; ++v)
        rows[c][v] = Math::load(Math::at(source, corners.words[c]) + v * kParts);
    return Values::blend(rows, weights);
  }

  // Whether a chunk of `count` points has this one; always, where groups fill chunks.
  bool has(int point, int count) const { return samples() % kGroup == 0 || point < count; }

  // A group of points, the first of them by its number in the chunk.
  void visit(Warp& warp, int first, int count, const Quad* places) const {
    warp.each([&](int, Lane& lane) { look(lane, first, count, places); });
    if constexpr (kKeyAware) {
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        warp.template sum<kParts>([j](Lane& lane) -> float& { return lane.scores[j]; });
      warp.each([&](int, Lane& lane) { weigh(lane, first, count); });
    } else {
      warp.each([&](int, Lane& lane) { add_all(lane, first, count); });
    }
  }

  // Samples of a group and, key-aware, this lane's share of their scores.
  void look(Lane& lane, int first, int count, const Quad* places) const {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      const int slot = (first + j) * kRows + lane.row;
      const Quad corners = places[slot], weights = places[kPlaces + slot];
      lane.inside[j] = weights.words[3] != kOutsideWeight;
      lane.samples[j] = blend(lane.value, corners, weights);
      if constexpr (kKind == Kind::shared_keys)
        lane.scores[j] = score(lane, lane.samples[j]);
      else if constexpr (kKind == Kind::separate_keys)
        lane.scores[j] = score(lane, blend(lane.key, corners, weights));
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
  void weigh(Lane& lane, int first, int count) const {
    float top = lane.top;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      if (!lane.inside[j]) lane.scores[j] = lane.nothing;
      top = Math::larger(top, lane.scores[j]);
    }
    const float shrink = Math::exp2(lane.top - top);
    lane.top = top;
    lane.total *= shrink;
#pragma unroll
    for (int k = 0; k < kPart; ++k) lane.sums[k] *= shrink;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!has(first + j, count)) break;
      const float weight = Math::exp2(lane.scores[j] - top);
      lane.total += weight;
      add(lane, j, weight);
    }
  }

  void finish(Lane& lane) const {
    if (!lane.exists) return;
    const float inverse = kKeyAware ? Math::inverse(lane.total) : 1.0f;
    float channels[kPart];
#pragma unroll
    for (int k = 0; k < kPart; ++k) channels[k] = lane.sums[k] * inverse;
    Quad row[Values::kVectors];
    Values::pack(channels, row);
#pragma unroll
    for (int v = 0; v < Values::kVectors; ++v)
      static_cast<Quad*>(call_.output)[quad_of_row(lane, v)] = row[v];
  }

  const Call& call_;
  Sizes sizes_;
};

}  // namespace lite_detr
