// A team of workers that run at the same time and can wait for each other.
//
// A thread pool's parallel loop promises neither how many threads take part nor that they run
// together, so a barrier inside one may deadlock. `run_team` makes the promise: whoever shows up
// while the team forms is a member, whoever comes later goes home, and one worker is a team too.
// Results must therefore not depend on the size of the team.
#pragma once

#include <atomic>
#include <cstdint>

namespace bptt {

// The caller's thread pool: `count` threads, and a loop over [0, n) that calls f(begin, end,
// context) on pieces of it.
struct ThreadPool {
  int count;
  void (*parallel_for)(int64_t n, void (*f)(int64_t, int64_t, void*), void* context);
};

// Reusable barrier. Spins, as waits are shorter than a sleep, and sleeps when they are not.
class Barrier {
 public:
  void wait(int members);

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

// Calls work(worker, workers, context) once on every member, with worker in [0, workers). The first
// one waits up to `patience` microseconds for the others.
void run_team(const ThreadPool& pool, int wanted, int64_t patience, void (*work)(int, int, void*),
              void* context);

}  // namespace bptt
