// A team: the blocks that share the units of one direction and one slice of the batch. After each
// step every block needs what all of them made; how it gets there is what tells the tiers apart.
//
//   start()                     before the first step
//   publish(step, row, column, word)
//                               one word of what this block made in a step, for every block
//   exchange(step)              returns when `next(step)` holds what all published; a barrier for
//                               the block
//   finish()                    before the block ends
//
// Buffers alternate: step s reads buffer s % 2 and makes buffer (s + 1) % 2.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

template <class T>
struct Buffers {
  View<T> values;  // of both
  int rows, pitch;

  __device__ Tile<T> operator[](int step) const {
    return {values.slice(step % 2 * rows * pitch, rows * pitch), pitch};
  }
  __device__ uint32_t* word(int step, int row, int column) const {
    const int place = (step % 2 * rows + row) * pitch + column;
    return reinterpret_cast<uint32_t*>(values.at(place, 4 / sizeof(T)));
  }
};

// One block is the whole team.
template <class T>
struct BlockTeam {
  static constexpr int kSharedBytes = 0;
  Buffers<T> buffers;

  __device__ BlockTeam(const Buffers<T>& shared, char*, int, int, View<uint32_t>, View<uint32_t>)
      : buffers(shared) {}
  __device__ void start() { sync_block(); }
  __device__ void publish(int step, int row, int column, uint32_t word) {
    *buffers.word(step + 1, row, column) = word;
  }
  __device__ void exchange(int) { sync_block(); }
  __device__ void finish() {}
};

#if defined(BPTT_HAS_CLUSTERS)
// The blocks of a cluster push into one another's shared memory.
template <class T>
struct ClusterTeam {
  static constexpr int kSharedBytes = 16;  // two transaction barriers
  Buffers<T> buffers;
  TransactionBarrier* barriers;
  unsigned bytes;  // that arrive at a block in a step

  __device__ ClusterTeam(const Buffers<T>& shared, char* own, int rows, int columns, View<uint32_t>,
                         View<uint32_t>)
      : buffers(shared),
        barriers(reinterpret_cast<TransactionBarrier*>(own)),
        bytes(rows * columns * sizeof(T)) {}

  __device__ void start() {
    if (threadIdx.x == 0) {
      for (int parity = 0; parity < 2; ++parity) {
        barriers[parity].init(1);
        barriers[parity].arrive_and_expect(bytes);
      }
    }
    arrive_cluster();
    wait_cluster();
  }

  __device__ void publish(int step, int row, int column, uint32_t word) {
    uint32_t* const here = buffers.word(step + 1, row, column);
    TransactionBarrier* const barrier = &barriers[(step + 1) % 2];
    for (unsigned rank = 0; rank < cluster_size(); ++rank) store_remote(here, word, barrier, rank);
  }

  __device__ void exchange(int step) {
    TransactionBarrier& barrier = barriers[(step + 1) % 2];
    barrier.wait(step / 2);  // a barrier is used in every second step
    sync_block();
    // For its next use, two steps on: nobody sends for that before this block has published the
    // next step, which it does after a sync_block.
    if (threadIdx.x == 0) barrier.arrive_and_expect(bytes);
  }

  __device__ void finish() {
    arrive_cluster();  // the others' shared memory is written to until they are done
    wait_cluster();
  }
};

#endif

// Blocks anywhere on the device exchange through global memory, and count themselves there.
template <class T>
struct GridTeam {
  static constexpr int kSharedBytes = 0;
  Buffers<T> buffers;
  int rows, columns;
  View<uint32_t> words;    // [2, rows, columns]
  View<uint32_t> counter;  // [1], zero at the launch

  __device__ GridTeam(const Buffers<T>& shared, char*, int rows, int columns, View<uint32_t> words,
                      View<uint32_t> counter)
      : buffers(shared),
        rows(rows),
        columns(columns * sizeof(T) / 4),
        words(words),
        counter(counter) {}

  __device__ void start() { sync_block(); }

  __device__ void publish(int step, int row, int column, uint32_t word) {
    const int place = (step + 1) % 2 * rows + row;
    words[place * columns + static_cast<int>(column * sizeof(T) / 4)] = word;
  }

  __device__ void exchange(int step) {
    sync_block();
    if (threadIdx.x == 0) {
      signal(counter.at(0, 1), 1);
      wait_for_signals(counter.at(0, 1), (step + 1) * gridDim.x);
    }
    sync_block();
    const int first = (step + 1) % 2 * rows * columns;
    for (int item = threadIdx.x; item < rows * columns; item += blockDim.x) {
      const int row = item / columns, column = item % columns * (4 / sizeof(T));
      *buffers.word(step + 1, row, column) = words[first + item];
    }
    sync_block();
  }

  __device__ void finish() {}
};

}  // namespace bptt::gpu
