// A warp of 32 lanes on a processor: the policies with which the tests compile the GPU's kernels.
//
// float16 arithmetic rounds as the GPU's does: once after every operation, exact in double before.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "places.cuh"

namespace host {

using lite_detr::Quad;
using lite_detr::Word;

inline double from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  double x;
  if (exponent == 31)
    x = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  else if (exponent == 0)
    x = std::ldexp(fraction, -24);
  else
    x = std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -x : x;
}

inline uint16_t to_half(double x) {
  if (std::isnan(x)) return 0x7fff;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  int exponent;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - 11, -24);  // exponent of the last place
  const double rounded = std::nearbyint(std::ldexp(x, -unit));  // ties to even
  x = std::ldexp(rounded, unit);
  if (!(x < 65520.0)) return sign | 0x7c00;
  if (x < std::ldexp(1.0, -14)) return sign | static_cast<uint16_t>(std::ldexp(x, 24));
  std::frexp(x, &exponent);
  const auto fraction = static_cast<uint16_t>(std::ldexp(x, 11 - exponent));  // 1024 .. 2047
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + (fraction - 1024));
}

// What shared memory holds before the first store: a NaN in every type.
constexpr Quad kPoison = {{0x7fc07fc0u, 0x7fc07fc0u, 0x7fc07fc0u, 0x7fc07fc0u}};

struct HostMath {
#ifndef ARCHITECTURE
#define ARCHITECTURE 1000  // of a GPU whose kernels look at points again
#endif
  static constexpr int kArchitecture = ARCHITECTURE;

  template <class T>
  static T load(const T* from) {
    T x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  // A poisoned number of shared memory addresses NaN and not any memory.
  static const Quad* at(const Quad* first, Word bytes, Word one) {
    static const std::array<Quad, 256> nowhere = [] {
      std::array<Quad, 256> quads;
      for (Quad& quad : quads) quad = kPoison;
      return quads;
    }();
    if (bytes == kPoison.words[0]) return nowhere.data();
    return reinterpret_cast<const Quad*>(reinterpret_cast<const char*>(first) +
                                         static_cast<uint64_t>(bytes) * one);
  }
  static Word bits(float x) {
    Word word;
    std::memcpy(&word, &x, sizeof(word));
    return word;
  }
  static float number(Word word) {
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  }
  static float infinity() { return std::numeric_limits<float>::infinity(); }
  static int floor(float x) { return static_cast<int>(std::floor(x)); }
  static float larger(float a, float b) { return std::fmax(a, b); }
  static int larger(int a, int b) { return std::max(a, b); }
  static int smaller(int a, int b) { return std::min(a, b); }
  static float exp2(float x) { return std::exp2(x); }
  static float inverse(float x) { return 1.0f / x; }
  static float rsqrt(float x) { return 1.0f / std::sqrt(x); }
  static float inverse_root(float x) { return 1.0f / std::sqrt(x); }

  static void add(float* sums, float a, float b, float c, float d) {
    sums[0] += a;
    sums[1] += b;
    sums[2] += c;
    sums[3] += d;
  }
  static void add(long long* sum, float x) { *sum += std::llrint(x); }

  static Word pair(double low, double high) {
    return static_cast<Word>(to_half(low)) | static_cast<Word>(to_half(high)) << 16;
  }
  static double low(Word word) { return from_half(word & 0xffff); }
  static double high(Word word) { return from_half(word >> 16); }
  static Word pack(float a, float b) { return pair(a, b); }
  static void unpack(Word word, float& a, float& b) {
    a = static_cast<float>(low(word));
    b = static_cast<float>(high(word));
  }
  static Word multiply(Word a, Word b) { return pair(low(a) * low(b), high(a) * high(b)); }
  static Word multiply_add(Word a, Word b, Word c) {
    return pair(low(a) * low(b) + low(c), high(a) * high(b) + high(c));
  }
};

// Accesses to shared memory that a missing `sync` leaves without an order; see HostWarp.
inline int races = 0;
// Whether loads get what another lane stored, although that is a race: a kernel that writes to
// addresses from shared memory would crash with poisoned ones.
inline bool forgiving = false;

// Runs every phase for lane 0, then lane 1, ... Shared memory begins poisoned. What a lane stored is
// seen by other lanes only after the next `sync`; until then they load what was there before, which is
// counted as a race. So is a store to what another lane loaded since the last `sync`, and a second
// store to what another lane stored.
template <class Lane>
class HostWarp {
 public:
  HostWarp() {
    for (Cell& cell : cells_) cell.seen = kPoison;
  }

  template <class Phase>
  void each(Phase phase) {
    for (lane_ = 0; lane_ < lite_detr::kLanesOfWarp; ++lane_) phase(lane_, lanes_[lane_]);
  }
  template <int kFrom, int kTo, class Field>
  void sum(Field field) {
    exchange<kFrom, kTo>(field, [](float a, float b) { return a + b; });
  }
  template <int kFrom, int kTo, class Field>
  void max(Field field) {
    exchange<kFrom, kTo>(field, [](float a, float b) { return HostMath::larger(a, b); });
  }

  void sync() {
    for (Cell& cell : cells_) {
      if (cell.writer >= 0) cell.seen = cell.stored;
      cell.writer = -1;
      cell.readers = 0;
    }
  }
  void store(int slot, const Quad& quad) {
    Cell& cell = cells_.at(slot);
    races += (cell.writer >= 0 && cell.writer != lane_) || (cell.readers & ~(1u << lane_)) != 0;
    cell.stored = quad;
    cell.writer = lane_;
  }
  Quad load(int slot) {
    Cell& cell = cells_.at(slot);
    cell.readers |= 1u << lane_;
    if (cell.writer == lane_) return cell.stored;
    races += cell.writer >= 0;
    return forgiving && cell.writer >= 0 ? cell.stored : cell.seen;
  }
  Word word(int slot, int number) { return load(slot).words[number]; }

 private:
  struct Cell {
    Quad seen, stored;
    int writer = -1;  // the lane that stored since the last `sync`
    uint32_t readers = 0;
  };

  template <int kFrom, int kTo, class Field, class Join>
  void exchange(Field field, Join join) {
    for (int step = kFrom; step < kTo; step *= 2) {
      float before[lite_detr::kLanesOfWarp];
      for (int i = 0; i < lite_detr::kLanesOfWarp; ++i) before[i] = field(lanes_[i]);
      for (int i = 0; i < lite_detr::kLanesOfWarp; ++i)
        field(lanes_[i]) = join(before[i], before[i ^ step]);
    }
  }

  std::array<Cell, 4 * 4 * lite_detr::kLanesOfWarp> cells_;
  Lane lanes_[lite_detr::kLanesOfWarp];
  int lane_ = 0;
};

// The same, but the n-th of its `sync` is missing, counted from 0; set before a kernel runs.
inline int missing_sync = 0;

template <class Lane>
class CarelessWarp : public HostWarp<Lane> {
 public:
  void sync() {
    if (calls_++ != missing_sync) HostWarp<Lane>::sync();
  }

 private:
  int calls_ = 0;
};

}  // namespace host
