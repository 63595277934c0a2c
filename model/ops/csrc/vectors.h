// Vectors of the width of the target: GCC's and Clang's vector types, whose arithmetic,
// comparisons (-1 where true) and `mask ? a : b` work per lane.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "bfloat16.h"

namespace lite_detr {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// For unaligned loads and stores.
typedef Floats FloatsInMemory __attribute__((aligned(4), may_alias));
typedef Ints IntsInMemory __attribute__((aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline Floats load(const float* from) { return *reinterpret_cast<const FloatsInMemory*>(from); }
inline Ints load(const int32_t* from) { return *reinterpret_cast<const IntsInMemory*>(from); }
inline Floats load(const Bfloat16* from) {
  Halves narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  const Words bits = __builtin_convertvector(narrow, Words) << 16;
  Floats wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
inline void store(float* to, Floats v) { *reinterpret_cast<FloatsInMemory*>(to) = v; }
// Rounds as `narrowed` does.
inline void store(Bfloat16* to, Floats v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof(bits));
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  const Halves narrow = __builtin_convertvector(v != v ? nan : rounded, Halves);
  std::memcpy(static_cast<void*>(to), &narrow, sizeof(narrow));
}
inline void store(int32_t* to, Ints v) { *reinterpret_cast<IntsInMemory*>(to) = v; }

inline Floats all(float x) { return Floats{} + x; }
inline Ints to_ints(Floats x) { return __builtin_convertvector(x, Ints); }  // towards zero
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// All lanes x; adding to a zero vector instead would cost an instruction, because of -0.
inline Floats broadcast(float x) { return x - Floats{}; }

// Each lane of v, but at least `low` and at most `high`; NaN stays NaN. The compilers do not find
// the instructions for it.
inline Floats clamped(Floats v, Floats low, Floats high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(high, _mm512_max_ps(low, v));
#elif defined(__AVX__)
  return _mm256_min_ps(high, _mm256_max_ps(low, v));
#elif defined(__SSE2__)
  return _mm_min_ps(high, _mm_max_ps(low, v));
#else
  v = v < low ? low : v;
  return v > high ? high : v;
#endif
}

// n rounded up to whole vectors, as arrays over sampling points are.
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Lanes of a, then of b, chosen by number; `Choice::of(i)` is the source of lane i.
template <typename Choice, int... kLane>
inline Floats pick(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Choice::of(kLane)...);
#else
  return __builtin_shuffle(a, b, Ints{Choice::of(kLane)...});
#endif
}
template <typename Choice>
inline Floats pick(Floats a, Floats b) {
  return pick<Choice>(a, b, std::make_integer_sequence<int, kLanes>());
}

struct EvenLanes {
  static constexpr int of(int i) { return 2 * i; }
};
struct OddLanes {
  static constexpr int of(int i) { return 2 * i + 1; }
};
template <int kBy>
struct Rotated {
  static constexpr int of(int i) { return (i + kBy) % kLanes; }
};
// Within every group of four lanes: a0 b0 a2 b2, and a1 b1 a3 b3 where kFirst is 1.
template <int kFirst>
struct Woven {
  static constexpr int of(int i) { return (i & 1) * kLanes + (i & ~3) + (i & 2) + kFirst; }
};
// Within every group of four lanes: a0 a1 b0 b1, and a2 a3 b2 b3 where kFirst is 2.
template <int kFirst>
struct Paired {
  static constexpr int of(int i) { return ((i >> 1) & 1) * kLanes + (i & ~3) + (i & 1) + kFirst; }
};

// {sum of a, sum of b, sum of c, sum of d}: adding halves of two vectors at a time takes less than
// half the instructions of four separate sums.
inline void sums_of(Floats a, Floats b, Floats c, Floats d, float* out) {
  const Floats ab = pick<Woven<0>>(a, b) + pick<Woven<1>>(a, b);  // a01 b01 a23 b23, ...
  const Floats cd = pick<Woven<0>>(c, d) + pick<Woven<1>>(c, d);
  Floats sums = pick<Paired<0>>(ab, cd) + pick<Paired<2>>(ab, cd);  // a b c d, ...
  if (kLanes > 8) sums += pick<Rotated<8 % kLanes>>(sums, sums);
  if (kLanes > 4) sums += pick<Rotated<4 % kLanes>>(sums, sums);
  std::memcpy(out, &sums, 4 * sizeof(float));
}

inline float sum_of(Floats a) {
  float sums[4];
  sums_of(a, a, a, a, sums);
  return sums[0];
}

inline float max_of(Floats a) {
  const auto larger = [](Floats x, Floats y) { return x > y ? x : y; };
  if (kLanes > 8) a = larger(a, pick<Rotated<8 % kLanes>>(a, a));
  if (kLanes > 4) a = larger(a, pick<Rotated<4 % kLanes>>(a, a));
  a = larger(a, pick<Rotated<2>>(a, a));
  return larger(a, pick<Rotated<1>>(a, a))[0];
}

// An array aligned to cache lines, so that no vector of a row crosses two lines.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) {
    std::memset(static_cast<void*>(reserve(size)), 0, size * sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Grows, without keeping the contents; never shrinks, as fresh pages are slow.
  T* reserve(int64_t size) {
    if (size > size_ || data_ == nullptr) {
      std::free(data_);
      const int64_t lines = size * static_cast<int64_t>(sizeof(T)) / kLine + 1;
      data_ = static_cast<T*>(std::aligned_alloc(kLine, lines * kLine));
      size_ = data_ == nullptr ? 0 : size;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  static constexpr int64_t kLine = 64;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace lite_detr
