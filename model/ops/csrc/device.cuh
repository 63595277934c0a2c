// How a warp of a GPU's threads runs the phases of the kernels, and the arithmetic of a thread.
#pragma once

#include "formats.cuh"

namespace lite_detr {

struct DeviceMath {
  static constexpr int kArchitecture =
#ifdef __CUDA_ARCH__
      __CUDA_ARCH__;
#else
      0;
#endif

  // Loads of inputs, which do not change while the kernel runs.
  static Quad load(const Quad* from) {
    Quad q;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(q.words[0]), "=r"(q.words[1]), "=r"(q.words[2]), "=r"(q.words[3])
        : "l"(from));
    return q;
  }
  static Duo load(const Duo* from) {
    Duo d;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(d.words[0]), "=r"(d.words[1]) : "l"(from));
    return d;
  }
  static Word load(const Word* from) { return __ldg(from); }
  static Word load(const unsigned short* from) { return __ldg(from); }

  // As `one` is not known to the compiler, an address is one multiplication with addition
  // (IMAD.WIDE) and not two additions: 64 instructions of a query.
  static const Quad* at(const Quad* first, Word bytes, Word one) {
    const unsigned long long offset = static_cast<unsigned long long>(bytes) * one;
    return reinterpret_cast<const Quad*>(reinterpret_cast<const char*>(first) + offset);
  }

  static Word bits(float x) { return __float_as_uint(x); }
  static float number(Word x) { return __uint_as_float(x); }
  static float infinity() { return __uint_as_float(0x7f800000u); }
  static int floor(float x) { return __float2int_rd(x); }
  static float larger(float a, float b) { return ::fmaxf(a, b); }
  static int larger(int a, int b) { return ::max(a, b); }
  static int smaller(int a, int b) { return ::min(a, b); }
  static float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static float rsqrt(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static constexpr float inverse_root(float x) {  // of a constant: Newton's steps while compiling
    float y = 1.0f / x;
    for (int i = 0; i < 30; ++i) y = y * (1.5f - 0.5f * x * y * y);
    return y;
  }

  // Adds to four adjacent sums, aligned to 16 bytes. The order of additions is not defined.
  static void add(float* sums, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums), "f"(a),
                 "f"(b), "f"(c), "f"(d)
                 : "memory");
#else
    atomicAdd(sums, a);
    atomicAdd(sums + 1, b);
    atomicAdd(sums + 2, c);
    atomicAdd(sums + 3, d);
#endif
  }
  // Integers: any order gives the same sum. Two's complement: unsigned addition adds signed numbers.
  static void add(long long* sum, float x) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum),
              static_cast<unsigned long long>(__float2ll_rn(x)));
  }

  // Two float16 numbers per word, by PTX instructions, so that no CUDA header is needed.
  static Word pack(float low, float high) {
    Word pair;
    asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
  }
  static void unpack(Word pair, float& low, float& high) {
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high)
        : "r"(pair));
  }
  static Word multiply(Word a, Word b) {
    Word product;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
  }
  static Word multiply_add(Word a, Word b, Word c) {
    Word sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
  }
};

// One thread of a warp.
template <class Lane>
class DeviceWarp {
 public:
  DeviceWarp(int number, Quad* shared) : number_(number), shared_(shared) {}

  template <class Phase>
  void each(Phase phase) {
    phase(number_, lane_);
  }
  template <int kFrom, int kTo, class Field>
  void sum(Field field) {
#pragma unroll
    for (int i = kFrom; i < kTo; i *= 2)
      field(lane_) += __shfl_xor_sync(0xffffffffu, field(lane_), i);
  }
  template <int kFrom, int kTo, class Field>
  void max(Field field) {
#pragma unroll
    for (int i = kFrom; i < kTo; i *= 2)
      field(lane_) = DeviceMath::larger(field(lane_), __shfl_xor_sync(0xffffffffu, field(lane_), i));
  }
  void sync() { __syncwarp(); }
  void store(int slot, const Quad& quad) { shared_[slot] = quad; }
  Quad load(int slot) const { return shared_[slot]; }
  // One word, read again: kept in a register it would take the place of others.
  Word word(int slot, int number) const {
    return *static_cast<const volatile Word*>(&shared_[slot].words[number]);
  }

 private:
  int number_;
  Quad* shared_;
  Lane lane_;
};

}  // namespace lite_detr
