// The CUDA kernel, and how a warp of threads runs the phases of attention.cuh.
//
// Compiled by NVRTC for one GPU, one type and one set of sizes, given as macros:
// VALUE_TYPE, OFFSET_TYPE, KIND, CHANNELS, HEADS, LEVELS, POINTS, REFERENCE_SIZE, OFFSET_LEVELS and
// BLOCKS, the number of blocks that must fit on a multiprocessor: it bounds the registers.
#include "attention.cuh"

namespace lite_detr {

constexpr int kWarpsOfBlock = 4;

struct DeviceMath {
  // Loads of inputs, which do not change while the kernel runs.
  static Quad load(const Quad* from) {
    Quad q;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(q.words[0]), "=r"(q.words[1]), "=r"(q.words[2]), "=r"(q.words[3])
        : "l"(from));
    return q;
  }
  static Word load(const Word* from) { return __ldg(from); }
  static Word load(const unsigned short* from) { return __ldg(from); }

  // first + quads, written so that the compiler does not split `first`: two instructions, not four.
  static const Quad* at(const Quad* first, Word quads) {
    const Quad* address;
    asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(address) : "r"(quads), "l"(first));
    return address;
  }

  static Word bits(float x) { return __float_as_uint(x); }
  static float number(Word x) { return __uint_as_float(x); }
  static float infinity() { return __uint_as_float(0x7f800000u); }
  static int floor(float x) { return __float2int_rd(x); }
  static float larger(float a, float b) { return ::fmaxf(a, b); }
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
  static constexpr float inverse_root(float x) {  // of a constant: Newton's steps while compiling
    float y = 1.0f / x;
    for (int i = 0; i < 30; ++i) y = y * (1.5f - 0.5f * x * y * y);
    return y;
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
  template <int kWidth, class Field>
  void sum(Field field) {
#pragma unroll
    for (int i = 1; i < kWidth; i *= 2)
      field(lane_) += __shfl_xor_sync(0xffffffffu, field(lane_), i);
  }
  template <int kWidth, class Field>
  void max(Field field) {
#pragma unroll
    for (int i = 1; i < kWidth; i *= 2)
      field(lane_) = DeviceMath::larger(field(lane_), __shfl_xor_sync(0xffffffffu, field(lane_), i));
  }
  void sync() { __syncwarp(); }
  Quad* shared() { return shared_; }

 private:
  int number_;
  Quad* shared_;
  Lane lane_;
};

}  // namespace lite_detr

extern "C" __global__ void __launch_bounds__(32 * lite_detr::kWarpsOfBlock, BLOCKS)
    lite_detr_deform_attn(const __grid_constant__ lite_detr::Call call) {
  using namespace lite_detr;
  using Sizes = FixedSizes<LEVELS, POINTS, HEADS, REFERENCE_SIZE, OFFSET_LEVELS>;
  using Kernel = Attention<DeviceMath, DeviceWarp, VALUE_TYPE, OFFSET_TYPE, Kind::KIND, CHANNELS,
                           Sizes>;
  __shared__ Quad places[kWarpsOfBlock][2 * kPlaces];
  const int warp_number = threadIdx.x / kLanesOfWarp;
  const int first = (blockIdx.x * kWarpsOfBlock + warp_number) * Kernel::kRows;
  if (first >= call.queries * HEADS) return;  // the whole warp: no other one waits for it
  typename Kernel::Warp warp(threadIdx.x % kLanesOfWarp, places[warp_number]);
  Kernel(call, Sizes{}).run(warp, blockIdx.y, first);
}
