// The kernel that adds a residual and normalises the rows.
//
// Compiled by NVRTC for one GPU, one type and one width, given as macros: VALUE_TYPE, WIDTH, WARPS of
// a block, and BLOCKS, the number of blocks that must fit on a multiprocessor.
#include "add_norm.cuh"
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    lite_detr_add_norm(const __grid_constant__ lite_detr::NormCall call) {
  using namespace lite_detr;
  using Kernel = AddNorm<DeviceMath, DeviceWarp, VALUE_TYPE, WIDTH>;
  typename Kernel::Warp warp(threadIdx.x % 32, nullptr);
  Kernel(call).run(warp, blockIdx.y, blockIdx.x * WARPS + threadIdx.x / 32);
}
