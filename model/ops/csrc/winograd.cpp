// The first and last step of a 3x3 convolution by Winograd's F(4x4, 3x3) (arXiv 1509.09308): maps to
// tiles and back. Between them, torch does one matrix product for each of a tile's 36 points.
//
// 36 multiplications give 16 outputs; the plain sum takes 144. Vectors run over channels.
#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "vectors.h"

namespace lite_detr {

// The arguments of a call; `model/ops/winograd.py` mirrors it field by field.
struct Winograd {
  const float* map;              // [B, H, W, C], input of `spread`
  const float* const* products;  // 36 of [B * rows * columns, C], input of `gather`
  const float* bias;             // [C], for `gather`
  int64_t batch, height, width;
  int64_t channels;  // a multiple of 16
  int64_t relu;      // whether `gather` applies it
  int64_t threads;

  int64_t rows() const { return (height + 3) / 4; }
  int64_t columns() const { return (width + 3) / 4; }
  int64_t tiles() const { return batch * rows() * columns(); }
};

namespace {

constexpr int kIn = 6, kOut = 4;  // sides of a tile before and after
// The products stand for polynomials at 0, kA, -kA, kB, -kB and infinity. With 1 and 2, the usual
// choice, rounding errors are about three times as large.
constexpr float kA = 0.70710678f, kAA = 0.5f, kAAA = kA * kAA;
constexpr float kB = 1.41421356f, kBB = 2.0f, kBBB = kB * kBB;
constexpr float kSum = kAA + kBB;  // and kAA * kBB is 1

// B^T d for one line d of a tile's input.
inline void spread_line(const Floats* d, int64_t step, Floats* out, int64_t out_step) {
  const Floats d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
               d5 = d[5 * step];
  const Floats even_a = d4 - kBB * d2, odd_a = kA * (d3 - kBB * d1);
  const Floats even_b = d4 - kAA * d2, odd_b = kB * (d3 - kAA * d1);
  out[0] = d0 - kSum * d2 + d4;
  out[out_step] = even_a + odd_a;
  out[2 * out_step] = even_a - odd_a;
  out[3 * out_step] = even_b + odd_b;
  out[4 * out_step] = even_b - odd_b;
  out[5 * out_step] = d1 - kSum * d3 + d5;
}

// A^T m for one line m of a tile's products.
inline void gather_line(const Floats* m, int64_t step, Floats* out, int64_t out_step) {
  const Floats m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const Floats sum_a = m1 + m2, odd_a = m1 - m2, sum_b = m3 + m4, odd_b = m3 - m4;
  out[0] = m[0] + (sum_a + sum_b);
  out[out_step] = kA * odd_a + kB * odd_b;
  out[2 * out_step] = kAA * sum_a + kBB * sum_b;
  out[3 * out_step] = kAAA * odd_a + kBBB * odd_b + m[5 * step];
}

// Tiles of one row of one image: [36, tiles, C].
void spread_row(const Winograd& w, int64_t unit, float* tiles) {
  const int64_t image = unit / w.rows(), top = unit % w.rows() * kOut - 1;
  const float* map = w.map + image * w.height * w.width * w.channels;
  const int64_t plane = w.tiles() * w.channels;
  for (int64_t column = 0; column < w.columns(); ++column) {
    const int64_t left = column * kOut - 1;
    float* out = tiles + (unit * w.columns() + column) * w.channels;
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      Floats input[kIn][kIn], half[kIn][kIn], done[kIn];
      for (int64_t y = 0; y < kIn; ++y)
        for (int64_t x = 0; x < kIn; ++x) {
          const bool inside = top + y >= 0 && top + y < w.height && left + x >= 0 &&
                              left + x < w.width;
          input[y][x] = inside ? load(map + ((top + y) * w.width + left + x) * w.channels + c)
                               : Floats{};
        }
      for (int x = 0; x < kIn; ++x) spread_line(&input[0][x], kIn, &half[0][x], kIn);
      for (int y = 0; y < kIn; ++y) {
        spread_line(half[y], 1, done, 1);
        for (int x = 0; x < kIn; ++x) store(out + (y * kIn + x) * plane + c, done[x]);
      }
    }
  }
}

// The rows of the map from one row of tiles.
void gather_row(const Winograd& w, int64_t unit, float* map) {
  const int64_t image = unit / w.rows(), top = unit % w.rows() * kOut;
  map += image * w.height * w.width * w.channels;
  const int64_t height = std::min<int64_t>(kOut, w.height - top);
  for (int64_t column = 0; column < w.columns(); ++column) {
    const int64_t left = column * kOut, width = std::min<int64_t>(kOut, w.width - left);
    const int64_t first = (unit * w.columns() + column) * w.channels;
    for (int64_t c = 0; c < w.channels; c += kLanes) {
      Floats product[kIn][kIn], half[kOut][kIn], done[kOut];
      for (int y = 0; y < kIn; ++y)
        for (int x = 0; x < kIn; ++x)
          product[y][x] = load(w.products[y * kIn + x] + first + c);
      for (int x = 0; x < kIn; ++x) gather_line(&product[0][x], kIn, &half[0][x], kIn);
      const Floats bias = load(w.bias + c);
      for (int64_t y = 0; y < height; ++y) {
        gather_line(half[y], 1, done, 1);
        for (int64_t x = 0; x < width; ++x) {
          const Floats sum = done[x] + bias;
          const Floats result = w.relu ? (sum < Floats{} ? Floats{} : sum) : sum;
          store(map + ((top + y) * w.width + left + x) * w.channels + c, result);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Writes [36, B * rows * columns, C].
void lite_detr_winograd_spread(const lite_detr::Winograd* w, float* tiles) {
  lite_detr::parallel_for(w->batch * w->rows(), w->threads,
                          [&](int64_t unit) { lite_detr::spread_row(*w, unit, tiles); });
}

// Writes [B, H, W, C].
void lite_detr_winograd_gather(const lite_detr::Winograd* w, float* map) {
  lite_detr::parallel_for(w->batch * w->rows(), w->threads,
                          [&](int64_t unit) { lite_detr::gather_row(*w, unit, map); });
}
}
