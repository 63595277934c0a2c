// A decoder in one call: the memory's values for each layer; positions from boxes, self-attention,
// deformable cross-attention, feed-forward network and refinement of the boxes; class scores.
//
// Of a layer only the self-attention needs other queries than a unit's own, so a layer is one phase:
// it starts when all keys and values are there and ends with those of the next layer. Every number
// is one sum in a fixed order: results depend neither on threads nor on the rest of a batch.
#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "problem.h"
#include "products.h"
#include "sines.h"
#include "softmax.h"
#include "stack.h"
#include "vectors.h"

namespace lite_detr {
namespace {

// Memory of the thread that calls, for the queries of the batch; and of every thread, for its unit.
thread_local Buffer<float> batch_memory, row_memory;

// A row of panels holds `columns` columns, the last panel kLanes of them if that is enough.
int64_t panel_width(int64_t panel, int64_t columns) {
  return columns - panel * kPanel > kLanes ? kPanel : kLanes;
}

// Keys or values of one head of one image as the right side of a product.
struct Panels {
  float* first;
  int64_t inner, columns;

  static int64_t floats(int64_t inner, int64_t columns) {
    return inner * panels_of(columns) * kPanel;
  }
  float* at(int64_t row, int64_t column) const {
    const int64_t panel = column / kPanel;
    return first + panel * kPanel * inner + row * panel_width(panel, columns) + column % kPanel;
  }
  // numbers[i] becomes the number in row i of a column.
  void set_column(int64_t column, const float* numbers) const {
    float* to = at(0, column);
    const int64_t step = panel_width(column / kPanel, columns);
    for (int64_t i = 0; i < inner; ++i) to[i * step] = numbers[i];
  }
  void set_row(int64_t row, const float* numbers) const {
    for (int64_t column = 0; column < columns; column += kPanel)
      std::memcpy(at(row, column), numbers + column,
                  std::min<int64_t>(kPanel, columns - column) * sizeof(float));
  }
  Weights weights(const float* zeros) const { return {first, zeros, inner, columns}; }
};

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

class Stack {
 public:
  explicit Stack(const Decoder& d)
      : d_(d), head_channels_(d.channels / d.heads),
        scores_(d.heads * (d.key_aware ? head_channels_ : d.levels * d.points)),
        offsets_(d.heads * d.levels * d.points * 2) {
    lay_out(nullptr);  // counts
    lay_out(batch_memory.reserve(floats_));
  }

  void run();

 private:
  // What a unit computes between its rows' inputs and results.
  struct Scratch {
    float *encoded, *hidden, *sum, *query_key, *value, *logits, *attended, *wide;
    int64_t logits_step;
  };

  void lay_out(float* memory);
  int64_t zero_count() const { return std::max(d_.queries, head_channels_) + kPanel; }
  Scratch scratch(int64_t rows) const;

  Weights weights(const Product& p, int64_t inner, int64_t columns) const {
    return {d_.weights + p.panels, d_.weights + p.bias, inner, columns};
  }
  int64_t row_of(int64_t image, int64_t query) const { return image * d_.queries + query; }
  Panels keys(int64_t layer, int64_t image, int64_t head) const {
    const int64_t size = Panels::floats(head_channels_, d_.queries);
    return {keys_[layer % 2] + (image * d_.heads + head) * size, head_channels_, d_.queries};
  }
  Panels values(int64_t layer, int64_t image, int64_t head) const {
    const int64_t size = Panels::floats(d_.queries, head_channels_);
    return {values_[layer % 2] + (image * d_.heads + head) * size, d_.queries, head_channels_};
  }

  float* memory_values(int64_t layer, int64_t row) const {
    return d_.memory_values + (layer * d_.batch * d_.tokens + row) * d_.channels;
  }

  void project_memory(int64_t first, int64_t rows) const;
  void begin(int64_t image, int64_t first, int64_t rows) const;
  void prepare(int64_t layer, int64_t image, int64_t first, int64_t rows) const;
  void finish(int64_t layer, int64_t image, int64_t first, int64_t rows) const;
  void attend_to_queries(int64_t layer, int64_t image, int64_t first, int64_t rows,
                         const Scratch& s) const;
  void attend_to_memory(int64_t layer, int64_t image, int64_t first, int64_t rows,
                        const Scratch& s) const;
  void refine(const DecoderLayer& l, int64_t at, int64_t rows, const Scratch& s) const;
  void predict(int64_t at, int64_t rows) const;
  void normalise(const Norm& norm, float* x, int64_t rows) const;

  const Decoder& d_;
  int64_t head_channels_, scores_, offsets_;
  int64_t floats_ = 0;
  // Of the whole batch, [B, Q, ...].
  float *x_, *position_, *queries_, *cross_queries_, *sampling_, *sampled_, *boxes_, *references_;
  float *keys_[2], *values_[2];  // written for the next layer while this one's are read
  float* zeros_;
};

void Stack::lay_out(float* memory) {
  Arrays arrays(memory);
  const int64_t rows = d_.batch * d_.queries;
  x_ = arrays.take(rows * d_.channels);
  position_ = arrays.take(rows * d_.channels);
  queries_ = arrays.take(rows * d_.channels);
  cross_queries_ = arrays.take(rows * scores_);
  sampling_ = arrays.take(rows * offsets_);
  sampled_ = arrays.take(rows * d_.channels);
  boxes_ = arrays.take(rows * 4);
  references_ = arrays.take(rows * d_.levels * 4);
  const int64_t heads = d_.batch * d_.heads;
  for (int i = 0; i < 2; ++i) {
    keys_[i] = arrays.take(heads * Panels::floats(head_channels_, d_.queries));
    values_[i] = arrays.take(heads * Panels::floats(d_.queries, head_channels_));
  }
  zeros_ = arrays.take(zero_count());
  floats_ = arrays.used();
}

Stack::Scratch Stack::scratch(int64_t rows) const {
  Scratch s{};
  s.logits_step = padded(d_.queries);
  for (float* memory = nullptr;;) {
    Arrays arrays(memory);
    s.encoded = arrays.take(rows * 2 * d_.channels);
    s.hidden = arrays.take(rows * d_.channels);
    s.sum = arrays.take(rows * d_.channels);
    s.query_key = arrays.take(rows * 2 * d_.channels);
    s.value = arrays.take(rows * d_.channels);
    s.logits = arrays.take(rows * s.logits_step);
    s.attended = arrays.take(rows * d_.channels);
    s.wide = arrays.take(rows * d_.feed_forward);
    if (memory != nullptr) return s;
    memory = row_memory.reserve(arrays.used());
  }
}

void Stack::normalise(const Norm& norm, float* x, int64_t rows) const {
  layer_norm(d_.weights + norm.scale, d_.weights + norm.shift, d_.norm_eps, d_.channels, x, rows);
}

// What each layer samples of the memory, rows of the whole batch.
void Stack::project_memory(int64_t first, int64_t rows) const {
  const int64_t d = d_.channels;
  for (int64_t layer = 0; layer < d_.layer_count; ++layer) {
    float* values = memory_values(layer, first);
    whole_product<Activation::kNone>(rows, {d_.memory + first * d, d},
                                     weights(d_.layers[layer].memory, d, d), {values, d});
    for (int64_t i = 0; d_.padding != nullptr && i < rows; ++i)
      if (d_.padding[first + i]) std::memset(values + i * d, 0, d * sizeof(float));
  }
}

void Stack::begin(int64_t image, int64_t first, int64_t rows) const {
  const int64_t at = row_of(image, first);
  const float* content = d_.content + image * d_.content_step + first * d_.channels;
  std::memcpy(x_ + at * d_.channels, content, rows * d_.channels * sizeof(float));
  for (int64_t i = at * 4; i < (at + rows) * 4; ++i) boxes_[i] = sigmoid(d_.box_logits[i]);
}

// What a layer needs of its rows before any of them can attend: their positions and references,
// and their queries, keys and values.
void Stack::prepare(int64_t layer, int64_t image, int64_t first, int64_t rows) const {
  const DecoderLayer& l = d_.layers[layer];
  const Scratch s = scratch(rows);
  const int64_t at = row_of(image, first), half = d_.channels / 2;
  constexpr int kOrder[4] = {1, 0, 2, 3};  // y, x, w, h
  const float *frequencies = d_.weights + d_.frequencies, *ratios = d_.query_ratios + image * 4;
  for (int64_t i = 0; i < rows; ++i) {
    const float* box = boxes_ + (at + i) * 4;
    for (int64_t c = 0; c < 4; ++c) {
      const int from = kOrder[c];
      const Floats angle = broadcast(box[from] * ratios[from] * 6.283185307f);
      for (int64_t f = 0; f < half; f += kLanes)
        store(s.encoded + (i * 4 + c) * half + f, alternating_sines(angle / load(frequencies + f)));
    }
    const float* shares = d_.box_ratios + image * d_.levels * 4;
    float* references = references_ + (at + i) * d_.levels * 4;
    for (int64_t j = 0; j < d_.levels * 4; ++j) references[j] = box[j % 4] * shares[j];
  }
  const int64_t d = d_.channels;
  float *x = x_ + at * d, *position = position_ + at * d;
  whole_product<Activation::kRelu>(rows, {s.encoded, 2 * d}, weights(d_.position[0], 2 * d, d),
                                   {s.hidden, d});
  whole_product<Activation::kNone>(rows, {s.hidden, d}, weights(d_.position[1], d, d),
                                   {position, d});
  add(x, position, rows * d, s.sum);
  whole_product<Activation::kNone>(rows, {s.sum, d}, weights(l.query_key, d, 2 * d),
                                   {s.query_key, 2 * d});
  whole_product<Activation::kNone>(rows, {x, d}, weights(l.value, d, d), {s.value, d});
  for (int64_t i = 0; i < rows; ++i) {
    const float* query_key = s.query_key + i * 2 * d;
    std::memcpy(queries_ + (at + i) * d, query_key, d * sizeof(float));
    for (int64_t head = 0; head < d_.heads; ++head) {
      const int64_t channel = head * head_channels_;
      keys(layer, image, head).set_column(first + i, query_key + d + channel);
      values(layer, image, head).set_row(first + i, s.value + i * d + channel);
    }
  }
}

void Stack::attend_to_queries(int64_t layer, int64_t image, int64_t first, int64_t rows,
                              const Scratch& s) const {
  const DecoderLayer& l = d_.layers[layer];
  const int64_t at = row_of(image, first), d = d_.channels;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_channels_));
  for (int64_t head = 0; head < d_.heads; ++head) {
    const int64_t channel = head * head_channels_;
    whole_product<Activation::kNone>(rows, {queries_ + at * d + channel, d},
                                     keys(layer, image, head).weights(zeros_),
                                     {s.logits, s.logits_step});
    for (int64_t i = 0; i < rows; ++i) softmax(s.logits + i * s.logits_step, scale, d_.queries);
    whole_product<Activation::kNone>(rows, {s.logits, s.logits_step},
                                     values(layer, image, head).weights(zeros_),
                                     {s.attended + channel, d});
  }
  float* x = x_ + at * d;
  whole_product<Activation::kNone>(rows, {s.attended, d}, weights(l.attended, d, d), {x, d}, {x, d});
  normalise(l.after_attention, x, rows);
}

void Stack::attend_to_memory(int64_t layer, int64_t image, int64_t first, int64_t rows,
                             const Scratch& s) const {
  const DecoderLayer& l = d_.layers[layer];
  const int64_t at = row_of(image, first), d = d_.channels;
  float* x = x_ + at * d;
  add(x, position_ + at * d, rows * d, s.sum);
  whole_product<Activation::kNone>(rows, {s.sum, d}, weights(l.offsets, d, offsets_),
                                   {sampling_ + at * offsets_, offsets_});
  whole_product<Activation::kNone>(rows, {s.sum, d}, weights(l.scores, d, scores_),
                                   {cross_queries_ + at * scores_, scores_});
  Problem p{};
  p.value = {memory_values(layer, 0), 0};
  (d_.key_aware ? p.query : p.logits) = {cross_queries_, 0};
  p.reference_points = {references_, 0};
  p.offsets = {sampling_, 0};
  p.spatial_shapes = d_.spatial_shapes;
  p.batch = d_.batch, p.tokens = d_.tokens, p.heads = d_.heads, p.channels = head_channels_;
  p.queries = d_.queries, p.levels = d_.levels, p.points = d_.points, p.offset_levels = d_.levels;
  p.reference_size = 4, p.threads = 1;
  attend(p, image, first, first + rows, sampled_);
  whole_product<Activation::kNone>(rows, {sampled_ + at * d, d}, weights(l.sampled, d, d), {x, d},
                                   {x, d});
  normalise(l.after_sampling, x, rows);
}

// boxes = sigmoid(deltas + logit(boxes)).
void Stack::refine(const DecoderLayer& l, int64_t at, int64_t rows, const Scratch& s) const {
  const int64_t d = d_.channels;
  float deltas[4 * kMaxRows];
  whole_product<Activation::kRelu>(rows, {x_ + at * d, d}, weights(l.box[0], d, d), {s.hidden, d});
  whole_product<Activation::kRelu>(rows, {s.hidden, d}, weights(l.box[1], d, d), {s.sum, d});
  whole_product<Activation::kNone>(rows, {s.sum, d}, weights(l.box[2], d, 4), {deltas, 4});
  float* boxes = boxes_ + at * 4;
  for (int64_t i = 0; i < rows * 4; ++i) {
    const float share = std::min(1.0f, std::max(0.0f, boxes[i]));
    const float logit = std::log(std::max(share, d_.eps) / std::max(1.0f - share, d_.eps));
    boxes[i] = sigmoid(deltas[i] + logit);
  }
}

// A layer's rows, when the keys and values of all queries are there.
void Stack::finish(int64_t layer, int64_t image, int64_t first, int64_t rows) const {
  const DecoderLayer& l = d_.layers[layer];
  const Scratch s = scratch(rows);
  const int64_t at = row_of(image, first), d = d_.channels;
  attend_to_queries(layer, image, first, rows, s);
  attend_to_memory(layer, image, first, rows, s);
  float* x = x_ + at * d;
  whole_product<Activation::kRelu>(rows, {x, d}, weights(l.widen, d, d_.feed_forward),
                                   {s.wide, d_.feed_forward});
  whole_product<Activation::kNone>(rows, {s.wide, d_.feed_forward},
                                   weights(l.narrow, d_.feed_forward, d), {x, d}, {x, d});
  normalise(l.after_feed_forward, x, rows);
  const bool last = layer + 1 == d_.layer_count;
  if (last && d_.has_last) normalise(d_.last, x, rows);
  refine(l, at, rows, s);
  if (last)
    predict(at, rows);
  else
    prepare(layer + 1, image, first, rows);
}

void Stack::predict(int64_t at, int64_t rows) const {
  std::memcpy(d_.predicted + at * 4, boxes_ + at * 4, rows * 4 * sizeof(float));
  whole_product<Activation::kNone>(rows, {x_ + at * d_.channels, d_.channels},
                                   weights(d_.classes, d_.channels, d_.class_count),
                                   {d_.logits + at * d_.class_count, d_.class_count});
}

void Stack::run() {
  // Columns of keys that pad a panel are multiplied, though their products are not used.
  const int64_t keys = d_.batch * d_.heads * Panels::floats(head_channels_, d_.queries);
  for (float* each : keys_) std::memset(each, 0, keys * sizeof(float));
  std::memset(zeros_, 0, zero_count() * sizeof(float));
  const int64_t rows = rows_of_units(d_.batch * d_.queries, d_.threads);
  const int64_t pieces = (d_.queries + rows - 1) / rows, units = d_.batch * pieces;
  const auto of_queries = [this, rows, pieces](int64_t unit, auto work) {
    const int64_t first = unit % pieces * rows;
    work(unit / pieces, first, std::min(rows, d_.queries - first));
  };
  std::vector<Phase> phases;
  const int64_t tokens = d_.batch * d_.tokens, token_rows = rows_of_units(tokens, d_.threads);
  const int64_t token_units = (tokens + token_rows - 1) / token_rows;
  phases.push_back({units + token_units, [=](int64_t unit) {
                      if (unit >= units) {
                        const int64_t first = (unit - units) * token_rows;
                        return project_memory(first, std::min(token_rows, tokens - first));
                      }
                      of_queries(unit, [this](int64_t image, int64_t first, int64_t count) {
                        begin(image, first, count);
                        prepare(0, image, first, count);
                      });
                    }});
  for (int64_t layer = 0; layer < d_.layer_count; ++layer)
    phases.push_back({units, [=](int64_t unit) {
                        of_queries(unit, [=](int64_t image, int64_t first, int64_t count) {
                          finish(layer, image, first, count);
                        });
                      }});
  parallel_phases(phases, d_.threads);
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Writes the logits and the boxes of the last layer.
void lite_detr_decoder(const lite_detr::Decoder* d) { lite_detr::Stack(*d).run(); }
}
