// The input projections in one call: convolution and group norm of each level, written as tokens.
//
// Three steps for the threads: products and their sums, squares of the distances from the means, and
// the tokens. Units of rows do not depend on the number of threads and their sums are added in order,
// so the results do not, either.
#include "projections.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "products.h"
#include "vectors.h"

namespace lite_detr {
namespace {

// Of a unit: with a larger window, the gathered rows are nine times as long.
constexpr int64_t kRowsOfUnit = 48, kRowsOfWindows = 12;

thread_local Buffer<float> row_memory;  // of every thread: windows, means, factors

// Neighbouring pixels of one level's result.
struct Unit {
  int64_t level, image, first, rows;
};

struct Level {
  int64_t height, width;  // of the result
  int64_t rows;           // of a unit
  int64_t units;          // of an image
  int64_t first_unit;
  float* projected;
  int64_t first_token;
};

class Projector {
 public:
  explicit Projector(const Projections& p) : p_(p), group_(p.channels / p.groups) {
    float* projected = p.projected;
    for (int64_t level = 0; level < p.level_count; ++level) {
      Level l{};
      const int64_t step = p.levels[level].window == 1 ? 1 : 2;
      l.height = (p.map_shapes[2 * level] + step - 1) / step;
      l.width = (p.map_shapes[2 * level + 1] + step - 1) / step;
      l.rows = p.levels[level].window == 1 ? kRowsOfUnit : kRowsOfWindows;
      l.units = (l.height * l.width + l.rows - 1) / l.rows;
      l.first_unit = static_cast<int64_t>(units_.size());
      l.projected = projected;
      l.first_token = tokens_;
      projected += p.batch * l.height * l.width * p.channels;
      tokens_ += p.spatial_shapes[2 * level] * p.spatial_shapes[2 * level + 1];
      levels_.push_back(l);
      for (int64_t image = 0; image < p.batch; ++image)
        for (int64_t first = 0; first < l.height * l.width; first += l.rows)
          units_.push_back(
              {level, image, first, std::min(l.rows, l.height * l.width - first)});
    }
    sums_.resize(units_.size() * p.groups);
    squares_.resize(units_.size() * p.groups);
  }

  void run() {
    const auto all = static_cast<int64_t>(units_.size());
    parallel_phases({{all, [this](int64_t unit) { multiply(unit); }},
                     {all, [this](int64_t unit) { square(unit); }},
                     {all, [this](int64_t unit) { write(unit); }}},
                    p_.threads);
  }

 private:
  float* rows_of(const Unit& u) const {
    const Level& l = levels_[u.level];
    return l.projected + (u.image * l.height * l.width + u.first) * p_.channels;
  }
  const float* pixel(const Unit& u, int64_t y, int64_t x) const {
    const int64_t height = p_.map_shapes[2 * u.level], width = p_.map_shapes[2 * u.level + 1];
    return p_.maps[u.level] + ((u.image * height + y) * width + x) * p_.levels[u.level].inputs;
  }

  void multiply(int64_t number);
  void square(int64_t number);
  void write(int64_t number) const;
  void gather(const Unit& u, float* windows) const;
  // Sums of each group's channels.
  void add_groups(const float* channels, double* groups) const {
    for (int64_t g = 0; g < p_.groups; ++g) {
      double sum = 0.0;
      for (int64_t c = g * group_; c < (g + 1) * group_; ++c) sum += channels[c];
      groups[g] = sum;
    }
  }
  // A group's mean over the whole map, from the units' sums.
  double mean(const Unit& u, const std::vector<double>& sums, int64_t group) const {
    const Level& l = levels_[u.level];
    double sum = 0.0;
    for (int64_t i = 0; i < l.units; ++i)
      sum += sums[(l.first_unit + u.image * l.units + i) * p_.groups + group];
    return sum / static_cast<double>(l.height * l.width * group_);
  }

  const Projections& p_;
  int64_t group_;  // channels of a group
  int64_t tokens_ = 0;
  std::vector<Level> levels_;
  std::vector<Unit> units_;
  std::vector<double> sums_, squares_;  // [units, groups]
};

// Each pixel's window, row by row, with zeros outside of the map.
void Projector::gather(const Unit& u, float* windows) const {
  const int64_t inputs = p_.levels[u.level].inputs, width = levels_[u.level].width;
  for (int64_t i = 0; i < u.rows; ++i) {
    const int64_t top = (u.first + i) / width * 2 - 1, left = (u.first + i) % width * 2 - 1;
    for (int64_t y = top; y < top + 3; ++y)
      for (int64_t x = left; x < left + 3; ++x, windows += inputs) {
        const bool inside = y >= 0 && y < p_.map_shapes[2 * u.level] && x >= 0 &&
                            x < p_.map_shapes[2 * u.level + 1];
        if (inside)
          std::memcpy(windows, pixel(u, y, x), inputs * sizeof(float));
        else
          std::memset(windows, 0, inputs * sizeof(float));
      }
  }
}

void Projector::multiply(int64_t number) {
  const Unit& u = units_[number];
  const Projection& l = p_.levels[u.level];
  const int64_t inner = l.inputs * l.window * l.window, d = p_.channels;
  float* memory = row_memory.reserve(d + (l.window == 1 ? 0 : u.rows * inner));
  const float* rows = memory + d;
  if (l.window == 1)
    rows = pixel(u, 0, 0) + u.first * inner;
  else
    gather(u, memory + d);
  float* projected = rows_of(u);
  whole_product<Activation::kNone>(
      u.rows, {rows, inner},
      {p_.weights + l.product.panels, p_.weights + l.product.bias, inner, d}, {projected, d});
  for (int64_t c = 0; c < d; c += kLanes) {
    Floats sum{};
    for (int64_t i = 0; i < u.rows; ++i) sum += load(projected + i * d + c);
    store(memory + c, sum);
  }
  add_groups(memory, sums_.data() + number * p_.groups);
}

void Projector::square(int64_t number) {
  const Unit& u = units_[number];
  const int64_t d = p_.channels;
  float *means = row_memory.reserve(2 * d), *squares = means + d;
  for (int64_t c = 0; c < d; ++c)
    means[c] = c % group_ == 0 ? static_cast<float>(mean(u, sums_, c / group_)) : means[c - 1];
  const float* projected = rows_of(u);
  for (int64_t c = 0; c < d; c += kLanes) {
    Floats sum{};
    for (int64_t i = 0; i < u.rows; ++i) {
      const Floats apart = load(projected + i * d + c) - load(means + c);
      sum += apart * apart;
    }
    store(squares + c, sum);
  }
  add_groups(squares, squares_.data() + number * p_.groups);
}

void Projector::write(int64_t number) const {
  const Unit& u = units_[number];
  const Level& l = levels_[u.level];
  const int64_t d = p_.channels;
  const Norm& norm = p_.levels[u.level].norm;
  const float* shifts = p_.weights + norm.shift;
  float *means = row_memory.reserve(2 * d), *factors = means + d;
  double middle = 0.0, factor = 0.0;
  for (int64_t c = 0; c < d; ++c) {
    if (c % group_ == 0) {
      middle = mean(u, sums_, c / group_);
      factor = 1.0 / std::sqrt(mean(u, squares_, c / group_) + p_.eps);
    }
    means[c] = static_cast<float>(middle);
    factors[c] = static_cast<float>(factor * p_.weights[norm.scale + c]);
  }
  const int64_t height = p_.spatial_shapes[2 * u.level], width = p_.spatial_shapes[2 * u.level + 1];
  const float* from = rows_of(u);
  for (int64_t i = u.first; i < u.first + u.rows; ++i, from += d) {
    const int64_t y = i / l.width, x = i % l.width;
    if (y >= height || x >= width) continue;
    float* to = p_.tokens + (u.image * tokens_ + l.first_token + y * width + x) * d;
    for (int64_t c = 0; c < d; c += kLanes)
      store(to + c, (load(from + c) - load(means + c)) * load(factors + c) + load(shifts + c));
  }
}

}  // namespace
}  // namespace lite_detr

extern "C" {

// Writes the tokens.
void lite_detr_projections(const lite_detr::Projections* p) { lite_detr::Projector(*p).run(); }
}
