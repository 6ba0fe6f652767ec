// The machine that kernels run on without a GPU: grids of blocks of threads, barriers between them,
// and everything that is delivered later than it is sent.
//
// Two engines behind one interface. By default a thread is a fiber: one operating-system thread
// runs them all, in an order that a seed decides, and switches where a thread waits. With
// BPTT_SIMULATOR_THREADS each is a thread of the operating system, for ThreadSanitizer.
//
// What a kernel may rely on is what CUDA promises and no more:
// - shared memory starts as NaN;
// - blocks of a launch that is not cooperative run a few at a time, in any order;
// - a copy or a remote store arrives when somebody waits for it, and not before where that is
// allowed;
// - threads that wait for what never comes are an error that names them.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(BPTT_SIMULATOR_THREADS)
#include <chrono>
#include <condition_variable>
#include <thread>
#else
#include "fiber.h"
#endif

namespace bptt::simulator {

using Where = std::source_location;

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

// A mistake of a kernel. The message names the kernel, and block and thread where one is at fault.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Thrown in threads that wait while another one has failed.
struct Stopped {};

// What a test decides about the next launches.
struct Options {
  uint64_t seed = 0;          // of the order of threads, blocks and deliveries
  unsigned processors = 132;  // blocks that can be on the machine at once
  size_t shared_limit = 227 * 1024;
};
inline Options options;

struct Config {
  const char* name;
  Index3 grid, block;
  size_t shared = 0;  // bytes
  unsigned cluster = 1;
  bool cooperative = false;
};

struct Thread;
struct Block;
struct Grid;

inline thread_local Thread* self = nullptr;

std::string place_of(const Thread& thread);
[[noreturn]] void fail(const std::string& text);

inline std::string line_of(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// Where all of `need` threads arrive before any goes on.
class Barrier {
 public:
  Barrier(unsigned need, const char* name) : need_(need), name_(name) {}
  void arrive_and_wait(const Where& where) { wait(arrive(where), where); }
  // The two halves; wait takes what arrive returned.
  uint64_t arrive(const Where& where);
  void wait(uint64_t ticket, const Where& where);

 private:
  unsigned need_, arrived_ = 0;
  std::atomic<uint64_t> generation_{0};
  const char* name_;
  Where first_;
#if defined(BPTT_SIMULATOR_THREADS)
  std::mutex mutex_;
  std::condition_variable changed_;
#endif
};

// An asynchronous copy (cp.async) on its way.
struct Copy {
  void* target;
  const void* source;
  unsigned bytes, valid;  // the rest becomes zeros
  // Where it has read its source already. It may at any time from when it is issued until it has
  // been waited for.
  std::optional<std::array<char, 16>> taken;
};

struct Thread {
  Index3 index;
  unsigned number = 0;  // within its block
  Block* block = nullptr;
  const char* waits_for = nullptr;
  Where waits_at;
  uint64_t cluster_ticket = 0;
  std::deque<std::vector<Copy>> copies{1};  // groups; the last one is open
  uint64_t tossed = 0;                      // coins
  std::atomic<bool> done{false};
#if !defined(BPTT_SIMULATOR_THREADS)
  std::unique_ptr<Fiber> fiber;
#endif

  unsigned lane() const { return number % 32; }
  unsigned warp() const { return number / 32; }
};

struct Block {
  Index3 index;
  Grid* grid = nullptr;
  unsigned rank = 0;  // within its cluster
  bool sits_out = false;
  std::vector<Block*> cluster;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Barrier>> warps;
  std::unique_ptr<Barrier> barrier;
  std::shared_ptr<Barrier> cluster_barrier;
  std::vector<uint64_t> exchange;  // eight values of each thread, for what warps do together
  // Transaction barriers that are initialised, and other blocks may not see it yet.
  std::set<const void*> unfenced;
  std::mutex unfenced_mutex;
  std::unique_ptr<char, void (*)(char*)> shared{nullptr, free_shared};
  size_t shared_bytes = 0;

  static constexpr std::align_val_t kAlignment{1024};
  static void free_shared(char* memory) { ::operator delete(memory, kAlignment); }
};

// A store to another block's shared memory on its way.
struct Message {
  Thread* sender;
  std::function<void()> deliver;
};

struct Grid {
  Config config;
  std::function<void()> kernel;
  std::mt19937_64 random;
  std::vector<std::unique_ptr<Block>> blocks;
  std::unique_ptr<Barrier> barrier;
  std::vector<Message> messages;
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  // Grows with everything that may end somebody's waiting.
  std::atomic<uint64_t> progress{0};

  unsigned chance(unsigned count) { return static_cast<unsigned>(random() % count); }
};

inline Grid& grid() { return *self->block->grid; }
inline void progressed() { grid().progress.fetch_add(1, std::memory_order_relaxed); }

inline std::string place_of(const Thread& thread) {
  std::ostringstream text;
  const Index3 b = thread.block->index, t = thread.index;
  text << thread.block->grid->config.name << ", block (" << b.x << ", " << b.y << ", " << b.z
       << "), thread (" << t.x << ", " << t.y << ", " << t.z << ")";
  return text.str();
}

inline bool has_ended(const Block& block) {
  return std::all_of(block.threads.begin(), block.threads.end(),
                     [](const auto& thread) { return thread->done.load(); });
}

// Heads or tails by the seed, whatever the order of threads.
inline bool toss() {
  uint64_t x = options.seed * 0x9E3779B97F4A7C15 + self->number;
  for (const uint64_t next : {uint64_t{self->block->index.x}, uint64_t{self->block->index.y},
                              uint64_t{self->block->index.z}, ++self->tossed}) {
    x = (x ^ next) * 0xBF58476D1CE4E5B9;
    x ^= x >> 31;
  }
  return x & 1;
}

inline void fail(const std::string& text) { throw Fault(place_of(*self) + ": " + text); }

// Does something in a thread's name and keeps what it throws.
template <class Action>
void run_as(Thread& thread, Action action) {
  Grid& g = *thread.block->grid;
  self = &thread;
  try {
    action();
  } catch (const Stopped&) {
  } catch (...) {
    const std::lock_guard lock(g.error_mutex);
    if (!g.failed.exchange(true)) g.error = std::current_exception();
  }
  g.progress.fetch_add(1, std::memory_order_relaxed);
}

inline void run_kernel(Thread& thread) {
  run_as(thread, [&thread] {
    thread.block->grid->kernel();
    for (const auto& group : thread.copies) {
      if (!group.empty())
        fail("the thread ends and its asynchronous copies have not been waited for");
    }
  });
  thread.done = true;
}

// --- waiting
// --------------------------------------------------------------------------------------

#if defined(BPTT_SIMULATOR_THREADS)

inline constexpr std::chrono::seconds kPatience{20};

// Until ready() holds, which reads nothing but atomics. Others make it so.
template <class Ready>
void wait_until(Ready ready, const char* what, const Where& where) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!ready()) {
    if (grid().failed) throw Stopped();
    if (std::chrono::steady_clock::now() > deadline) {
      fail(std::string("waits for ") + what + " at " + line_of(where) + ", which never comes");
    }
    std::this_thread::yield();
  }
}

inline uint64_t Barrier::arrive(const Where&) {
  const std::lock_guard lock(mutex_);
  const uint64_t ticket = generation_;
  if (++arrived_ == need_) {
    arrived_ = 0;
    ++generation_;
    changed_.notify_all();
  }
  return ticket;
}

inline void Barrier::wait(uint64_t ticket, const Where& where) {
  std::unique_lock lock(mutex_);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (generation_ == ticket) {
    if (grid().failed) throw Stopped();
    if (std::chrono::steady_clock::now() > deadline) {
      fail(std::string("waits for ") + name_ + " at " + line_of(where) + ", which never comes");
    }
    changed_.wait_for(lock, std::chrono::milliseconds(50));
  }
}

inline void run_threads(Grid& g, const std::vector<Block*>& resident) {
  std::vector<std::thread> running;
  for (Block* block : resident) {
    for (auto& thread : block->threads) {
      running.emplace_back([&thread] { run_kernel(*thread); });
    }
  }
  for (auto& thread : running) thread.join();
  if (g.error) std::rethrow_exception(g.error);
}

#else

template <class Ready>
void wait_until(Ready ready, const char* what, const Where& where) {
  Thread& me = *self;
  while (!ready()) {
    me.waits_for = what;
    me.waits_at = where;
    Fiber::suspend();
    if (grid().failed) throw Stopped();
  }
  me.waits_for = nullptr;
}

inline uint64_t Barrier::arrive(const Where& where) {
  if (arrived_ == 0) {
    first_ = where;
  } else if (first_.line() != where.line() ||
             first_.file_name() != std::string(where.file_name())) {
    fail(std::string("threads meet at two places: ") + name_ + " at " + line_of(first_) +
         " and at " + line_of(where));
  }
  progressed();
  const uint64_t ticket = generation_;
  if (++arrived_ == need_) {
    arrived_ = 0;
    ++generation_;
  }
  return ticket;
}

inline void Barrier::wait(uint64_t ticket, const Where& where) {
  wait_until([this, ticket] { return generation_ != ticket; }, name_, where);
}

// Names the thread that waits where the fewest do: the others mostly wait for it.
inline std::string deadlock_text(const std::vector<Thread*>& live) {
  std::map<std::string, std::vector<const Thread*>> places;
  for (const Thread* thread : live) {
    places[std::string(thread->waits_for) + " at " + line_of(thread->waits_at)].push_back(thread);
  }
  const auto fewest = std::min_element(
      places.begin(), places.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  return place_of(*fewest->second.front()) + ": waits for " + fewest->first +
         ", which never comes (" + std::to_string(live.size()) + " threads wait)";
}

// Messages arrive one by one, in any order: now and then, or when nobody can go on without.
inline bool deliver_one(Grid& g) {
  if (g.messages.empty()) return false;
  const auto chosen = g.messages.begin() + g.chance(static_cast<unsigned>(g.messages.size()));
  const Message message = std::move(*chosen);
  g.messages.erase(chosen);
  run_as(*message.sender, message.deliver);
  return true;
}

inline void run_threads(Grid& g, const std::vector<Block*>& resident) {
  std::vector<Thread*> live;
  for (Block* block : resident) {
    for (auto& thread : block->threads) {
      thread->fiber = std::make_unique<Fiber>([t = thread.get()] { run_kernel(*t); });
      live.push_back(thread.get());
    }
  }
  bool everybody = false;
  while (!live.empty()) {
    const uint64_t before = g.progress;
    // Blocks run at different speeds: some sit out a round, unless the last one led nowhere.
    for (Block* block : resident) block->sits_out = !everybody && !g.failed && g.chance(2) == 0;
    std::shuffle(live.begin(), live.end(), g.random);
    for (Thread* thread : live) {
      if (thread->block->sits_out) continue;
      self = thread;
      thread->fiber->resume();
    }
    self = nullptr;
    std::erase_if(live, [](const Thread* thread) { return thread->done.load(); });
    const bool stuck = g.progress == before;
    const bool delivered = (g.chance(4) == 0 || (stuck && everybody)) && deliver_one(g);
    if (stuck && everybody && !delivered && !g.failed && !live.empty()) {
      g.failed = true;
      g.error = std::make_exception_ptr(Fault(deadlock_text(live)));
    }
    everybody = stuck;
  }
  if (g.error) std::rethrow_exception(g.error);
}

#endif

// --- a launch
// -------------------------------------------------------------------------------------

inline Index3 unflattened(unsigned number, Index3 size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

inline std::unique_ptr<Block> make_block(Grid& g, unsigned number) {
  auto block = std::make_unique<Block>();
  const unsigned threads = g.config.block.count();
  block->index = unflattened(number, g.config.grid);
  block->grid = &g;
  block->rank = number % g.config.cluster;
  block->barrier = std::make_unique<Barrier>(threads, "__syncthreads");
  block->shared_bytes = g.config.shared;
  block->shared.reset(static_cast<char*>(::operator new(g.config.shared, Block::kAlignment)));
  std::memset(block->shared.get(), 0xFF, g.config.shared);
  for (unsigned first = 0; first < threads; first += 32) {
    const unsigned lanes = std::min(32u, threads - first);
    block->warps.push_back(std::make_unique<Barrier>(lanes, "the warp"));
  }
  block->exchange.resize(8 * threads);
  for (unsigned k = 0; k < threads; ++k) {
    auto thread = std::make_unique<Thread>();
    thread->index = unflattened(k, g.config.block);
    thread->number = k;
    thread->block = block.get();
    block->threads.push_back(std::move(thread));
  }
  return block;
}

// Raises Fault where CUDA would refuse the launch.
inline void check_config(const Config& c) {
  const auto refuse = [&c](const std::string& why) {
    throw Fault(std::string(c.name) + ": " + why);
  };
  const unsigned blocks = c.grid.count(), threads = c.block.count();
  if (blocks == 0 || threads == 0 || threads > 1024)
    refuse("an empty grid, or more than 1024 threads");
  if (c.shared > options.shared_limit) refuse("more shared memory than a block may have");
  if (c.cluster == 0 || c.grid.x % c.cluster != 0)
    refuse("grid.x is not a multiple of the cluster");
  if (c.cluster > options.processors) refuse("a cluster larger than the machine");
}

// Runs a kernel to its end. Raises Fault.
inline void run(const Config& config, std::function<void()> kernel) {
  check_config(config);
  Grid g;
  g.config = config;
  g.kernel = std::move(kernel);
  g.random.seed(options.seed);
  const unsigned count = config.grid.count();
  g.barrier = std::make_unique<Barrier>(count * config.block.count(), "grid.sync");
  for (unsigned number = 0; number < count; ++number) {
    g.blocks.push_back(make_block(g, number));
  }
  std::vector<std::vector<Block*>> clusters(count / config.cluster);
  for (unsigned number = 0; number < count; ++number) {
    clusters[number / config.cluster].push_back(g.blocks[number].get());
  }
  for (auto& cluster : clusters) {
    const unsigned threads = config.cluster * config.block.count();
    const auto barrier = std::make_shared<Barrier>(threads, "barrier.cluster");
    for (Block* block : cluster) {
      block->cluster = cluster;
      block->cluster_barrier = barrier;
    }
  }
  std::shuffle(clusters.begin(), clusters.end(), g.random);
  const size_t most = std::max(1u, options.processors / config.cluster);
  for (size_t first = 0; first < clusters.size();) {
    // Only a cooperative launch may count on its blocks being there together.
    const size_t left = std::min(clusters.size() - first, most);
    const size_t together = config.cooperative ? clusters.size() : 1 + g.random() % left;
    std::vector<Block*> resident;
    for (size_t k = 0; k < together; ++k) {
      resident.insert(resident.end(), clusters[first + k].begin(), clusters[first + k].end());
    }
    run_threads(g, resident);
    first += together;
  }
}

}  // namespace bptt::simulator
