// Number formats in memory, and how a lane blends its eight channels of four corners in each.
//
// A lane holds 8 channels: one 16-byte load per corner of float16 or bfloat16, two of float32.
// float16 is blended two channels per instruction; bfloat16, with 8 bits, is widened first.
#pragma once

#include "call.cuh"

namespace lite_detr {

constexpr int kPart = 8;  // channels of a lane

struct alignas(16) Quad {
  Word words[4];
};

struct alignas(8) Duo {
  Word words[2];
};

struct Half {
  unsigned short bits;
};
struct Bfloat16Bits {
  unsigned short bits;
};

// Adjacent words, by loads as wide as possible; `from` is aligned to their size, 16 bytes at most.
template <class Math, int kCount>
void load_words(const Word* from, Word (&out)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const Quad quad = Math::load(reinterpret_cast<const Quad*>(from + i));
#pragma unroll
      for (int k = 0; k < 4; ++k) out[i + k] = quad.words[k];
    }
  } else if constexpr (kCount == 2) {
    const Duo duo = Math::load(reinterpret_cast<const Duo*>(from));
    out[0] = duo.words[0];
    out[1] = duo.words[1];
  } else {
    static_assert(kCount == 1, "1, 2, 4, 8, ... words");
    out[0] = Math::load(from);
  }
}

// Math: loads, conversions and the packed arithmetic of the machine this is compiled for.
template <class T, class Math>
struct Format;

template <class Math>
struct Format<Half, Math> {
  static constexpr int kVectors = 1;
  struct Sample {
    Word pairs[4];
  };

  // A corner's weight as `blend` takes it.
  static Word weight(float w) { return Math::pack(w, w); }

  static Sample blend(const Quad (&corners)[4][kVectors], const Quad& weights) {
    Sample sample;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Word sum = Math::multiply(weights.words[0], corners[0][0].words[k]);
#pragma unroll
      for (int c = 1; c < 4; ++c)
        sum = Math::multiply_add(weights.words[c], corners[c][0].words[k], sum);
      sample.pairs[k] = sum;
    }
    return sample;
  }

  static void floats(const Sample& sample, float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) Math::unpack(sample.pairs[k], out[2 * k], out[2 * k + 1]);
  }

  static void floats(const Quad (&row)[kVectors], float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) Math::unpack(row[0].words[k], out[2 * k], out[2 * k + 1]);
  }

  static void pack(const float (&in)[kPart], Quad (&row)[kVectors]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) row[0].words[k] = Math::pack(in[2 * k], in[2 * k + 1]);
  }

  static float element(const void* array, long long index) {
    float x, unused;
    Math::unpack(Math::load(static_cast<const unsigned short*>(array) + index), x, unused);
    return x;
  }

  // Pairs of elements from pair `first` on, which is a multiple of their number.
  template <int kCount>
  static void pairs(const void* array, long long first, float (&x)[kCount], float (&y)[kCount]) {
    Word words[kCount];
    load_words<Math>(static_cast<const Word*>(array) + first, words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) Math::unpack(words[i], x[i], y[i]);
  }
};

template <class Math>
struct Format<float, Math> {
  static constexpr int kVectors = 2;
  struct Sample {
    float channels[kPart];
  };

  static Word weight(float w) { return Math::bits(w); }

  static Sample blend(const Quad (&corners)[4][kVectors], const Quad& weights) {
    Sample sample;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float w = Math::number(weights.words[c]);
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        const float x = Math::number(corners[c][k / 4].words[k % 4]);
        sample.channels[k] = c == 0 ? w * x : sample.channels[k] + w * x;
      }
    }
    return sample;
  }

  static void floats(const Sample& sample, float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) out[k] = sample.channels[k];
  }

  static void floats(const Quad (&row)[kVectors], float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) out[k] = Math::number(row[k / 4].words[k % 4]);
  }

  static void pack(const float (&in)[kPart], Quad (&row)[kVectors]) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) row[k / 4].words[k % 4] = Math::bits(in[k]);
  }

  static float element(const void* array, long long index) {
    return Math::number(Math::load(static_cast<const Word*>(array) + index));
  }

  template <int kCount>
  static void pairs(const void* array, long long first, float (&x)[kCount], float (&y)[kCount]) {
    Word words[2 * kCount];
    load_words<Math>(static_cast<const Word*>(array) + 2 * first, words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] = Math::number(words[2 * i]);
      y[i] = Math::number(words[2 * i + 1]);
    }
  }
};

template <class Math>
struct Format<Bfloat16Bits, Math> {
  static constexpr int kVectors = 1;
  struct Sample {
    float channels[kPart];
  };

  static Word weight(float w) { return Math::bits(w); }

  // bfloat16 is the upper half of a float32.
  static void widen(Word pair, float& low, float& high) {
    low = Math::number(pair << 16);
    high = Math::number(pair & 0xffff0000u);
  }

  static Sample blend(const Quad (&corners)[4][kVectors], const Quad& weights) {
    Sample sample;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float w = Math::number(weights.words[c]);
      float x[kPart];
      floats(corners[c], x);
#pragma unroll
      for (int k = 0; k < kPart; ++k)
        sample.channels[k] = c == 0 ? w * x[k] : sample.channels[k] + w * x[k];
    }
    return sample;
  }

  static void floats(const Sample& sample, float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < kPart; ++k) out[k] = sample.channels[k];
  }

  static void floats(const Quad (&row)[kVectors], float (&out)[kPart]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) widen(row[0].words[k], out[2 * k], out[2 * k + 1]);
  }

  static void pack(const float (&in)[kPart], Quad (&row)[kVectors]) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      row[0].words[k] = narrow(in[2 * k]) | (narrow(in[2 * k + 1]) << 16);
  }

  static float element(const void* array, long long index) {
    const Word bits = Math::load(static_cast<const unsigned short*>(array) + index);
    return Math::number(bits << 16);
  }

  template <int kCount>
  static void pairs(const void* array, long long first, float (&x)[kCount], float (&y)[kCount]) {
    Word words[kCount];
    load_words<Math>(static_cast<const Word*>(array) + first, words);
#pragma unroll
    for (int i = 0; i < kCount; ++i) widen(words[i], x[i], y[i]);
  }

 private:
  // Rounds to nearest, ties to even; NaN stays NaN.
  static Word narrow(float x) {
    const Word bits = Math::bits(x);
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? rounded : 0x7fc0u;
  }
};

// Elements from `first` on, which is a multiple of their number.
template <class Numbers, int kCount>
void load_elements(const void* array, long long first, float (&out)[kCount]) {
  if constexpr (kCount == 1) {
    out[0] = Numbers::element(array, first);
  } else {
    float even[kCount / 2], odd[kCount / 2];
    Numbers::pairs(array, first / 2, even, odd);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      out[2 * i] = even[i];
      out[2 * i + 1] = odd[i];
    }
  }
}

}  // namespace lite_detr
