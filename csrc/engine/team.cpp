#include "team.h"

#include <chrono>

namespace bptt {
namespace {

// About 30 us: longer than any wait for a member that runs, shorter than a turn of the scheduler.
constexpr int kSpinsBeforeSleep = 2000;
constexpr int kClosed = 1 << 20;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Until the value is another one: spins, then sleeps. A member that is late has lost its core to
// another program; who only yielded meanwhile, thousands of times, would lose the next turn too.
void wait_for_change(const std::atomic<int>& value, int old) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

void change(std::atomic<int>& value, int to) {
  value.store(to, std::memory_order_release);
  value.notify_all();
}

struct Formation {
  int wanted;
  std::chrono::microseconds patience;
  void (*work)(int, int, void*);
  void* context;
  std::atomic<int> joined{0};
  std::atomic<int> covered{0};  // indices of the parallel loop that have been handed out
  std::atomic<int> members{0};  // set once, when the team is closed

  // The first worker waits for the others, but not for long: a busy pool may never send them.
  void close() {
    const auto limit = std::chrono::steady_clock::now() + patience;
    for (int spins = 1; covered.load(std::memory_order_acquire) < wanted; ++spins) {
      pause();
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > limit) break;
    }
    change(members, joined.exchange(kClosed, std::memory_order_acq_rel));
  }

  // A whole team has a member for each index of the loop, which are the workers' numbers then: the
  // pool's threads have the same ones in each call, and find their part of the weights in their own
  // caches. Others are numbered as they came.
  void join(int first, int indices) {
    const int arrived = joined.fetch_add(1, std::memory_order_acq_rel);
    covered.fetch_add(indices, std::memory_order_acq_rel);
    if (arrived >= kClosed) return;
    if (arrived == 0) close();
    wait_for_change(members, 0);
    const int count = members.load(std::memory_order_acquire);
    work(count == wanted ? first : arrived, count, context);
  }
};

}  // namespace

void Barrier::wait(int members) {
  if (members == 1) return;
  const int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    arrived_.store(0, std::memory_order_relaxed);
    change(phase_, phase + 1);
    return;
  }
  wait_for_change(phase_, phase);
}

void run_team(const ThreadPool& pool, int wanted, int64_t patience, void (*work)(int, int, void*),
              void* context) {
  if (wanted <= 1) {
    work(0, 1, context);
    return;
  }
  Formation formation{wanted, std::chrono::microseconds(patience), work, context};
  pool.parallel_for(
      wanted,
      [](int64_t begin, int64_t end, void* self) {
        static_cast<Formation*>(self)->join(static_cast<int>(begin), static_cast<int>(end - begin));
      },
      &formation);
}

}  // namespace bptt
