// The baseline: multi-scale deformable attention as first published, one thread for each channel of
// each query's head (arXiv 2010.04159, equation 3). Locations and weights are computed before.
// Written for comparison with the kernels of model/ops, from the formula.
//
// Compiled by NVRTC with -DELEMENT=float, or -DELEMENT=Half; by a C++ compiler for tests.

#ifndef __CUDACC_RTC__
#include <cmath>
#define __device__
#define __global__
#define __restrict__
static int block_index, block_size = 1, thread_index;  // set by the test
#else
#define block_index (static_cast<int>(blockIdx.x))
#define block_size (static_cast<int>(blockDim.x))
#define thread_index (static_cast<int>(threadIdx.x))

struct Half {  // without cuda_fp16.h, which not every machine has
    unsigned short bits;
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    __device__ Half &operator=(float value) {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return *this;
    }
};
#endif

#ifndef ELEMENT
#define ELEMENT float
#endif

struct OriginalCall {
    const ELEMENT *value;      // [B, S, M, D]
    const float *locations;    // [B, Q, M, L, P, 2], x and y in 0..1 of each level
    const ELEMENT *weights;    // [B, Q, M, L, P], after the softmax
    ELEMENT *output;           // [B, Q, M, D]
    int batch, tokens, heads, channels, queries, levels, points;
    int height[8], width[8], start[8];
};

static __device__ float at(const ELEMENT *plane, const OriginalCall &call, int level, int y, int x) {
    if (y < 0 || x < 0 || y >= call.height[level] || x >= call.width[level]) return 0.0f;
    const long long token = call.start[level] + static_cast<long long>(y) * call.width[level] + x;
    return plane[token * call.heads * call.channels];
}

extern "C" __global__ void original_msda(const OriginalCall call) {
    const long long index = static_cast<long long>(block_index) * block_size + thread_index;
    const long long count =
        static_cast<long long>(call.batch) * call.queries * call.heads * call.channels;
    if (index >= count) return;
    const int channel = static_cast<int>(index % call.channels);
    const long long row = index / call.channels;  // of a query's head
    const int head = static_cast<int>(row % call.heads);
    const long long image = row / call.heads / call.queries;
    const ELEMENT *plane =
        call.value + (image * call.tokens * call.heads + head) * call.channels + channel;
    const float *location = call.locations + row * call.levels * call.points * 2;
    const ELEMENT *weight = call.weights + row * call.levels * call.points;
    float sum = 0.0f;
    for (int level = 0; level < call.levels; ++level) {
        for (int point = 0; point < call.points; ++point) {
            const float x = location[0] * call.width[level] - 0.5f;
            const float y = location[1] * call.height[level] - 0.5f;
            if (x > -1.0f && y > -1.0f && x < call.width[level] && y < call.height[level]) {
                const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
                const float right_share = x - left, low_share = y - top;
                const float upper = at(plane, call, level, top, left) * (1.0f - right_share) +
                                    at(plane, call, level, top, left + 1) * right_share;
                const float lower = at(plane, call, level, top + 1, left) * (1.0f - right_share) +
                                    at(plane, call, level, top + 1, left + 1) * right_share;
                sum += static_cast<float>(*weight) *
                       (upper * (1.0f - low_share) + lower * low_share);
            }
            location += 2;
            ++weight;
        }
    }
    call.output[index] = sum;
}
