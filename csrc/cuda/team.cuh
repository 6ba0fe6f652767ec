// A team: the blocks that share the units of one direction and one slice of the batch. After each
// step every block needs what all of them made; how it gets there is what tells the tiers apart.
//
//   start()           before anything is published; a barrier for the block
//   publish(n, row, column, word)
//                     one word of this block's part of the n-th publication, for every block
//   arrive(n)         says that this block's part is there
//   wait(n)           returns when the parts of all blocks are there; a barrier for the block
//   operand(n, pass)  the tile with one pass's rows of it, for all threads to read. Of several
//                     passes the next one's may be asked for when all have read this one's.
//   finish()          before the block ends
//
// Publications n and n + 1 lie in different buffers: a block that is ahead may publish n + 1 while
// another still reads n, but n + 2 only after everybody's n + 1, and so after all have read n.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

// Whether a team's kernels mean anything on the architecture that is compiled for. Every
// architecture has the same kernels, as the host launches them by one name.
#if defined(BPTT_HAS_CLUSTERS)
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// Where a team's publications lie.
template <class T>
struct TeamMemory {
  View<T>
      shared;  // [buffers, rows, pitch]; the columns past `columns` and rows never filled are zeros
  char* own;   // 16 bytes of shared memory
  int rows, passes, filled, columns, pitch;  // filled: rows of all passes that there are
  View<uint32_t> exchange;  // in global memory, for GridTeam: [2, passes * rows, exchange_pitch]
  View<uint32_t> counter;   // [1], zero at the launch
  uint64_t patience_ns;     // of who waits for other blocks; see primitives.cuh

  __device__ Tile<T> tile(int buffer) const {
    return {shared.slice(buffer * rows * pitch, rows * pitch), pitch};
  }
  __device__ uint32_t* word(int buffer, int row, int column) const {
    const int place = (buffer * rows + row) * pitch + column;
    return reinterpret_cast<uint32_t*>(shared.at(place, 4 / sizeof(T)));
  }
};

// One block is the whole team.
template <class T>
struct BlockTeam {
  static constexpr bool kGrid = false, kAvailable = true;
  TeamMemory<T> memory;

  __device__ void start() { sync_block(); }
  __device__ void publish(int n, int row, int column, uint32_t word) {
    *memory.word(n % 2, row, column) = word;
  }
  __device__ void arrive(int) {}
  __device__ void wait(int) { sync_block(); }
  __device__ Tile<T> operand(int n, int) { return memory.tile(n % 2); }
  __device__ void finish() {}
};

// The blocks of a cluster push into one another's shared memory.
template <class T>
struct ClusterTeam {
  static constexpr bool kGrid = false, kAvailable = kHasClusters;
  TeamMemory<T> memory;

  __device__ TransactionBarrier& barrier(int n) const {
    return reinterpret_cast<TransactionBarrier*>(memory.own)[n % 2];
  }
  __device__ unsigned bytes() const { return memory.filled * memory.columns * sizeof(T); }

  __device__ void start() {
    sync_block();
    if (threadIdx.x == 0) {
      for (int n = 0; n < 2; ++n) {
        barrier(n).init(1);
        barrier(n).arrive_and_expect(bytes());
      }
      fence_barriers();
    }
    arrive_cluster();
    wait_cluster();
  }

  __device__ void publish(int n, int row, int column, uint32_t word) {
    uint32_t* const here = memory.word(n % 2, row, column);
    TransactionBarrier* const count = &barrier(n);
    BPTT_UNROLL_BY_FOUR
    for (unsigned rank = 0; rank < cluster_size(); ++rank) store_remote(here, word, count, rank);
  }

  __device__ void arrive(int) {}  // every word counts itself
  __device__ void wait(int n) {
    barrier(n).wait(n / 2, memory.patience_ns);  // a barrier is used by every second publication
    sync_block();
    // For publication n + 2: nobody sends it before this block has published n + 1, which it does
    // after a sync_block.
    if (threadIdx.x == 0) barrier(n).arrive_and_expect(bytes());
  }

  __device__ Tile<T> operand(int n, int) { return memory.tile(n % 2); }

  __device__ void finish() {
    arrive_cluster();  // the others' shared memory is written to until they are done
    wait_cluster();
  }
};

// Blocks anywhere on the device exchange through global memory, and count themselves there.
template <class T>
struct GridTeam {
  static constexpr bool kGrid = true, kAvailable = true;
  TeamMemory<T> memory;

  __device__ int word_pitch() const {
    return rounded_up(memory.columns * static_cast<int>(sizeof(T)), 16) / 4;
  }
  __device__ int first_row(int n) const { return n % 2 * memory.passes * memory.rows; }

  __device__ void start() { sync_block(); }

  __device__ void publish(int n, int row, int column, uint32_t word) {
    const int place = column * static_cast<int>(sizeof(T)) / 4;
    memory.exchange[(first_row(n) + row) * word_pitch() + place] = word;
  }

  __device__ void arrive(int) {
    sync_block();
    if (threadIdx.x == 0) signal(memory.counter.at(0, 1), 1);
  }
  __device__ void wait(int n) {
    if (threadIdx.x == 0)
      wait_for_signals(memory.counter.at(0, 1), (n + 1) * gridDim.x, memory.patience_ns);
    sync_block();
  }

  __device__ Tile<T> operand(int n, int pass) {
    constexpr int kChunk = 16 / sizeof(T);
    const Tile<T> tile = memory.tile(0);
    const int chunks = (memory.columns + kChunk - 1) / kChunk;
    const int row0 = first_row(n) + pass * memory.rows;
    const int rows = smaller(memory.rows, memory.filled - pass * memory.rows);
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int row = threadIdx.x / 32; row < rows; row += warps) {
      for (int chunk = lane; chunk < chunks; chunk += 32) {
        const int valid = (memory.columns - chunk * kChunk) * static_cast<int>(sizeof(T));
        copy_async(tile.chunk(row, chunk * kChunk),
                   memory.exchange.at((row0 + row) * word_pitch() + chunk * 4, 4),
                   valid < 16 ? valid : 16);
      }
    }
    commit_copies();
    wait_for_copies<0>();
    sync_block();
    return tile;
  }

  __device__ void finish() {}
};

}  // namespace bptt::gpu
