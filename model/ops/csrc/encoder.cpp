// The layers of an encoder in one call: deformable self-attention and feed-forward network of the
// tokens that a layer updates.
//
// A layer samples the values of all tokens, so it is one phase: it starts when all values are there
// and ends with those of the next layer. What a unit of rows computes stays in the cache. Every
// number is one sum in a fixed order: results depend neither on threads nor on the rest of a batch.
#include "encoder.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "problem.h"
#include "products.h"
#include "stack.h"
#include "vectors.h"

namespace lite_detr {
namespace {

thread_local Buffer<float> row_memory;  // of every thread, for its unit

// Neighbouring tokens of one image, all low-level or all high-level.
struct Unit {
  int64_t image, first, rows;
  bool low;
};

class EncoderStack {
 public:
  explicit EncoderStack(const Encoder& e)
      : e_(e), head_channels_(e.channels / e.heads),
        scores_(e.heads * (e.key_aware ? head_channels_ : e.levels * e.points)),
        offsets_(e.heads * e.offset_levels * e.points * 2) {
    for (int64_t i = 0; i < e.layer_count; ++i)
      widest_ = std::max({widest_, e.layers[i].high.width, e.layers[i].low.width});
    divide();
  }

  void run() const;

 private:
  struct Scratch {
    float *located, *offsets, *scores, *sampled, *wide;
  };

  void divide();
  Scratch scratch(int64_t rows) const;
  Weights weights(const Product& p, int64_t inner, int64_t columns) const {
    return {e_.weights + p.panels, e_.weights + p.bias, inner, columns};
  }
  // A unit's first row among those of the batch.
  int64_t place(const Unit& u) const { return u.image * e_.tokens + u.first; }
  // Those that a layer samples, written while the others are read.
  float* values(int64_t layer, int64_t row) const {
    return e_.values + (layer % 2 * e_.batch * e_.tokens + row) * e_.channels;
  }
  void normalise(const Norm& n, float* x, int64_t rows) const {
    layer_norm(e_.weights + n.scale, e_.weights + n.shift, e_.norm_eps, e_.channels, x, rows);
  }

  void project(int64_t layer, const Unit& u) const;
  void update(int64_t layer, const Unit& u) const;
  void attend_to_tokens(int64_t layer, const Unit& u, const Scratch& s) const;

  const Encoder& e_;
  int64_t head_channels_, scores_, offsets_, widest_ = 0;
  std::vector<Unit> units_;
};

void EncoderStack::divide() {
  const int64_t rows = rows_of_units(e_.batch * e_.tokens, e_.threads);
  for (int64_t image = 0; image < e_.batch; ++image)
    for (int64_t first = 0, end; first < e_.tokens; first = end) {
      const bool low = first < e_.low_tokens;
      end = std::min(first + rows, low ? e_.low_tokens : e_.tokens);
      units_.push_back({image, first, end - first, low});
    }
}

EncoderStack::Scratch EncoderStack::scratch(int64_t rows) const {
  Scratch s{};
  for (float* memory = nullptr;;) {
    Arrays arrays(memory);
    s.located = arrays.take(rows * e_.channels);
    s.offsets = arrays.take(rows * offsets_);
    s.scores = arrays.take(rows * scores_);
    s.sampled = arrays.take(rows * e_.channels);
    s.wide = arrays.take(rows * widest_);
    if (memory != nullptr) return s;
    memory = row_memory.reserve(arrays.used());
  }
}

// The values of a unit's tokens that the layer samples.
void EncoderStack::project(int64_t layer, const Unit& u) const {
  const int64_t d = e_.channels, at = place(u);
  float* values = this->values(layer, at);
  whole_product<Activation::kNone>(u.rows, {e_.x + at * d, d},
                                   weights(e_.layers[layer].value, d, d), {values, d});
  for (int64_t i = 0; e_.padding != nullptr && i < u.rows; ++i)
    if (e_.padding[at + i]) std::memset(values + i * d, 0, d * sizeof(float));
}

void EncoderStack::attend_to_tokens(int64_t layer, const Unit& u, const Scratch& s) const {
  const EncoderLayer& l = e_.layers[layer];
  const int64_t d = e_.channels, at = place(u);
  add(e_.x + at * d, e_.position + at * d, u.rows * d, s.located);
  whole_product<Activation::kNone>(u.rows, {s.located, d}, weights(l.offsets, d, offsets_),
                                   {s.offsets, offsets_});
  whole_product<Activation::kNone>(u.rows, {s.located, d}, weights(l.scores, d, scores_),
                                   {s.scores, scores_});
  // As if the unit's rows were all queries of the only image.
  Problem p{};
  p.value = {values(layer, u.image * e_.tokens), 0};
  (e_.key_aware ? p.query : p.logits) = {s.scores, 0};
  p.reference_points = {e_.reference_points + at * e_.levels * 2, 0};
  p.offsets = {s.offsets, 0};
  p.spatial_shapes = e_.spatial_shapes;
  p.batch = 1, p.tokens = e_.tokens, p.heads = e_.heads, p.channels = head_channels_;
  p.queries = u.rows, p.levels = e_.levels, p.points = e_.points;
  p.offset_levels = e_.offset_levels, p.reference_size = 2, p.threads = 1;
  attend(p, 0, 0, u.rows, s.sampled);
}

// The tokens of a unit, when the values of all tokens are there.
void EncoderStack::update(int64_t layer, const Unit& u) const {
  const EncoderLayer& l = e_.layers[layer];
  const Scratch s = scratch(u.rows);
  const int64_t d = e_.channels;
  attend_to_tokens(layer, u, s);
  float* x = e_.x + place(u) * d;
  whole_product<Activation::kNone>(u.rows, {s.sampled, d}, weights(l.sampled, d, d), {x, d},
                                   {x, d});
  normalise(l.after_sampling, x, u.rows);
  const FeedForward& f = u.low ? l.low : l.high;
  whole_product<Activation::kRelu>(u.rows, {x, d}, weights(f.widen, d, f.width),
                                   {s.wide, f.width});
  whole_product<Activation::kNone>(u.rows, {s.wide, f.width}, weights(f.narrow, f.width, d),
                                   {x, d}, {x, d});
  normalise(f.after, x, u.rows);
}

void EncoderStack::run() const {
  std::vector<Phase> phases;
  for (int64_t layer = -1; layer < e_.layer_count; ++layer)
    phases.push_back({static_cast<int64_t>(units_.size()), [this, layer](int64_t number) {
                        const Unit& unit = units_[number];
                        if (layer >= 0 && (!unit.low || e_.layers[layer].updates_low))
                          update(layer, unit);
                        if (layer + 1 < e_.layer_count) project(layer + 1, unit);
                      }});
  parallel_phases(phases, e_.threads);
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Updates the tokens in place.
void lite_detr_encoder(const lite_detr::Encoder* e) { lite_detr::EncoderStack(*e).run(); }
}
