// Runs work on the threads of the OpenMP runtime that torch has already loaded, else on new ones.
//
// Torch's wheels contain a private copy of libgomp whose workers spin for a while after each
// parallel region. A second pool (or the system's libgomp, a second copy) would compete with them
// for the cores, so the loaded runtime is looked up by name instead of linking one.
#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace lite_detr {
namespace {

using Region = void (*)(void*);
using OpenMPParallel = void (*)(Region, void*, unsigned threads, unsigned flags);

struct Share {
  const std::function<void(int64_t)>* work;
  int64_t units;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t unit = next++; unit < units; unit = next++) (*work)(unit);
  }
};

void run_share(void* share) { static_cast<Share*>(share)->run(); }

// The units of a phase that were given out and that are done, each on a cache line of its own.
struct Progress {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

struct SharedPhases {
  const std::vector<Phase>* phases;
  std::vector<Progress> progress;

  // Any number of threads may call this, also one that comes when the others have done everything.
  void run() {
    for (size_t i = 0; i < phases->size(); ++i) {
      const Phase& phase = (*phases)[i];
      Progress& at = progress[i];
      for (int64_t unit = at.next++; unit < phase.units; unit = at.next++) {
        phase.work(unit);
        at.done.fetch_add(1, std::memory_order_release);
      }
      for (int spins = 0; at.done.load(std::memory_order_acquire) < phase.units; ++spins)
        if (spins > kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some microseconds, as phases end almost together
};

void run_phases(void* shared) { static_cast<SharedPhases*>(shared)->run(); }

OpenMPParallel loaded_openmp() {
  static const auto entry =
      reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return entry;
}

// Calls region(argument) on the calling thread and on threads - 1 others.
void run_on_threads(Region region, void* argument, int64_t threads) {
  if (threads <= 1) {
    region(argument);
  } else if (const OpenMPParallel openmp = loaded_openmp()) {
    openmp(region, argument, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(region, argument);
    region(argument);
    for (std::thread& helper : helpers) helper.join();
  }
}

}  // namespace

void parallel_for(int64_t units, int64_t threads, const std::function<void(int64_t)>& work) {
  Share share;
  share.work = &work;
  share.units = units;
  run_on_threads(run_share, &share, std::min(threads, units));
}

void parallel_phases(const std::vector<Phase>& phases, int64_t threads) {
  SharedPhases shared{&phases, std::vector<Progress>(phases.size())};
  run_on_threads(run_phases, &shared, threads);
}

}  // namespace lite_detr
