// The product of one step for a tile of the batch and some units: sums in registers, both operands
// streamed through shared memory in slices of the depth. The blocks of a cluster share a tile: each
// takes a part of the depth, and all see the sums of all.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

constexpr int kStepThreads = 256;

// `valid` elements, at most 16 bytes of them, and zeros after; for wait_for_copies and a
// sync_block.
template <class S>
__device__ void copy_chunk(S* target, const View<const S>& from, int64_t place, int valid) {
  constexpr int kChunk = 16 / sizeof(S), kWord = 4 / sizeof(S);
  const int count = valid < 0 ? 0 : valid < kChunk ? valid : kChunk;
  // Of nothing, too, the address is one that can be read.
  const S* const source = count > 0 ? from.at(place, count) : from.at(0, 1);
  const auto address = reinterpret_cast<uintptr_t>(source);
  if (address % 16 == 0) {
    copy_async(target, source, count * sizeof(S));
    return;
  }
  BPTT_ROLLED
  for (int k = 0; k < kChunk; k += kWord) {
    if (address % 4 == 0 && k + kWord <= count) {
      copy_async_word(target + k, source + k);
      continue;
    }
    BPTT_UNROLL
    for (int j = k; j < k + kWord; ++j) target[j] = j < count ? source[j] : S{};
  }
}

// The weights of a tile's columns, units from `first` on of each plane. They lie in rows along the
// depth, row plane * units + unit; or depth-major, a row of `units` for each k (and one plane).
template <class S>
struct StepWeights {
  View<const S> values;
  int first, units;
};

// One of the operands of a product as a thread brings it: elements from `values` on, as many as
// `limit` of them; the rest are zeros.
template <class S>
struct StepSource {
  View<const S> values;
  int limit = 0;

  // Whether every chunk starts at 16 bytes and is there or not. `stride` is between rows.
  __device__ bool is_whole(int stride) const {
    return stride % kChunk == 0 && reinterpret_cast<uintptr_t>(values.at(0, 1)) % 16 == 0;
  }

  // Of `valid` elements from `place` on, as many as fit into a chunk.
  template <bool kWhole>
  __device__ void bring(S* target, int64_t place, int valid) const {
    if constexpr (kWhole) {
      const bool there = valid > 0;
      copy_async(target, values.at(there ? place : 0, kChunk), there ? 16 : 0);
    } else {
      copy_chunk(target, values, place, valid);
    }
  }

 private:
  static constexpr int kChunk = 16 / sizeof(S);
};

// sum(row, column) = sum over k of row[k] * weights[column][k], for kPlanes * kUnits columns.
//
// Four warps take 16 rows each and the first half of every slice, four more the second half. The
// parts, and those of the blocks, are added in order where they are read.
template <class Number, int kPlanes, int kUnits, bool kDepthMajor>
class StepProduct {
  using S = typename Number::Storage;
  static constexpr int kColumns = kPlanes * kUnits, kPairs = kColumns / 16;
  static constexpr int kChunk = 16 / sizeof(S), kRowThreads = kStepThreads / kStepRows;
  // Of a slice. Wide ones cost fewer instructions; what is on its way has to cover a read of L2.
  static constexpr int kSliceBytes = kColumns <= 32 ? 256 : 128;
  static constexpr int kDepth = kSliceBytes / sizeof(S);
  // Eight rows start at different banks.
  static constexpr int kPitch = kDepth + kChunk;
  static constexpr int kWeightPitch = kDepthMajor ? kColumns + 8 : kPitch;
  static constexpr int kWeights = (kDepthMajor ? kDepth : kColumns) * kWeightPitch;
  static constexpr int kSlice = kStepRows * kPitch + kWeights;  // elements
  static constexpr int kFit = kStepSharedBytes / (kSlice * sizeof(S));
  static constexpr int kBuffers = kFit < 6 ? kFit : 6;
  static constexpr int kParts = Number::kStep == 0 ? 1 : 2, kSumsPitch = kColumns + 4;
  static constexpr int kSums = kParts * kStepRows * kSumsPitch;
  static_assert(kColumns % 16 == 0 && kColumns * kRowThreads <= kStepThreads && kBuffers >= 3);
  static_assert(!kDepthMajor || kPlanes == 1);

 public:
  static constexpr int kSharedBytes =
      kBuffers * kSlice * sizeof(S) > kSums * 4 ? kBuffers * kSlice * sizeof(S) : kSums * 4;

  // The row that a thread brings; it gives start() what that row holds, or nothing for zeros.
  static __device__ int own_row() { return threadIdx.x / kRowThreads; }

  // Sends for the first slices. `rows` of the tile are in the batch.
  __device__ void start(View<const S> row, const StepWeights<S>& weights, int depth, int rows) {
    rows_ = rows;
    const int slices = (depth + kDepth - 1) / kDepth, blocks = static_cast<int>(cluster_size());
    const int share = (slices + blocks - 1) / blocks, first = share * cluster_rank();
    slices_ = slices - first < share ? slices - first : share;
    next_ = first * kDepth;
    if (slices == 0) return;
    const View<const S> idle = weights.values;  // of what is zero, too, an address is one to read
    row_ = {row ? row : idle, row ? depth : 0};
    if constexpr (kDepthMajor) {
      weights_ = {idle, depth};
      first_ = weights.first + threadIdx.x % kColumnChunks * kChunk;
      units_ = weights.units;
    } else {
      const int column = threadIdx.x / kRowThreads, unit = weights.first + column % kUnits;
      const int64_t place = int64_t{column / kUnits} * weights.units + unit;
      const bool inside = column < kColumns && unit < weights.units;
      weights_ = {inside ? weights.values.slice(place * depth, depth) : idle, inside ? depth : 0};
    }
    whole_ = all_of_block(row_.is_whole(depth) &&
                          weights_.is_whole(kDepthMajor ? weights.units : depth));
    BPTT_ROLLED
    for (int slice = 0; slice < kBuffers - 1; ++slice) {
      whole_ ? fetch<true>(slice, slice) : fetch<false>(slice, slice);
    }
  }

  // Ends with sums that all threads of all blocks of the cluster may read; a barrier for them.
  __device__ void finish() {
    whole_ ? multiply_slices<true>() : multiply_slices<false>();
    wait_for_copies<0>();
    sync_block();
    store_sums();
    if (cluster_size() > 1) {
      arrive_cluster();
      wait_cluster();
    } else {
      sync_block();
    }
  }

  // Of all blocks and parts, in order. `alone` says, where that is known, that there is one block.
  __device__ float sum(int row, int column, bool alone) const {
    const int blocks = static_cast<int>(cluster_size());
    if (alone || blocks == 1) return own_sum(row, column);
    float all[kLargestSplit][kParts];
    BPTT_UNROLL
    for (int k = 0; k < kLargestSplit; ++k) {
      // All on their way together; those of blocks that are not there are left out afterwards.
      const int rank = k < blocks ? k : 0;
      BPTT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        all[k][part] = load_remote(&sums(part).at(row, column), rank);
      }
    }
    float sum = 0;
    BPTT_UNROLL
    for (int k = 0; k < kLargestSplit; ++k) {
      BPTT_UNROLL
      for (int part = 0; part < kParts; ++part) sum += k < blocks ? all[k][part] : 0;
    }
    return sum;
  }

  // Around what a block does after it has read its last sum: nobody leaves while others read.
  static __device__ void done_reading() {
    if (cluster_size() > 1) arrive_cluster();
  }
  static __device__ void leave() {
    if (cluster_size() == 1) return;
    sync_warp();
    wait_cluster();
  }

 private:
  static __device__ Tile<S> tile(int buffer, int start, int count, int pitch) {
    const View<S> all(reinterpret_cast<S*>(shared_memory()), kBuffers * kSlice);
    return {all.slice(buffer * kSlice + start, count), pitch};
  }
  static __device__ Tile<S> rows_tile(int buffer) {
    return tile(buffer, 0, kStepRows * kPitch, kPitch);
  }
  static __device__ Tile<S> weights_tile(int buffer) {
    return tile(buffer, kStepRows * kPitch, kWeights, kWeightPitch);
  }
  static __device__ Tile<float> sums(int part) {
    const View<float> all(reinterpret_cast<float*>(shared_memory()), kSums);
    return {all.slice(part * (kSums / kParts), kSums / kParts), kSumsPitch};
  }

  __device__ float own_sum(int row, int column) const {
    float sum = sums(0).at(row, column);
    if constexpr (kParts == 2) sum += sums(1).at(row, column);
    return sum;
  }

  template <bool kWhole>
  __device__ void multiply_slices() {
    int now = 0;
    BPTT_ROLLED
    for (int slice = 0; slice < slices_; ++slice) {
      wait_for_copies<kBuffers - 2>();
      sync_block();  // all have brought this slice, and are done with the one before it
      fetch<kWhole>(slice + kBuffers - 1, now == 0 ? kBuffers - 1 : now - 1);
      multiply(now);
      now = now + 1 == kBuffers ? 0 : now + 1;
    }
  }

  template <bool kWhole>
  __device__ void fetch(int slice, int buffer) {
    if (slice < slices_) {
      const int column = threadIdx.x % kRowThreads * kChunk, item = threadIdx.x / kRowThreads;
      const Tile<S> rows = rows_tile(buffer), weights = weights_tile(buffer);
      BPTT_UNROLL
      for (int k = 0; k < kDepth; k += kRowThreads * kChunk) {
        const int place = next_ + column + k;
        row_.template bring<kWhole>(rows.chunk(item, column + k), place, row_.limit - place);
        if constexpr (!kDepthMajor) {
          if (item < kColumns) {
            weights_.template bring<kWhole>(weights.chunk(item, column + k), place,
                                            weights_.limit - place);
          }
        }
      }
      if constexpr (kDepthMajor) fetch_depth_major<kWhole>(weights);
      next_ += kDepth;
    }
    commit_copies();
  }

  template <bool kWhole>
  __device__ void fetch_depth_major(const Tile<S>& weights) {
    constexpr int kRowsAtATime = kStepThreads / kColumnChunks;
    static_assert(kDepth % kRowsAtATime == 0);
    const int row = threadIdx.x / kColumnChunks, column = threadIdx.x % kColumnChunks * kChunk;
    BPTT_UNROLL
    for (int k = 0; k < kDepth; k += kRowsAtATime) {
      const int depth = next_ + row + k;
      weights_.template bring<kWhole>(weights.chunk(row + k, column),
                                      int64_t{depth} * units_ + first_,
                                      depth < weights_.limit ? units_ - first_ : 0);
    }
  }

  __device__ void multiply(int buffer) {
    const Tile<S> rows = rows_tile(buffer), weights = weights_tile(buffer);
    if constexpr (Number::kStep == 0) {
      multiply_by_threads(rows, weights);
    } else {
      constexpr int kSteps = kDepth / Number::kStep / kParts;
      const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
      const int row0 = warp % 4 * kRowTile, k0 = warp / 4 * (kDepth / kParts);
      if (row0 >= rows_) return;
      uint32_t a[kSteps][4], b[kSteps][kPairs][4];
      BPTT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int k = k0 + step * Number::kStep;
        load_matrices(a[step], rows.chunk(row0 + lane % 16, k + lane / 16 * (Number::kStep / 2)));
        BPTT_UNROLL
        for (int pair = 0; pair < kPairs; ++pair)
          load_weights(b[step][pair], weights, 16 * pair, k);
      }
      BPTT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        round(a[step]);
        BPTT_UNROLL
        for (int pair = 0; pair < kPairs; ++pair) {
          round(b[step][pair]);
          const uint32_t left[2] = {b[step][pair][0], b[step][pair][1]};
          const uint32_t right[2] = {b[step][pair][2], b[step][pair][3]};
          Number::multiply(d_[2 * pair], a[step], left);
          Number::multiply(d_[2 * pair + 1], a[step], right);
        }
      }
    }
  }

  // The fragments of two tiles of eight columns, one instruction deep.
  static __device__ void load_weights(uint32_t (&words)[4], const Tile<S>& weights, int column,
                                      int k) {
    constexpr int kHalfStep = Number::kStep / 2;
    const int lane = threadIdx.x % 32;
    if constexpr (!kDepthMajor) {
      load_matrices(words,
                    weights.chunk(column + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * kHalfStep));
    } else if constexpr (sizeof(S) == 2) {
      load_transposed(
          words, weights.chunk(k + lane / 8 % 2 * kHalfStep + lane % 8, column + lane / 16 * 8));
    } else {
      BPTT_UNROLL
      for (int word = 0; word < 4; ++word) {
        words[word] =
            word_at(weights, k + word % 2 * kHalfStep + lane % 4, column + word / 2 * 8 + lane / 4);
      }
    }
  }

  static __device__ uint32_t word_at(const Tile<S>& tile, int row, int column) {
    constexpr int kCount = 4 / sizeof(S);
    uint32_t word;
    memcpy(&word, __builtin_assume_aligned(tile.values.at(row * tile.pitch + column, kCount), 4),
           4);
    return word;
  }

  // Copies bring numbers as they are stored.
  static __device__ void round(uint32_t (&words)[4]) {
    if constexpr (sizeof(S) == 4) {
      BPTT_UNROLL
      for (int k = 0; k < 4; ++k) {
        float x;
        memcpy(&x, &words[k], 4);
        x = Number::operand(x);
        memcpy(&words[k], &x, 4);
      }
    }
  }

  // Rows thread / 16 + 16 i, columns thread % 16 + 16 j.
  __device__ void multiply_by_threads(const Tile<S>& rows, const Tile<S>& weights) {
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
    for (int k = 0; k < kDepth; k += 4) {
      float a[4][4];
      BPTT_UNROLL
      for (int i = 0; i < 4; ++i) load_four(a[i], rows.chunk(row + 16 * i, k));
      BPTT_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        float b[4];
        if constexpr (kDepthMajor) {
          BPTT_UNROLL
          for (int n = 0; n < 4; ++n) b[n] = weights.at(k + n, column + 16 * j);
        } else {
          load_four(b, weights.chunk(column + 16 * j, k));
        }
        BPTT_UNROLL
        for (int n = 0; n < 4; ++n) {
          BPTT_UNROLL
          for (int i = 0; i < 4; ++i) d_[j][i] += a[i][n] * b[n];
        }
      }
    }
  }

  static __device__ void load_four(float (&values)[4], const S* from) {
    memcpy(values, __builtin_assume_aligned(from, 16), 16);
  }

  __device__ void store_sums() const {
    if constexpr (Number::kStep == 0) {
      const int row = threadIdx.x / 16, column = threadIdx.x % 16;
      BPTT_UNROLL
      for (int k = 0; k < 4 * kPairs; ++k) {
        sums(0).at(row + k % 4 * 16, column + k / 4 * 16) = d_[k / 4][k % 4];
      }
    } else {
      const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
      const Tile<float> sums = this->sums(warp / 4);
      BPTT_UNROLL
      for (int k = 0; k < 8 * kPairs; ++k) {
        const int tile = k / 4, j = k % 4, column = tile * 8 + lane % 4 * 2 + j % 2;
        sums.at(warp % 4 * kRowTile + lane / 4 + j / 2 * 8, column) = d_[tile][j];
      }
    }
  }

  static constexpr int kColumnChunks = kColumns / kChunk;
  static constexpr int kTiles = Number::kStep == 0 ? kPairs : 2 * kPairs;
  float d_[kTiles][4] = {};
  StepSource<S> row_, weights_;
  int rows_ = 0, slices_ = 0, next_ = 0;  // the place in the depth of what is sent for next
  bool whole_ = true;
  int first_ = 0, units_ = 0;  // of depth-major weights
};

}  // namespace bptt::gpu
