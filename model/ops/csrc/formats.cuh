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

struct Half {
  unsigned short bits;
};
struct Bfloat16Bits {
  unsigned short bits;
};

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

  // Element first + near; `near` is small and often constant.
  static float element(const void* array, long long first, int near) {
    float x, unused;
    Math::unpack(Math::load(static_cast<const unsigned short*>(array) + first + near), x, unused);
    return x;
  }

  // The same for pairs of elements.
  static void pair(const void* array, long long first, int near, float& x, float& y) {
    Math::unpack(Math::load(static_cast<const Word*>(array) + first + near), x, y);
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

  static float element(const void* array, long long first, int near) {
    return Math::number(Math::load(static_cast<const Word*>(array) + first + near));
  }

  static void pair(const void* array, long long first, int near, float& x, float& y) {
    x = element(array, 2 * first, 2 * near);
    y = element(array, 2 * first, 2 * near + 1);
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

  static float element(const void* array, long long first, int near) {
    const auto* at = static_cast<const unsigned short*>(array) + first + near;
    return Math::number(Math::load(at) << 16);
  }

  static void pair(const void* array, long long first, int near, float& x, float& y) {
    widen(Math::load(static_cast<const Word*>(array) + first + near), x, y);
  }

 private:
  // Rounds to nearest, ties to even; NaN stays NaN.
  static Word narrow(float x) {
    const Word bits = Math::bits(x);
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? rounded : 0x7fc0u;
  }
};

}  // namespace lite_detr
