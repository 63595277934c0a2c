// Distributes independent units of work over threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace lite_detr {

// Calls work(unit) for every unit in 0..units-1, each exactly once, on at most `threads` threads.
void parallel_for(int64_t units, int64_t threads, const std::function<void(int64_t)>& work);

// A step of a longer computation, whose units need all units of the steps before it.
struct Phase {
  int64_t units;
  std::function<void(int64_t)> work;  // called with every unit, each exactly once
};

// Runs phases in order on at most `threads` threads, which stay awake from one to the next: waking
// them for each would cost more than a short phase takes.
void parallel_phases(const std::vector<Phase>& phases, int64_t threads);

}  // namespace lite_detr
