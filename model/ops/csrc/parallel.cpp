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

OpenMPParallel loaded_openmp() {
  static const auto entry =
      reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return entry;
}

}  // namespace

void parallel_for(int64_t units, int64_t threads, const std::function<void(int64_t)>& work) {
  Share share;
  share.work = &work;
  share.units = units;
  threads = std::min(threads, units);
  if (threads <= 1) {
    share.run();
  } else if (const OpenMPParallel openmp = loaded_openmp()) {
    openmp(run_share, &share, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(run_share, &share);
    share.run();
    for (std::thread& helper : helpers) helper.join();
  }
}

}  // namespace lite_detr
