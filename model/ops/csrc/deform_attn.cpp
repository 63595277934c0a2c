// Deformable attention, plain and key-aware: forward on float32 or bfloat16 arrays (the arithmetic
// is float32 in both), backward on float32 ones.
//
// Work is divided by image and head. Backward assigns a whole (image, head) to one thread, the only
// one to add to that head's gradients: no atomics, and the same sums in the same order on every run.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "head.h"
#include "parallel.h"
#include "problem.h"
#include "rows.h"
#include "softmax.h"
#include "taps.h"
#include "vectors.h"

namespace lite_detr {
namespace {

// Copying a slice reads and writes each row once; it is worthwhile when a row is read this often.
constexpr int64_t kReadsWorthACopy = 4;
// Minimum length of a piece of a head's queries.
constexpr int64_t kQueriesAPiece = 64;

thread_local Buffer<float> value_copy, key_copy, value_sums, key_sums;

// T: the type of keys, values and output.
template <int D, typename T>
class Attention {
 public:
  explicit Attention(const Problem& p)
      : p_(p), levels_(p), rows_(p.channels), n_(p.samples()), zeros_(p.channels),
        score_scale_(p.key_aware() ? 1.0f / std::sqrt(static_cast<float>(p.channels)) : 1.0f) {}

  // The heads `head` to `last_head` of the queries `first` to `last`.
  void forward(int64_t image, int64_t head, int64_t last_head, int64_t first, int64_t last,
               T* output) const;
  void backward(int64_t image, int64_t head, const Gradients& grads) const;

 private:
  // One thread's buffers, reused for each query; arrays over points are padded with zeros.
  struct State {
    State(const Problem& p, const Levels& levels)
        : taps(p, levels), value_rows(4 * taps.step), key_rows(4 * taps.step),
          value_sums(4 * taps.step), key_sums(4 * taps.step), weights(taps.step),
          slopes(taps.step), grad_x(taps.step), grad_y(taps.step),
          samples(taps.step * p.channels), offsets(p.offset_size()), query(p.channels),
          reference(p.levels * p.reference_size), output(p.channels),
          key_samples(p.separate_keys() ? taps.step * p.channels : 0) {}
    Taps taps;
    Buffer<uintptr_t> value_rows, key_rows, value_sums, key_sums;  // [4, step] addresses
    Buffer<float> weights, slopes, grad_x, grad_y;                 // [step]
    Buffer<float> samples;                                         // [step, D]
    // Inputs and output of one query in float32, where the arrays are not.
    Buffer<float> offsets, query, reference, output;
    Buffer<float> key_samples;  // [step, D]
  };

  struct Slices {
    Slice<T> values, keys;
    Slice<float> value_sums, key_sums;
  };

  int64_t index(int64_t image, int64_t query, int64_t head) const {
    return (image * p_.queries + query) * p_.heads + head;
  }
  const float* offsets_of(int64_t at, State& s) const {
    return p_.offsets.floats(at * p_.offset_size(), p_.offset_size(), s.offsets.data());
  }
  const float* reference_of(int64_t image, int64_t query, State& s) const {
    const int64_t size = p_.levels * p_.reference_size;
    const int64_t first = (image * p_.queries + query) * size;
    return p_.reference_points.floats(first, size, s.reference.data());
  }
  const float* query_of(int64_t at, State& s) const {
    return p_.query.floats(at * rows_.channels(), rows_.channels(), s.query.data());
  }
  template <typename U>
  Corners<U> corners(const Buffer<uintptr_t>& addresses, const State& s, int64_t i) const {
    return {addresses.data() + i, s.taps.weights.data() + i, s.taps.step};
  }
  const float* key_samples(const State& s) const {
    return p_.separate_keys() ? s.key_samples.data() : s.samples.data();
  }

  void weigh(const Slices& slices, int64_t at, State& s) const;
  void differentiate(int64_t at, const Gradients& grads, State& s) const;
  void scatter(int64_t at, const Gradients& grads, State& s) const;
  void add_slope(const float* dots, int64_t i, State& s) const;
  void locations_backward(int64_t image, int64_t q, int64_t head, const Gradients& grads,
                          State& s) const;

  const Problem& p_;
  Levels levels_;
  Rows<D> rows_;
  int64_t n_;
  Buffer<float> zeros_;
  float score_scale_;
};

// Samples of one query, whose taps are already located, and their weights.
template <int D, typename T>
void Attention<D, T>::weigh(const Slices& slices, int64_t at, State& s) const {
  slices.values.addresses(s.taps, s.value_rows.data());
  for (int64_t i = 0; i < n_; ++i)
    rows_.blend(corners<T>(s.value_rows, s, i), s.samples.data() + i * rows_.channels());
  if (!p_.key_aware()) {
    std::copy_n(p_.logits.floats(at * n_, n_, s.weights.data()), n_, s.weights.data());
    softmax(s.weights.data(), score_scale_, n_);
    return;
  }
  if (p_.separate_keys()) {
    slices.keys.addresses(s.taps, s.key_rows.data());
    for (int64_t i = 0; i < n_; ++i)
      rows_.blend(corners<T>(s.key_rows, s, i), s.key_samples.data() + i * rows_.channels());
  }
  rows_.dots(query_of(at, s), key_samples(s), n_, s.weights.data());
  softmax(s.weights.data(), score_scale_, n_);
}

template <int D, typename T>
void Attention<D, T>::forward(int64_t image, int64_t head, int64_t last_head, int64_t first,
                              int64_t last, T* output) const {
  const bool copy = (last - first) * n_ * 4 >= kReadsWorthACopy * p_.tokens;
  State s(p_, levels_);
  for (; head < last_head; ++head) {
    const auto slice = [&](const Array& source, Buffer<float>& buffer) {
      return copy ? slice_copied<T>(p_, source.data, image, head, zeros_.data(), buffer)
                  : slice_in_place<T>(p_, source.data, image, head, zeros_.data());
    };
    Slices slices{};
    slices.values = slice(p_.value, value_copy);
    if (p_.separate_keys()) slices.keys = slice(p_.key, key_copy);
    for (int64_t q = first; q < last; ++q) {
      const int64_t at = index(image, q, head);
      s.taps.locate(reference_of(image, q, s), offsets_of(at, s));
      weigh(slices, at, s);
      T* row = output + at * rows_.channels();
      if constexpr (std::is_same_v<T, float>) {
        rows_.combine(s.weights.data(), s.samples.data(), n_, row);
      } else {
        rows_.combine(s.weights.data(), s.samples.data(), n_, s.output.data());
        put_narrowed(s.output.data(), rows_.channels(), row);
      }
    }
  }
}

// From the gradient of the output to those of the scores (slopes), logits and query.
template <int D, typename T>
void Attention<D, T>::differentiate(int64_t at, const Gradients& grads, State& s) const {
  rows_.dots(grads.output + at * rows_.channels(), s.samples.data(), n_, s.slopes.data());
  float *slopes = s.slopes.data(), *weights = s.weights.data();
  std::fill(slopes + n_, slopes + s.taps.step, 0.0f);  // not NaN, even if this query is
  Floats products{};
  for (int64_t i = 0; i < s.taps.step; i += kLanes)
    products += load(weights + i) * load(slopes + i);
  const float mean = sum_of(products);  // of the weights' gradients, under the weights
  for (int64_t i = 0; i < s.taps.step; i += kLanes)
    store(slopes + i, score_scale_ * load(weights + i) * (load(slopes + i) - mean));
  if (p_.key_aware())
    rows_.combine(slopes, key_samples(s), n_, grads.query + at * rows_.channels());
  else
    std::copy_n(slopes, n_, grads.logits + at * n_);
}

// The slope of the samples along x and y, from the gradient's dots with the four corners.
template <int D, typename T>
void Attention<D, T>::add_slope(const float* dots, int64_t i, State& s) const {
  const float fx = s.taps.fx.data()[i], fy = s.taps.fy.data()[i];
  s.grad_x.data()[i] += (1.0f - fy) * (dots[1] - dots[0]) + fy * (dots[3] - dots[2]);
  s.grad_y.data()[i] += (1.0f - fx) * (dots[2] - dots[0]) + fx * (dots[3] - dots[1]);
}

// Adds each sample's gradient to the four tokens it came from and to its position.
template <int D, typename T>
void Attention<D, T>::scatter(int64_t at, const Gradients& grads, State& s) const {
  const float* grad_output = grads.output + at * rows_.channels();
  const float* query = p_.key_aware() ? query_of(at, s) : zeros_.data();
  const bool apart = p_.separate_keys();
  float dots[4];
  std::fill_n(s.grad_x.data(), n_, 0.0f);
  std::fill_n(s.grad_y.data(), n_, 0.0f);
  for (int64_t i = 0; i < n_; ++i) {
    const float key_share = p_.key_aware() && !apart ? s.slopes.data()[i] : 0.0f;
    rows_.scatter(s.weights.data()[i], grad_output, key_share, query,
                  corners<float>(s.value_rows, s, i), corners<float>(s.value_sums, s, i), dots);
    add_slope(dots, i, s);
  }
  for (int64_t i = 0; apart && i < n_; ++i) {
    rows_.scatter(s.slopes.data()[i], query, 0.0f, zeros_.data(),
                  corners<float>(s.key_rows, s, i), corners<float>(s.key_sums, s, i), dots);
    add_slope(dots, i, s);
  }
}

template <int D, typename T>
void Attention<D, T>::locations_backward(int64_t image, int64_t q, int64_t head,
                                      const Gradients& grads, State& s) const {
  const int64_t at = index(image, q, head);
  float* grad_reference = nullptr;
  if (grads.reference_points != nullptr) {
    const int64_t share = (image * p_.heads + head) * p_.queries + q;
    grad_reference = grads.reference_points + share * p_.levels * p_.reference_size;
  }
  s.taps.backpropagate(s.grad_x.data(), s.grad_y.data(), offsets_of(at, s),
                       grads.offsets + at * p_.offset_size(), grad_reference);
}

// Recomputes the forward pass: cheaper than keeping all samples.
template <int D, typename T>
void Attention<D, T>::backward(int64_t image, int64_t head, const Gradients& grads) const {
  Slices slices{};
  slices.values = slice_copied<T>(p_, p_.value.data, image, head, zeros_.data(), value_copy);
  slices.value_sums = cleared_sums(p_, value_sums);
  if (p_.separate_keys()) {
    slices.keys = slice_copied<T>(p_, p_.key.data, image, head, zeros_.data(), key_copy);
    slices.key_sums = cleared_sums(p_, key_sums);
  }
  State s(p_, levels_);
  for (int64_t q = 0; q < p_.queries; ++q) {
    const int64_t at = index(image, q, head);
    s.taps.locate(reference_of(image, q, s), offsets_of(at, s));
    weigh(slices, at, s);
    slices.value_sums.addresses(s.taps, s.value_sums.data());
    if (p_.separate_keys()) slices.key_sums.addresses(s.taps, s.key_sums.data());
    differentiate(at, grads, s);
    scatter(at, grads, s);
    locations_backward(image, q, head, grads, s);
  }
  store_sums(p_, slices.value_sums, image, head, grads.value);
  if (p_.separate_keys()) store_sums(p_, slices.key_sums, image, head, grads.key);
}

template <int D, typename T>
void run_forward(const Problem& p, T* output) {
  const Attention<D, T> attention(p);
  const int64_t heads = p.batch * p.heads;
  if (heads == 0) return;
  // Enough pieces for the threads to end together, few enough for cheap copies of slices.
  const int64_t wanted = p.threads > 1 ? (2 * p.threads + heads - 1) / heads : 1;
  const int64_t pieces = std::max<int64_t>(1, std::min(wanted, p.queries / kQueriesAPiece));
  const int64_t length = (p.queries + pieces - 1) / pieces;
  parallel_for(heads * pieces, p.threads, [&](int64_t unit) {
    const int64_t head = unit / pieces, first = (unit % pieces) * length;
    attention.forward(head / p.heads, head % p.heads, head % p.heads + 1, first,
                      std::min(first + length, p.queries), output);
  });
}

template <typename T>
void run_forward(const Problem& p, T* output) {
  switch (p.channels) {
    case 16: return run_forward<16, T>(p, output);
    case 32: return run_forward<32, T>(p, output);
    case 64: return run_forward<64, T>(p, output);
    default: return run_forward<0, T>(p, output);
  }
}

template <int D>
void run_backward(const Problem& p, const Gradients& grads) {
  const Attention<D, float> attention(p);
  parallel_for(p.batch * p.heads, p.threads, [&](int64_t unit) {
    attention.backward(unit / p.heads, unit % p.heads, grads);
  });
}

template <int D>
void attend_rows(const Problem& p, int64_t image, int64_t first, int64_t last, float* output) {
  const Attention<D, float> attention(p);
  attention.forward(image, 0, p.heads, first, last, output);
}

}  // namespace

void attend(const Problem& p, int64_t image, int64_t first, int64_t last, float* output) {
  switch (p.channels) {
    case 16: return attend_rows<16>(p, image, first, last, output);
    case 32: return attend_rows<32>(p, image, first, last, output);
    case 64: return attend_rows<64>(p, image, first, last, output);
    default: return attend_rows<0>(p, image, first, last, output);
  }
}

}  // namespace lite_detr

extern "C" {

void lite_detr_deform_attn_forward(const lite_detr::Problem* problem, void* output) {
  if (problem->value.bfloat16)
    lite_detr::run_forward(*problem, static_cast<lite_detr::Bfloat16*>(output));
  else
    lite_detr::run_forward(*problem, static_cast<float*>(output));
}

void lite_detr_deform_attn_backward(const lite_detr::Problem* problem,
                                    const lite_detr::Gradients* grads) {
  switch (problem->channels) {
    case 16: return lite_detr::run_backward<16>(*problem, *grads);
    case 32: return lite_detr::run_backward<32>(*problem, *grads);
    case 64: return lite_detr::run_backward<64>(*problem, *grads);
    default: return lite_detr::run_backward<0>(*problem, *grads);
  }
}
}
