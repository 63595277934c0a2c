// A convolutional network of inverted bottlenecks in one call: a 3x3 stem of stride 2, then blocks of
// 1x1 expansion, depthwise convolution and 1x1 projection, all with ReLU6 except the last.
//
// Maps are [height, width, channels]. The expanded map, six times as large as the others, is never
// written whole: of a large map a few rows are kept, of a small one a panel of channels, which stay
// in the cache. Every number is one sum in a fixed order, so results depend neither on the number
// of threads nor on the other images of a batch.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bottlenecks.h"
#include "depthwise.h"
#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace lite_detr {
namespace {

constexpr int kStemVectors = kStemChannels / kLanes;
constexpr int kStemPixels = kLanes / 4;  // side by side, in 8 accumulators
constexpr int64_t kLargeMap = 1500;      // pixels; larger maps are divided by rows
constexpr int64_t kRowsOfUnit = 8 * kRows;  // of a projection
constexpr int64_t kMinRowsOfUnit = 4;       // as rows at the edges of a unit are expanded twice

struct Size {
  int64_t height, width;

  int64_t pixels() const { return height * width; }
  Size strided(int64_t stride) const {  // by a convolution that is padded on both sides
    return {(height + stride - 1) / stride, (width + stride - 1) / stride};
  }
};

// Memory of the thread that calls, for one image; and of every thread, for its unit.
thread_local Buffer<float> stem_map, even_map, odd_map, filtered_map;
thread_local Buffer<float> unit_memory;

template <int kPixels, bool kInside>
void stem_pixels(const Network& n, const float* image, int64_t y, int64_t x, float* out) {
  Floats sums[kPixels][kStemVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kStemVectors; ++j) sums[i][j] = load(n.weights + n.stem_bias + j * kLanes);
  for (int64_t ky = 0; ky < 3; ++ky) {
    const int64_t row = 2 * y - 1 + ky;
    if (row < 0 || row >= n.height) continue;
    for (int64_t kx = 0; kx < 3; ++kx)
      for (int64_t c = 0; c < 3; ++c) {
        const float* weight = n.weights + n.stem + ((ky * 3 + kx) * 3 + c) * kStemChannels;
        const float* channel = image + c * n.channel_step + row * n.row_step;
#pragma GCC unroll 16
        for (int i = 0; i < kPixels; ++i) {
          const int64_t column = 2 * (x + i) - 1 + kx;
          if (!kInside && (column < 0 || column >= n.width)) continue;
          const Floats pixel = broadcast(channel[column * n.column_step]);
#pragma GCC unroll 16
          for (int j = 0; j < kStemVectors; ++j)
            sums[i][j] += pixel * load(weight + j * kLanes);
        }
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kStemVectors; ++j)
      store(out + i * kStemChannels + j * kLanes, activated<Activation::kRelu6>(sums[i][j]));
}

void stem_row(const Network& n, const float* image, int64_t y, int64_t width, float* out) {
  stem_pixels<1, false>(n, image, y, 0, out);
  int64_t x = 1;
  for (; 2 * (x + kStemPixels) <= n.width; x += kStemPixels)
    stem_pixels<kStemPixels, true>(n, image, y, x, out + x * kStemChannels);
  for (; x < width; ++x) stem_pixels<1, false>(n, image, y, x, out + x * kStemChannels);
}

// One block on one image.
struct Layer {
  const float* weights;
  const Block* block;
  Size in, out;
  const float* input;
  float* output;
  float* filtered;  // what the projection of a small map reads

  int64_t padding() const { return block->kernel / 2; }
  Weights expand() const {
    return {weights + block->expand, weights + block->expand_bias, block->inputs, block->width};
  }
  Weights project() const {
    return {weights + block->project, weights + block->project_bias, block->width, block->outputs};
  }
  const float* residual() const { return block->residual ? input : nullptr; }
};

// The output's pixels from `first` on, as far as one panel of channels goes.
void project(const Layer& l, int64_t first, int64_t pixels, int64_t panel, const float* filtered) {
  const int64_t outputs = l.block->outputs, start = first * outputs + panel * kPanel;
  const float* add = l.residual();
  product<Activation::kNone>(pixels, {filtered, l.block->width}, l.project(), panel,
                             {l.output + start, outputs},
                             {add == nullptr ? nullptr : add + start, outputs});
}

// One row of the input, expanded; `to` is a row of pixels, `step` floats apart, of `panel` alone or
// of all channels.
void expand_row(const Layer& l, int64_t row, int64_t panel, Rows<float> to) {
  const int64_t inputs = l.block->inputs, width = l.in.width;
  product<Activation::kRelu6>(width, {l.input + row * width * inputs, inputs}, l.expand(), panel,
                              to, {nullptr, 0});
}

// A large map: rows [from, to) of the output. Expanded rows are kept in a ring.
void run_rows(const Layer& l, int64_t from, int64_t to) {
  const Block& b = *l.block;
  const int64_t padding = l.padding(), channels = b.width;
  const int64_t row_floats = (l.in.width + 2 * padding) * channels;
  float* ring = unit_memory.reserve((b.kernel + 1) * row_floats + l.out.width * channels);
  float* zeros = ring + b.kernel * row_floats;
  float* filtered = zeros + row_floats;
  std::memset(zeros, 0, row_floats * sizeof(float));
  for (int64_t slot = 0; slot < b.kernel; ++slot) {
    float* row = ring + slot * row_floats;
    std::memset(row, 0, padding * channels * sizeof(float));
    std::memset(row + (l.in.width + padding) * channels, 0, padding * channels * sizeof(float));
  }
  int64_t next = std::max<int64_t>(0, from * b.stride - padding);
  for (int64_t y = from; y < to; ++y) {
    const int64_t top = y * b.stride - padding;
    for (; next < std::min(l.in.height, top + b.kernel); ++next) {
      float* row = ring + next % b.kernel * row_floats + padding * channels;
      if (b.expand < 0)
        std::memcpy(row, l.input + next * l.in.width * channels,
                    l.in.width * channels * sizeof(float));
      else
        for (int64_t panel = 0; panel < panels_of(channels); ++panel)
          expand_row(l, next, panel, {row + panel * kPanel, channels});
    }
    DepthwiseRow d{{}, channels, l.weights + b.depthwise, channels, l.weights + b.depthwise_bias,
                   filtered, channels, l.out.width, channels};
    for (int64_t k = 0; k < b.kernel; ++k) {
      const bool inside = top + k >= 0 && top + k < l.in.height;
      d.rows[k] = inside ? ring + (top + k) % b.kernel * row_floats : zeros;
    }
    depthwise(b.kernel, b.stride, d);
    for (int64_t panel = 0; panel < panels_of(b.outputs); ++panel)
      project(l, y * l.out.width, l.out.width, panel, filtered);
  }
}

// A small map: one panel of channels, expanded and filtered.
void filter_panel(const Layer& l, int64_t panel) {
  const Block& b = *l.block;
  const int64_t padding = l.padding(), first = panel * kPanel;
  const int64_t channels = std::min<int64_t>(kPanel, b.width - first);
  const int64_t row_floats = (l.in.width + 2 * padding) * channels;
  float* expanded = unit_memory.reserve((l.in.height + 1) * row_floats);
  float* zeros = expanded + l.in.height * row_floats;
  std::memset(zeros, 0, row_floats * sizeof(float));
  for (int64_t y = 0; y < l.in.height; ++y) {
    float* row = expanded + y * row_floats;
    std::memset(row, 0, padding * channels * sizeof(float));
    std::memset(row + (l.in.width + padding) * channels, 0, padding * channels * sizeof(float));
    row += padding * channels;
    if (b.expand >= 0) {
      expand_row(l, y, panel, {row, channels});
      continue;
    }
    for (int64_t x = 0; x < l.in.width; ++x)
      std::memcpy(row + x * channels, l.input + (y * l.in.width + x) * b.width + first,
                  channels * sizeof(float));
  }
  for (int64_t y = 0; y < l.out.height; ++y) {
    DepthwiseRow d{{}, channels, l.weights + b.depthwise + first, b.width,
                   l.weights + b.depthwise_bias + first,
                   l.filtered + y * l.out.width * b.width + first, b.width, l.out.width, channels};
    for (int64_t k = 0; k < b.kernel; ++k) {
      const int64_t row = y * b.stride - padding + k;
      d.rows[k] = row >= 0 && row < l.in.height ? expanded + row * row_floats : zeros;
    }
    depthwise(b.kernel, b.stride, d);
  }
}

void add_phases(const Layer& l, int64_t threads, std::vector<Phase>& phases) {
  if (l.in.pixels() > kLargeMap) {
    const int64_t rows = l.out.height;
    const int64_t units = std::min(threads, std::max<int64_t>(1, rows / kMinRowsOfUnit));
    phases.push_back({units, [l, rows, units](int64_t unit) {
                        run_rows(l, rows * unit / units, rows * (unit + 1) / units);
                      }});
    return;
  }
  phases.push_back(
      {panels_of(l.block->width), [l](int64_t panel) { filter_panel(l, panel); }});
  const int64_t pixels = l.out.pixels(), parts = (pixels + kRowsOfUnit - 1) / kRowsOfUnit;
  phases.push_back({panels_of(l.block->outputs) * parts, [l, pixels, parts](int64_t unit) {
                      const int64_t first = unit % parts * kRowsOfUnit;
                      project(l, first, std::min(kRowsOfUnit, pixels - first), unit / parts,
                              l.filtered + first * l.block->width);
                    }});
}

// One image, on up to `threads` threads.
void run_image(const Network& n, int64_t image, int64_t threads) {
  Size size = Size{n.height, n.width}.strided(2);
  const Size stem_size = size;
  const float* pixels = n.images + image * n.image_step;
  float* stem = stem_map.reserve(size.pixels() * kStemChannels);
  int64_t largest = 0, filtered = 0;
  for (int64_t i = 0; i < n.block_count; ++i) {
    const Block& b = n.blocks[i];
    const bool is_small = size.pixels() <= kLargeMap;
    size = size.strided(b.stride);
    if (b.map < 0) largest = std::max(largest, size.pixels() * b.outputs);
    if (is_small) filtered = std::max(filtered, size.pixels() * b.width);
  }
  float* maps[2] = {even_map.reserve(largest), odd_map.reserve(largest)};
  float* memory = filtered_map.reserve(filtered);

  std::vector<Phase> phases;
  phases.push_back({stem_size.height, [&n, pixels, stem, stem_size](int64_t y) {
                      stem_row(n, pixels, y, stem_size.width,
                               stem + y * stem_size.width * kStemChannels);
                    }});
  const float* input = stem;
  size = stem_size;
  for (int64_t i = 0; i < n.block_count; ++i) {
    const Block& b = n.blocks[i];
    const Size out = size.strided(b.stride);
    float* output = b.map < 0 ? maps[i % 2] : n.maps[b.map] + image * out.pixels() * b.outputs;
    add_phases({n.weights, &b, size, out, input, output, memory}, threads, phases);
    input = output;
    size = out;
  }
  parallel_phases(phases, threads);
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Floats in a vector, and in a panel of weights.
int64_t lite_detr_lanes() { return lite_detr::kLanes; }
int64_t lite_detr_panel() { return lite_detr::kPanel; }

// Writes the maps.
void lite_detr_bottlenecks(const lite_detr::Network* n) {
  // As many images at a time as there are threads; those that remain by all threads together.
  const int64_t alone = n->threads > 1 ? n->batch / n->threads * n->threads : n->batch;
  lite_detr::parallel_for(alone, n->threads,
                          [&](int64_t image) { lite_detr::run_image(*n, image, 1); });
  for (int64_t image = alone; image < n->batch; ++image)
    lite_detr::run_image(*n, image, n->threads);
}
}
