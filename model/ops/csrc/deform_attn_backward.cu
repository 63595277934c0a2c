// The kernel of the backward pass; see deform_attn.cu. In addition to its macros: SUM_TYPE, float or
// `long long`.
#include "device.cuh"
#include "gradient.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    lite_detr_deform_attn(const __grid_constant__ lite_detr::BackwardCall call) {
  using namespace lite_detr;
  using Sizes = FixedSizes<LEVELS, POINTS, HEADS, REFERENCE_SIZE, OFFSET_LEVELS>;
  using Kernel = Gradient<DeviceMath, DeviceWarp, VALUE_TYPE, OFFSET_TYPE, Kind::KIND, CHANNELS,
                          Sizes, SUM_TYPE>;
  __shared__ Quad shared[WARPS][Kernel::kSharedQuads];
  const int number = threadIdx.x / kLanesOfWarp;
  typename Kernel::Warp warp(threadIdx.x % kLanesOfWarp, shared[number]);
  Kernel(call, Sizes{}).run(warp, blockIdx.y, blockIdx.x * WARPS + number);
}
