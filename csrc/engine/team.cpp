#include "team.h"

#include <sched.h>

#include <chrono>

namespace bptt {
namespace {

constexpr int kSpinsBeforeYield = 2000;
constexpr auto kFormationLimit = std::chrono::microseconds(200);
constexpr int kClosed = 1 << 20;

void relax(int& spins) {
  if (++spins > kSpinsBeforeYield) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct Formation {
  int wanted;
  void (*work)(int, int, void*);
  void* context;
  std::atomic<int> joined{0};
  std::atomic<int> covered{0};  // indices of the parallel loop that have been handed out
  std::atomic<int> members{0};  // set once, when the team is closed

  // The first worker waits for the others, but not for long: a busy pool may never send them.
  void close() {
    const auto limit = std::chrono::steady_clock::now() + kFormationLimit;
    int spins = 0;
    while (covered.load(std::memory_order_acquire) < wanted) {
      relax(spins);
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > limit) break;
    }
    members.store(joined.exchange(kClosed, std::memory_order_acq_rel), std::memory_order_release);
  }

  void join(int indices) {
    const int worker = joined.fetch_add(1, std::memory_order_acq_rel);
    covered.fetch_add(indices, std::memory_order_acq_rel);
    if (worker >= kClosed) return;
    if (worker == 0) close();
    int spins = 0;
    while (members.load(std::memory_order_acquire) == 0) relax(spins);
    work(worker, members.load(std::memory_order_acquire), context);
  }
};

}  // namespace

void Barrier::wait(int members) {
  if (members == 1) return;
  const int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  int spins = 0;
  while (phase_.load(std::memory_order_acquire) == phase) relax(spins);
}

void run_team(const ThreadPool& pool, int wanted, void (*work)(int, int, void*), void* context) {
  if (wanted <= 1) {
    work(0, 1, context);
    return;
  }
  Formation formation{wanted, work, context};
  pool.parallel_for(
      wanted,
      [](int64_t begin, int64_t end, void* self) {
        static_cast<Formation*>(self)->join(static_cast<int>(end - begin));
      },
      &formation);
}

}  // namespace bptt
