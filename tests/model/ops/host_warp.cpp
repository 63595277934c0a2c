// The warp kernels of model/ops/csrc/attention.cuh on a processor: 32 lanes in a loop.
//
// Compiled by test_warp_kernels.py. float16 arithmetic rounds as the GPU's does: once after every
// operation, exact in double before.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention.cuh"

namespace {

using lite_detr::Quad;
using lite_detr::Word;

double from_half(uint16_t bits) {
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

uint16_t to_half(double x) {
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

struct HostMath {
  template <class T>
  static T load(const T* from) {
    T x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  static const Quad* at(const Quad* first, Word quads) { return first + quads; }
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
  static float exp2(float x) { return std::exp2(x); }
  static float inverse(float x) { return 1.0f / x; }
  static float inverse_root(float x) { return 1.0f / std::sqrt(x); }

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

template <class Lane>
class HostWarp {
 public:
  template <class Phase>
  void each(Phase phase) {
    for (int i = 0; i < lite_detr::kLanesOfWarp; ++i) phase(i, lanes_[i]);
  }
  template <int kWidth, class Field>
  void sum(Field field) {
    exchange<kWidth>(field, [](float a, float b) { return a + b; });
  }
  template <int kWidth, class Field>
  void max(Field field) {
    exchange<kWidth>(field, HostMath::larger);
  }
  void sync() {}
  Quad* shared() { return shared_; }

 private:
  template <int kWidth, class Field, class Join>
  void exchange(Field field, Join join) {
    for (int step = 1; step < kWidth; step *= 2) {
      float before[lite_detr::kLanesOfWarp];
      for (int i = 0; i < lite_detr::kLanesOfWarp; ++i) before[i] = field(lanes_[i]);
      for (int i = 0; i < lite_detr::kLanesOfWarp; ++i)
        field(lanes_[i]) = join(before[i], before[i ^ step]);
    }
  }

  Quad shared_[2 * lite_detr::kPlaces];
  Lane lanes_[lite_detr::kLanesOfWarp];
};

using lite_detr::AnySizes;
using lite_detr::Call;
using lite_detr::Kind;

template <class T, class U, Kind kKind, int kChannels, class Sizes>
void attend(const Call& call, Sizes sizes, int batch) {
  using Kernel = lite_detr::Attention<HostMath, HostWarp, T, U, kKind, kChannels, Sizes>;
  const Kernel kernel(call, sizes);
  for (int image = 0; image < batch; ++image)
    for (int first = 0; first < call.queries * sizes.heads; first += Kernel::kRows) {
      typename Kernel::Warp warp;
      kernel.run(warp, image, first);
    }
}

template <class T, class U, int kChannels>
void by_kind(const Call& call, AnySizes sizes, int batch) {
  if (call.query == nullptr)
    attend<T, U, Kind::plain, kChannels>(call, sizes, batch);
  else if (call.key == nullptr)
    attend<T, U, Kind::shared_keys, kChannels>(call, sizes, batch);
  else
    attend<T, U, Kind::separate_keys, kChannels>(call, sizes, batch);
}

template <class T, class U>
bool by_channels(const Call& call, AnySizes sizes, int batch, int channels) {
  switch (channels) {
    case 8: return by_kind<T, U, 8>(call, sizes, batch), true;
    case 16: return by_kind<T, U, 16>(call, sizes, batch), true;
    case 32: return by_kind<T, U, 32>(call, sizes, batch), true;
    case 64: return by_kind<T, U, 64>(call, sizes, batch), true;
    case 128: return by_kind<T, U, 128>(call, sizes, batch), true;
    default: return false;
  }
}

}  // namespace

// Types: 0 float32, 1 float16, 2 bfloat16; offsets are float32 (then 32 channels) or of the
// values' type. Gives 0 for what is not compiled here.
extern "C" int lite_detr_host_warp(const Call* call, const AnySizes* sizes, int batch, int channels,
                                   int type, int float_offsets) {
  using lite_detr::Bfloat16Bits;
  using lite_detr::Half;
  if (type == 0) return by_channels<float, float>(*call, *sizes, batch, channels);
  if (float_offsets) {
    if (channels != 32) return false;
    type == 1 ? by_kind<Half, float, 32>(*call, *sizes, batch)
              : by_kind<Bfloat16Bits, float, 32>(*call, *sizes, batch);
    return true;
  }
  return type == 1 ? by_channels<Half, Half>(*call, *sizes, batch, channels)
                   : by_channels<Bfloat16Bits, Bfloat16Bits>(*call, *sizes, batch, channels);
}

extern "C" size_t lite_detr_size_of_call() { return sizeof(Call); }

// The usual sizes as the GPU's compiler knows them: 4 levels, 4 points, 8 heads of 32 channels.
extern "C" void lite_detr_host_warp_fixed(const Call* call, int batch) {
  using Sizes = lite_detr::FixedSizes<4, 4, 8, 2, 4>;
  if (call->query == nullptr)
    attend<lite_detr::Half, lite_detr::Half, Kind::plain, 32>(*call, Sizes{}, batch);
  else if (call->key == nullptr)
    attend<lite_detr::Half, lite_detr::Half, Kind::shared_keys, 32>(*call, Sizes{}, batch);
  else
    attend<lite_detr::Half, lite_detr::Half, Kind::separate_keys, 32>(*call, Sizes{}, batch);
}
