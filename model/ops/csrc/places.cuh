// How rows lie over the lanes of a warp, and where the points of a row are sampled.
//
// A row is one head of one query. Its channels are spread over D / 8 lanes (parts). With few
// queries its points are also split over several groups of such lanes. The places of a chunk of
// points (the corners and what else is needed of them) are computed by all lanes of the row, each
// its own ones, and exchanged in shared memory.
#pragma once

#include "formats.cuh"
#include "tiles.cuh"

namespace lite_detr {

constexpr int kLanesOfWarp = 32;

// Stored instead of the last weight: the point lies outside its map or is not finite. A NaN that no
// arithmetic produces.
constexpr Word kOutsideWeight = 0xffffa5a5u;

constexpr float kLog2E = 1.44269504f;

// The online softmax begins with it and not with -infinity, which a first score may be: the
// difference of the two would be NaN.
constexpr float kLowestScore = -3.0e38f;

// Which row and which part of it a lane computes.
struct Seat {
  int row;     // within the warp
  int number;  // of the lane within the row
  int part;    // which channels
  int split;   // which points
  int image, query_index, head;
  bool exists;      // false: beyond the last row; computes another row again, stores nothing
};

// Two pixels inside the map and their weights, along one axis, and the slopes of the weights.
struct Axis {
  int first, second;
  float first_weight, second_weight;
  float first_slope, second_slope;
};

// Where a point is sampled; any pixels if it lies outside.
struct Spot {
  bool inside;
  Axis across, down;
  Quad corners;  // in bytes from the image's first value
};

// What is common to the points of one level, for one query.
struct Frame {
  int start, width;
  int inner_width, inner_height;  // without the image's padding
  float base_x, base_y, scale_x, scale_y;  // positions in pixels are base + scale * offset
};

// T: type of the values, U: of the offsets; kSplits: groups of lanes among which a row's points are
// split; kPadding: whether a call may have `valid_ratios`.
template <class Math, class T, class U, int kChannels, int kSplits, class Sizes,
          bool kPadding = true>
class Places {
 public:
  using Values = Format<T, Math>;
  using Offsets = Format<U, Math>;

  static constexpr int kParts = kChannels / kPart;  // groups of channels, a lane each
  static constexpr int kLanes = kParts * kSplits;   // of a row
  static constexpr int kRows = kLanesOfWarp / kLanes;
  static_assert(kLanes * kRows == kLanesOfWarp && kParts * kPart == kChannels,
                "a head's channels must fill 1, 2, 4, ... lanes");
  static constexpr int kOwn = kSplits < 4 ? 4 / kSplits : 1;  // points whose places a lane computes
  static constexpr int kChunk = kOwn * kLanes;  // points of a row whose places are in memory
  static constexpr int kSlots = kOwn * kLanesOfWarp;
  static constexpr int kQuadsOfHead = kParts * Values::kVectors;

  Places(const Call& call, Sizes sizes) : call_(call), sizes_(sizes) {}

  // The slot of a row's point, by its number in the chunk. Eight lanes store 16 bytes each at a time:
  // the slots of neighbouring lanes are rotated, so that they lie in different banks.
  static constexpr int slot(int point, int row) {
    constexpr unsigned kStride = kOwn * kRows;  // from a lane's first slot to the next lane's
    constexpr unsigned kStep = kLanes < 8 ? 8 / kLanes : 1;
    const unsigned plain = point * kRows + row;
    const unsigned turn = kStride < 8 ? plain / 8 : plain / kStride * kStep;
    return static_cast<int>((plain & ~7u) | ((plain + turn) & 7u));
  }

  // The slot of point first + j from that of point `first`, both of one lane: in the usual layout a
  // constant further.
  static constexpr int slot_near(int base, int first, int j, int row) {
    return kRows % 8 == 0 ? base + j * kRows : slot(first + j, row);
  }

 protected:
  constexpr int samples() const { return sizes_.levels * sizes_.points; }

  // Whether the rows of a warp are all of one query.
  constexpr bool one_query() const { return sizes_.heads % kRows == 0; }

  // The query of a warp whose rows are all of one query, -1 if it has none; else 0: its lanes find
  // their queries themselves. `first`: number of the warp's first row in the order of computation.
  int query_of_warp(int first) const {
    return one_query() ? query_at<Math>(call_, sizes_, first / sizes_.heads) : 0;
  }

  Seat seat(int lane, int image, int first, int query_of_warp) const {
    Seat seat;
    seat.row = lane / kLanes;
    seat.number = lane % kLanes;
    seat.part = lane % kParts;
    seat.split = seat.number / kParts;
    const int row = first + seat.row;
    const int query =
        one_query() ? query_of_warp : query_at<Math>(call_, sizes_, row / sizes_.heads);
    seat.exists = one_query() || query >= 0;
    seat.query_index = seat.exists ? query : 0;
    seat.head = row % sizes_.heads;
    seat.image = image;
    return seat;
  }

  // Of the row among all of [B, Q, M].
  long long index(const Seat& seat) const {
    return static_cast<long long>(seat.image) * (call_.queries * sizes_.heads) +
           (seat.query_index * sizes_.heads + seat.head);
  }

  static constexpr int kQuadBytes = static_cast<int>(sizeof(Quad));

  // From token to token of an array [B, S, M, D].
  constexpr Word token_bytes() const { return sizes_.heads * kQuadsOfHead * kQuadBytes; }

  // The lane's first 16 bytes of an image's first token.
  const Quad* source(const void* array, const Seat& seat) const {
    const long long image = static_cast<long long>(seat.image) * call_.tokens * token_bytes();
    return reinterpret_cast<const Quad*>(static_cast<const char*>(array) + image) +
           (seat.head * kQuadsOfHead + seat.part);
  }

  // 16 bytes of a lane's row in an array [B, Q, M, D] of the values' type. The lanes' first 16 bytes
  // are adjacent, and so are their second ones: a warp's load touches as few cache lines as possible.
  const Quad* quad_of_row(const void* array, const Seat& seat, int v) const {
    const long long of_image =
        static_cast<long long>(seat.image) * call_.queries * sizes_.heads * kQuadsOfHead;
    const Word own = (seat.query_index * sizes_.heads + seat.head) * kQuadsOfHead + seat.part;
    return static_cast<const Quad*>(array) + of_image + own + v * kParts;
  }

  // The lane's channels of its row of an array.
  void load_row(const void* array, const Seat& seat, float (&out)[kPart]) const {
    Quad row[Values::kVectors];
#pragma unroll
    for (int v = 0; v < Values::kVectors; ++v) row[v] = Math::load(quad_of_row(array, seat, v));
    Values::floats(row, out);
  }

  void store_row(void* array, const Seat& seat, const float (&channels)[kPart]) const {
    Quad row[Values::kVectors];
    Values::pack(channels, row);
#pragma unroll
    for (int v = 0; v < Values::kVectors; ++v)
      *const_cast<Quad*>(quad_of_row(array, seat, v)) = row[v];
  }

  // Four corners of a map at the lane's channels. `kKnown`: the compiler knows that `one` is 1.
  template <bool kKnown = false>
  void load_corners(const Quad* source, const Quad& corners,
                    Quad (&rows)[4][Values::kVectors]) const {
    const Word one = kKnown ? 1u : call_.one;
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int v = 0; v < Values::kVectors; ++v)
        rows[c][v] = Math::load(Math::at(source, corners.words[c], one) + v * kParts);
  }

  static int own_point(const Seat& seat, int chunk) { return chunk + seat.number * kOwn; }

  // Calls `use(j, spot)` for the lane's own points of a chunk that exist. `kWithEdge`: points exactly
  // one pixel before a map, which sample 0, are inside: there the sample's slope is not 0.
  template <bool kWithEdge, class Use>
  void locate(const Seat& seat, int chunk, Use use) const {
    const int first = own_point(seat, chunk);
    if (first >= samples()) return;
    const int number = first / sizes_.points;
    const Frame shared = frame(seat, number);
    float x[kOwn], y[kOwn];
    if (sizes_.points % kOwn == 0) {  // as usual: points of one level, offsets in one load
      const int own = sizes_.offset_levels == 1 ? first - number * sizes_.points : first;
      Offsets::pairs(call_.offsets, first_offset(seat) + own, x, y);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) use(j, spot<kWithEdge>(shared, x[j], y[j]));
      return;
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int point = first + j;
      if (point >= samples()) break;
      float one_x[1], one_y[1];
      Offsets::pairs(call_.offsets, first_offset(seat) + offset_of(point), one_x, one_y);
      use(j, spot<kWithEdge>(frame(seat, point / sizes_.points), one_x[0], one_y[0]));
    }
  }

  // Of the row's offsets, in pairs.
  long long first_offset(const Seat& seat) const {
    return index(seat) * sizes_.offset_levels * sizes_.points;
  }

  // Which of them belongs to a point.
  int offset_of(int point) const {
    return sizes_.offset_levels == 1 ? point % sizes_.points : point;
  }

  // In pixels, where pixel i's centre is at i: loc = ref + offset / size for points,
  // loc = ref + offset / P * wh * 0.5 for boxes.
  Frame frame(const Seat& seat, int number) const {
    const Level& level = call_.levels[number];
    const auto width = static_cast<float>(level.width), height = static_cast<float>(level.height);
    const long long query = static_cast<long long>(seat.image) * call_.queries + seat.query_index;
    const Word* reference = reinterpret_cast<const Word*>(call_.reference_points) +
                            (query * sizes_.levels + number) * sizes_.reference_size;
    Word box[4] = {};
    if (sizes_.reference_size == 4) {
      load_words<Math>(reference, box);
    } else {
      Word point[2];
      load_words<Math>(reference, point);
      box[0] = point[0];
      box[1] = point[1];
    }
    float scale_x = 1.0f, scale_y = 1.0f;
    if (sizes_.reference_size == 4) {
      const float unit = 0.5f / static_cast<float>(sizes_.points);
      scale_x = Math::number(box[2]) * width * unit;
      scale_y = Math::number(box[3]) * height * unit;
    }
    int inner_width = level.width, inner_height = level.height;
    if (kPadding && call_.valid_ratios != nullptr) {
      const int map = seat.image * sizes_.levels + number;
      Word ratios[2];
      load_words<Math>(reinterpret_cast<const Word*>(call_.valid_ratios) + 2 * map, ratios);
      inner_width = part(ratios[0], level.width);
      inner_height = part(ratios[1], level.height);
    }
    return {level.start,
            level.width,
            inner_width,
            inner_height,
            Math::number(box[0]) * width - 0.5f,
            Math::number(box[1]) * height - 0.5f,
            scale_x,
            scale_y};
  }

  const Call& call_;
  Sizes sizes_;

 private:
  // How many of so many pixels a share is, in any case from 1 to all of them.
  static int part(Word ratio, int size) {
    const int inside = Math::floor(Math::number(ratio) * static_cast<float>(size) + 0.5f);
    return Math::smaller(Math::larger(inside, 1), size);
  }

  // Where one of two pixels would lie outside, the other is used twice with half its weight: no load
  // needs a condition, and no pixel of weight 0 is read (0 times an infinite one would be NaN).
  static Axis along(float position, int size) {
    const int pixel = Math::floor(position);
    const float past = position - static_cast<float>(pixel), left = 1.0f - past;
    const bool before = pixel < 0;
    const int first = Math::larger(pixel, 0), second = Math::smaller(pixel + 1, size - 1);
    const bool edge = first == second;
    const float half = 0.5f * (before ? past : left), half_slope = before ? 0.5f : -0.5f;
    return {first,
            second,
            edge ? half : left,
            edge ? half : past,
            edge ? half_slope : -1.0f,
            edge ? half_slope : 1.0f};
  }

  template <bool kWithEdge>
  Spot spot(const Frame& frame, float x, float y) const {
    x = frame.base_x + frame.scale_x * x;
    y = frame.base_y + frame.scale_y * y;
    Spot spot;
    // Comparisons with NaN are false, so NaN and infinite positions count as outside.
    const bool behind = kWithEdge ? x >= -1.0f && y >= -1.0f : x > -1.0f && y > -1.0f;
    spot.inside = behind && x < static_cast<float>(frame.inner_width) &&
                  y < static_cast<float>(frame.inner_height);
    spot.across = along(spot.inside ? x : 0.0f, frame.inner_width);
    spot.down = along(spot.inside ? y : 0.0f, frame.inner_height);
    const Word step = token_bytes();
    const Word upper = (frame.start + spot.down.first * frame.width) * step;
    const Word lower = (frame.start + spot.down.second * frame.width) * step;
    const Word left = spot.across.first * step, right = spot.across.second * step;
    spot.corners = {{upper + left, upper + right, lower + left, lower + right}};
    return spot;
  }
};

}  // namespace lite_detr
