// Distributes independent units of work over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace lite_detr {

// Calls work(unit) for every unit in 0..units-1, each exactly once, on at most `threads` threads.
void parallel_for(int64_t units, int64_t threads, const std::function<void(int64_t)>& work);

}  // namespace lite_detr
