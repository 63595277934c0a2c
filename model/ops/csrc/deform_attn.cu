// The kernel of the forward pass.
//
// Compiled by NVRTC for one GPU, one type and one set of sizes, given as macros:
// VALUE_TYPE, OFFSET_TYPE, KIND, CHANNELS, SPLITS, HEADS, LEVELS, POINTS, REFERENCE_SIZE,
// OFFSET_LEVELS, WARPS of a block, and BLOCKS, the number of blocks that must fit on a
// multiprocessor: it bounds the registers.
#include "attention.cuh"
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    lite_detr_deform_attn(const __grid_constant__ lite_detr::Call call) {
  using namespace lite_detr;
  using Sizes = FixedSizes<LEVELS, POINTS, HEADS, REFERENCE_SIZE, OFFSET_LEVELS>;
  using Kernel = Attention<DeviceMath, DeviceWarp, VALUE_TYPE, OFFSET_TYPE, Kind::KIND, CHANNELS,
                           SPLITS, Sizes>;
  __shared__ Quad shared[WARPS][Kernel::kSharedQuads];
  const int number = threadIdx.x / kLanesOfWarp;
  typename Kernel::Warp warp(threadIdx.x % kLanesOfWarp, shared[number]);
  Kernel(call, Sizes{}).run(warp, blockIdx.y, blockIdx.x * WARPS + number);
}
