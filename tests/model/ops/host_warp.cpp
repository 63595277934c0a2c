// The warp kernels of model/ops/csrc on a processor: 32 lanes in a loop.
//
// warp_host.py compiles this once per type of values: VALUE_TYPE, a type of formats.cuh.
#include "host_warp.h"

#include "add_norm.cuh"
#include "attention.cuh"
#include "gradient.cuh"

namespace {

using namespace lite_detr;
using host::CarelessWarp;
using host::HostMath;
using host::HostWarp;
using Value = VALUE_TYPE;

// As a GPU launches it: every warp of every image; `warps`: of an image.
template <class Kernel, class Arguments, class Sizes>
void launch(const Arguments& arguments, Sizes sizes, int warps, int batch) {
  const Kernel kernel(arguments, sizes);
  for (int image = 0; image < batch; ++image)
    for (int number = 0; number < warps; ++number) {
      typename Kernel::Warp warp;
      kernel.run(warp, image, number);
    }
}

template <template <class> class WarpOf, class U, int kChannels, int kSplits, class Sizes>
void attend(const Call& call, Sizes sizes, int warps, int batch) {
  if (call.query == nullptr)
    launch<Attention<HostMath, WarpOf, Value, U, Kind::plain, kChannels, kSplits, Sizes>>(
        call, sizes, warps, batch);
  else if (call.key == nullptr)
    launch<Attention<HostMath, WarpOf, Value, U, Kind::shared_keys, kChannels, kSplits, Sizes>>(
        call, sizes, warps, batch);
  else
    launch<Attention<HostMath, WarpOf, Value, U, Kind::separate_keys, kChannels, kSplits, Sizes>>(
        call, sizes, warps, batch);
}

template <template <class> class WarpOf, class U, int kChannels, class Sum>
void differentiate(const BackwardCall& call, AnySizes sizes, int warps, int batch) {
  if (call.call.query == nullptr)
    launch<Gradient<HostMath, WarpOf, Value, U, Kind::plain, kChannels, AnySizes, Sum>>(
        call, sizes, warps, batch);
  else if (call.call.key == nullptr)
    launch<Gradient<HostMath, WarpOf, Value, U, Kind::shared_keys, kChannels, AnySizes, Sum>>(
        call, sizes, warps, batch);
  else
    launch<Gradient<HostMath, WarpOf, Value, U, Kind::separate_keys, kChannels, AnySizes, Sum>>(
        call, sizes, warps, batch);
}

using Attend = void (*)(const Call&, AnySizes, int, int);
using Differentiate = void (*)(const BackwardCall&, AnySizes, int, int);

template <class U>
Attend attend_function(int channels, int splits) {
  switch (channels * 10 + splits) {
    case 81: return attend<HostWarp, U, 8, 1, AnySizes>;
    case 161: return attend<HostWarp, U, 16, 1, AnySizes>;
    case 321: return attend<HostWarp, U, 32, 1, AnySizes>;
    case 324: return attend<HostWarp, U, 32, 4, AnySizes>;
    case 641: return attend<HostWarp, U, 64, 1, AnySizes>;
    case 644: return attend<HostWarp, U, 64, 4, AnySizes>;
    case 1281: return attend<HostWarp, U, 128, 1, AnySizes>;
    default: return nullptr;
  }
}

Differentiate differentiate_function(int channels) {
  switch (channels) {
    case 8: return differentiate<HostWarp, Value, 8, float>;
    case 32: return differentiate<HostWarp, Value, 32, float>;
    case 64: return differentiate<HostWarp, Value, 64, float>;
    default: return nullptr;
  }
}

// The number of races of shared memory while `run` runs.
template <class Run>
int races_of(Run run) {
  host::races = 0;
  run();
  return host::races;
}

template <int kChannels, int kSplits>
using AnyPlaces = Places<HostMath, Value, Value, kChannels, kSplits, AnySizes>;

}  // namespace

// Offsets are of the values' type, or float32 (then 32 channels); deterministic gradients are of 32
// channels. The functions return the number of races, or -1 for what is not compiled here.
extern "C" int lite_detr_host_attend(const Call* call, const AnySizes* sizes, int warps, int batch,
                                     int channels, int splits, int float_offsets) {
  const Attend function = !float_offsets      ? attend_function<Value>(channels, splits)
                          : channels != 32    ? nullptr
                          : splits == 1       ? attend<HostWarp, float, 32, 1, AnySizes>
                                              : attend<HostWarp, float, 32, 4, AnySizes>;
  if (function == nullptr) return -1;
  return races_of([&] { function(*call, *sizes, warps, batch); });
}

// The usual sizes as the GPU's compiler knows them: 4 levels, 4 points, 8 heads of 32 channels.
extern "C" int lite_detr_host_attend_fixed(const Call* call, int warps, int batch) {
  return races_of([&] {
    attend<HostWarp, Value, 32, 1>(*call, FixedSizes<4, 4, 8, 2, 4>{}, warps, batch);
  });
}

extern "C" int lite_detr_host_differentiate(const BackwardCall* call, const AnySizes* sizes,
                                            int warps, int batch, int channels,
                                            int float_offsets) {
  const bool exact = call->sum_scale != nullptr;
  Differentiate function = nullptr;
  if (float_offsets && channels == 32)
    function = differentiate<HostWarp, float, 32, float>;
  else if (!float_offsets)
    function = !exact           ? differentiate_function(channels)
               : channels == 32 ? differentiate<HostWarp, Value, 32, long long>
                                : nullptr;
  if (function == nullptr) return -1;
  return races_of([&] { function(*call, *sizes, warps, batch); });
}

// With the n-th synchronisation of every warp left out; only compiled for float32 values.
#ifdef CARELESS
extern "C" int lite_detr_host_attend_carelessly(const Call* call, const AnySizes* sizes, int warps,
                                                int batch, int missing) {
  host::missing_sync = missing;
  return races_of([&] { attend<CarelessWarp, Value, 32, 1>(*call, *sizes, warps, batch); });
}

extern "C" int lite_detr_host_differentiate_carelessly(const BackwardCall* call,
                                                       const AnySizes* sizes, int warps, int batch,
                                                       int missing) {
  host::missing_sync = missing;
  host::forgiving = true;
  const int races = races_of([&] {
    differentiate<CarelessWarp, Value, 32, float>(*call, *sizes, warps, batch);
  });
  host::forgiving = false;
  return races;
}

#endif

// -1 for a width that is not compiled here.
extern "C" int lite_detr_host_add_norm(const NormCall* call, int warps, int images, int width) {
  const auto run = [&](auto kernel) {
    return races_of([&] {
      for (int image = 0; image < images; ++image)
        for (int number = 0; number < warps; ++number) {
          typename decltype(kernel)::Warp warp;
          kernel.run(warp, image, number);
        }
    });
  };
  switch (width) {
    case 8: return run(AddNorm<HostMath, HostWarp, Value, 8>(*call));
    case 96: return run(AddNorm<HostMath, HostWarp, Value, 96>(*call));
    case 128: return run(AddNorm<HostMath, HostWarp, Value, 128>(*call));
    case 256: return run(AddNorm<HostMath, HostWarp, Value, 256>(*call));
    case 1024: return run(AddNorm<HostMath, HostWarp, Value, 1024>(*call));
    default: return -1;
  }
}

extern "C" size_t lite_detr_size_of_norm_call() { return sizeof(NormCall); }
extern "C" size_t lite_detr_size_of_call() { return sizeof(Call); }
extern "C" size_t lite_detr_size_of_backward_call() { return sizeof(BackwardCall); }

// Slots of shared memory, for the count of bank conflicts: that of a row's point, and how many
// points of its row a lane places.
extern "C" int lite_detr_slot(int channels, int splits, int point, int row, int* own_points) {
  const auto of = [&](auto places) {
    *own_points = decltype(places)::type::kOwn;
    return decltype(places)::type::slot(point, row);
  };
  switch (channels * 10 + splits) {
    case 81: return of(std::common_type<AnyPlaces<8, 1>>{});
    case 161: return of(std::common_type<AnyPlaces<16, 1>>{});
    case 321: return of(std::common_type<AnyPlaces<32, 1>>{});
    case 324: return of(std::common_type<AnyPlaces<32, 4>>{});
    case 641: return of(std::common_type<AnyPlaces<64, 1>>{});
    case 644: return of(std::common_type<AnyPlaces<64, 4>>{});
    case 1281: return of(std::common_type<AnyPlaces<128, 1>>{});
    case 2561: return of(std::common_type<AnyPlaces<256, 1>>{});
    default: return -1;
  }
}

// The query that a row of the order of computation belongs to.
extern "C" int lite_detr_query_at(const Call* call, int levels, int number) {
  return query_at<HostMath>(*call, AnySizes{levels, 1, 1, 2, levels}, number);
}
