// The simulator's side of csrc/cuda/primitives.cuh: the built-ins of CUDA and the instructions that
// the kernels use, under the same names. What each does is said there.
#pragma once

#include <bit>
#include <cmath>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0, cudaErrorCooperativeLaunchTooLarge = 720,
                             cudaErrorInvalidClusterSize = 912;

// Looked up at each use: a thread's own.
#define threadIdx (::bptt::simulator::self->index)
#define blockIdx (::bptt::simulator::self->block->index)
#define blockDim (::bptt::simulator::grid().config.block)
#define gridDim (::bptt::simulator::grid().config.grid)

namespace bptt::gpu {

namespace sim = ::bptt::simulator;
using Where = sim::Where;

// --- memory
// ---------------------------------------------------------------------------------------

template <class T>
class View {
 public:
  View() = default;
  View(T* data, int64_t size) : data_(data), size_(size) {}

  T& operator[](int64_t index) const { return *at(index, 1); }
  T* at(int64_t index, int64_t count) const {
    if (index < 0 || count < 0 || index + count > size_) {
      sim::fail("elements " + std::to_string(index) + " to " + std::to_string(index + count) +
                " of a view of " + std::to_string(size_));
    }
    return data_ + index;
  }
  View slice(int64_t from, int64_t count) const { return {at(from, count), count}; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

inline char* shared_memory() { return sim::self->block->shared.get(); }
inline size_t shared_memory_bytes() { return sim::self->block->shared_bytes; }

// --- threads of a block
// ---------------------------------------------------------------------------

inline void sync_block(Where where = Where::current()) {
  sim::self->block->barrier->arrive_and_wait(where);
}

inline bool all_of_block(bool mine, Where where = Where::current()) {
  sim::Block& block = *sim::self->block;
  block.exchange[8 * sim::self->number] = mine;
  block.barrier->arrive_and_wait(where);
  bool all = true;
  for (size_t k = 0; k < block.threads.size(); ++k) all = all && block.exchange[8 * k];
  block.barrier->arrive_and_wait(where);
  return all;
}

inline sim::Barrier& warp_barrier() { return *sim::self->block->warps[sim::self->warp()]; }

inline void sync_warp(Where where = Where::current()) { warp_barrier().arrive_and_wait(where); }

// What every lane of the warp gives, for all to read: `read` gets a function of lane and word.
template <class Read>
auto with_warp(const uint32_t* words, unsigned count, const Where& where, Read read) {
  sim::Thread& me = *sim::self;
  auto& exchange = me.block->exchange;
  std::copy_n(words, count, exchange.begin() + 8 * me.number);
  warp_barrier().arrive_and_wait(where);
  const unsigned first = me.warp() * 32;
  const auto result = read([&exchange, first](unsigned lane, unsigned word) {
    return static_cast<uint32_t>(exchange[8 * (first + lane) + word]);
  });
  warp_barrier().arrive_and_wait(where);
  return result;
}

inline float shuffle_xor(float value, unsigned mask, Where where = Where::current()) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  const unsigned other = sim::self->lane() ^ mask;
  return with_warp(&word, 1, where,
                   [&](auto word_of) { return std::bit_cast<float>(word_of(other, 0)); });
}

// --- matrix instructions
// --------------------------------------------------------------------------

inline float widen(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Fp16 x) {
  const float sign = x.bits & 0x8000 ? -1.0f : 1.0f;
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

template <class Half>
Half narrow(float x);

template <>
inline Bf16 narrow<Bf16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Fp16 narrow<Fp16>(float x) {
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7FFF};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
  // The exponent of the lowest bit that is kept; nearbyint rounds to even.
  const int exponent = size > 0 ? std::max(std::ilogb(size) - 10, -24) : -24;
  const auto kept = static_cast<int>(std::nearbyint(std::ldexp(size, -exponent)));
  return {static_cast<uint16_t>(sign + ((exponent + 24) << 10) + kept)};
}

inline float round_to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000u) & 0xFFFFE000u);
}
inline float tf32(uint32_t word) { return std::bit_cast<float>(word & 0xFFFFE000u); }

template <class Half>
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      Where where = Where::current()) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  with_warp(words, 6, where, [&d](auto word_of) {
    const unsigned lane = sim::self->lane();
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
      for (unsigned depth = 0; depth < 16; ++depth) {
        const unsigned pair = depth % 8 / 2, half = depth / 8;
        const uint32_t x = word_of(4 * (row % 8) + pair, row / 8 + 2 * half);
        const uint32_t y = word_of(4 * column + pair, 4 + half);
        const unsigned shift = depth % 2 * 16;
        d[k] += widen(Half{static_cast<uint16_t>(x >> shift)}) *
                widen(Half{static_cast<uint16_t>(y >> shift)});
      }
    }
    return 0;
  });
}

inline void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Where where = Where::current()) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  with_warp(words, 6, where, [&d](auto word_of) {
    const unsigned lane = sim::self->lane();
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
      for (unsigned depth = 0; depth < 8; ++depth) {
        const uint32_t x = word_of(4 * (row % 8) + depth % 4, row / 8 + 2 * (depth / 4));
        const uint32_t y = word_of(4 * column + depth % 4, 4 + depth / 4);
        d[k] += tf32(x) * tf32(y);
      }
    }
    return 0;
  });
}

// What a lane gets of the rows of four matrices, word_of(lane, word) of the lane that looked at
// one.
template <class Pick>
void load_rows_of_matrices(uint32_t (&words)[4], const void* row, const Where& where, Pick pick) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    sim::fail("ldmatrix: a row that does not start at 16 bytes");
  }
  // Each lane looks at its row when it comes, so that what others have yet to write is missed.
  uint32_t own[4];
  std::memcpy(own, row, 16);
  with_warp(own, 4, where, [&](auto word_of) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      words[matrix] = pick(word_of, 8 * matrix, sim::self->lane());
    }
    return 0;
  });
}

inline void load_matrices(uint32_t (&words)[4], const void* row, Where where = Where::current()) {
  load_rows_of_matrices(words, row, where, [](auto word_of, unsigned first, unsigned lane) {
    return word_of(first + lane / 4, lane % 4);
  });
}

inline void load_transposed(uint32_t (&words)[4], const void* row, Where where = Where::current()) {
  load_rows_of_matrices(words, row, where, [](auto word_of, unsigned first, unsigned lane) {
    const unsigned column = lane / 4, above = first + 2 * (lane % 4), shift = column % 2 * 16;
    const uint32_t upper = word_of(above, column / 2) >> shift & 0xFFFF;
    return upper | (word_of(above + 1, column / 2) >> shift & 0xFFFF) << 16;
  });
}

// --- asynchronous copies
// --------------------------------------------------------------------------

// It reads its source now or, as late as it may, when it has been waited for.
inline void issue(const sim::Copy& copy) {
  sim::Copy& issued = sim::self->copies.back().emplace_back(copy);
  if (copy.valid > 0 && sim::toss()) {
    std::memcpy(issued.taken.emplace().data(), copy.source, copy.valid);
  }
  std::memset(copy.target, 0xFF, copy.bytes);  // nobody may look before it has been waited for
}

inline void copy_async(void* target, const void* source, unsigned valid) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(target) || (valid > 0 && !aligned(source)) || valid > 16) {
    sim::fail("cp.async: 16 bytes from and to multiples of 16");
  }
  issue({target, source, 16, valid, {}});
}

inline void copy_async_word(void* target, const void* source) {
  if (reinterpret_cast<uintptr_t>(target) % 4 != 0 ||
      reinterpret_cast<uintptr_t>(source) % 4 != 0) {
    sim::fail("cp.async: 4 bytes from and to multiples of 4");
  }
  issue({target, source, 4, 4, {}});
}

inline void commit_copies() { sim::self->copies.emplace_back(); }

template <int kPending>
void wait_for_copies() {
  auto& groups = sim::self->copies;
  while (groups.size() > kPending + 1) {
    for (const sim::Copy& copy : groups.front()) {
      std::memset(copy.target, 0, copy.bytes);
      if (copy.valid == 0) continue;
      std::memcpy(copy.target, copy.taken ? copy.taken->data() : copy.source, copy.valid);
    }
    groups.pop_front();
  }
}

// --- blocks of a cluster
// --------------------------------------------------------------------------

inline unsigned cluster_rank() { return sim::self->block->rank; }
inline unsigned cluster_size() { return sim::grid().config.cluster; }

inline void arrive_cluster(Where where = Where::current()) {
  sim::self->cluster_ticket = sim::self->block->cluster_barrier->arrive(where);
}
inline void wait_cluster(Where where = Where::current()) {
  sim::self->block->cluster_barrier->wait(sim::self->cluster_ticket, where);
}

// A barrier in shared memory that counts arrivals and bytes. All eight bytes are its state.
class TransactionBarrier {
 public:
  // Others see it after fence_barriers.
  void init(unsigned arrivals) {
    sim::Block& block = *sim::self->block;
    {
      const std::lock_guard lock(block.unfenced_mutex);
      block.unfenced.insert(this);
    }
    state().store(pack({arrivals, arrivals, 0, 0}), std::memory_order_release);
  }

  void arrive_and_expect(unsigned bytes) {
    change([bytes](State& s) {
      s.bytes += static_cast<int>(bytes);
      --s.pending;
    });
  }

  void delivered(unsigned bytes) {
    change([bytes](State& s) { s.bytes -= static_cast<int>(bytes); });
  }

  // The simulator has a patience of its own.
  void wait(unsigned parity, uint64_t, Where where = Where::current()) {
    sim::wait_until(
        [this, parity] {
          return unpack(state().load(std::memory_order_acquire)).phase != parity % 2;
        },
        "a transaction barrier", where);
  }

 private:
  struct State {
    unsigned arrivals, pending;
    int bytes;
    unsigned phase;
  };

  static uint64_t pack(const State& s) {
    const auto bytes = static_cast<uint32_t>(s.bytes) & 0x7FFFFFFFu;
    return static_cast<uint64_t>(s.arrivals) | static_cast<uint64_t>(s.pending & 0xFFFF) << 16 |
           static_cast<uint64_t>(bytes) << 32 | static_cast<uint64_t>(s.phase) << 63;
  }
  static State unpack(uint64_t word) {
    if (word == ~uint64_t{0}) sim::fail("a transaction barrier that nobody initialised");
    const int bytes = static_cast<int>(static_cast<uint32_t>(word >> 32) << 1) >> 1;
    return {static_cast<unsigned>(word & 0xFFFF), static_cast<unsigned>(word >> 16 & 0xFFFF), bytes,
            static_cast<unsigned>(word >> 63)};
  }

  std::atomic_ref<uint64_t> state() { return std::atomic_ref<uint64_t>(word_); }

  template <class Change>
  void change(Change apply) {
    uint64_t before = state().load(std::memory_order_acquire), after;
    do {
      State s = unpack(before);
      apply(s);
      if (s.pending > s.arrivals)
        sim::fail("more arrivals at a transaction barrier than it expects");
      if (s.pending == 0 && s.bytes == 0) {
        s.pending = s.arrivals;
        s.phase ^= 1;
      }
      after = pack(s);
    } while (!state().compare_exchange_weak(before, after, std::memory_order_acq_rel));
    sim::progressed();
  }

  alignas(8) uint64_t word_;
};

inline void fence_barriers() {
  sim::Block& block = *sim::self->block;
  const std::lock_guard lock(block.unfenced_mutex);
  block.unfenced.clear();
}

// Whether a store may arrive at a block's barrier.
inline void check_arrival(sim::Block& block, const TransactionBarrier* counter) {
  if (sim::has_ended(block)) sim::fail("a store to the shared memory of a block that has ended");
  const std::lock_guard lock(block.unfenced_mutex);
  if (block.unfenced.contains(counter)) {
    sim::fail("a transaction barrier whose initialisation was not fenced");
  }
}

// The same place in another block's shared memory.
template <class T>
T* in_block(T* here, unsigned rank) {
  sim::Block& own = *sim::self->block;
  const auto offset = reinterpret_cast<const char*>(here) - own.shared.get();
  if (rank >= own.cluster.size()) sim::fail("a rank that the cluster does not have");
  if (offset < 0 || offset + sizeof(T) > own.shared_bytes) sim::fail("not in shared memory");
  return reinterpret_cast<T*>(own.cluster[rank]->shared.get() + offset);
}

inline void store_remote(uint32_t* here, uint32_t value, TransactionBarrier* barrier,
                         unsigned rank) {
  uint32_t* const there = in_block(here, rank);
  TransactionBarrier* const counter = in_block(barrier, rank);
  sim::Block* const block = sim::self->block->cluster[rank];
  const auto deliver = [there, value, counter, block] {
    check_arrival(*block, counter);
    *there = value;
    counter->delivered(sizeof(value));
  };
#if defined(BPTT_SIMULATOR_THREADS)
  deliver();
#else
  sim::grid().messages.push_back({sim::self, deliver});
#endif
}

inline float load_remote(const float* here, unsigned rank) {
  if (sim::has_ended(*sim::self->block->cluster.at(rank))) {
    sim::fail("a load from the shared memory of a block that has ended");
  }
  return *in_block(here, rank);
}

// --- blocks of a grid
// -----------------------------------------------------------------------------

inline void signal(uint32_t* counter, uint32_t count) {
  std::atomic_ref<uint32_t>(*counter).fetch_add(count, std::memory_order_release);
  sim::progressed();
}

inline void wait_for_signals(uint32_t* counter, uint32_t goal, uint64_t,
                             Where where = Where::current()) {
  sim::wait_until(
      [counter, goal] {
        const uint32_t seen = std::atomic_ref<uint32_t>(*counter).load(std::memory_order_acquire);
        return static_cast<int32_t>(seen - goal) >= 0;
      },
      "signals of other blocks", where);
}

// --- the host's side
// -----------------------------------------------------------------------------------

inline const char* error_text(cudaError_t status) {
  return status == cudaSuccess ? nullptr
         : status == cudaErrorCooperativeLaunchTooLarge
             ? "the blocks of a cooperative launch have no room"
             : "the blocks of a cluster have no room";
}

inline const char* use_device(int) { return nullptr; }

// Those of an H200, however many blocks the options let run at once: on a device, too, others may
// take room that its driver counts.
inline const char* device_limits(int, int* capability, int* processors, int* shared_bytes,
                                 int* clock_mhz) {
  *capability = 90;
  *processors = 132;
  *shared_bytes = static_cast<int>(sim::options.shared_limit);
  *clock_mhz = 1980;
  return nullptr;
}

template <class... Parameters>
const char* kernel_error(int, void (*)(Parameters...)) {
  return nullptr;
}

template <class... Parameters>
int resident_clusters(void (*)(Parameters...), int, int, int) {
  return 0;  // nobody knows
}

inline cudaError_t zero_memory(void* memory, size_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return cudaSuccess;
}

inline bool lacks_room(cudaError_t status) { return status != cudaSuccess; }

// --- launching
// ------------------------------------------------------------------------------------

template <class... Parameters, class... Arguments>
cudaError_t launch(const char* name, void (*kernel)(Parameters...), const LaunchConfig& config,
                   const Arguments&... arguments) {
  const auto size = [](const Extent& e) { return sim::Index3{e.x, e.y, e.z}; };
  if (config.cooperative && size(config.grid).count() > sim::options.processors) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  if (config.cluster > sim::options.processors) return cudaErrorInvalidClusterSize;
  sim::run({name, size(config.grid), size(config.block), config.shared_bytes, config.cluster,
            config.cooperative},
           [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace bptt::gpu
