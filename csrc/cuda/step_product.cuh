// The product of one step for a tile of the batch and some units: sums in registers, both operands
// streamed through shared memory in slices of the depth.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

constexpr int kStepThreads = 256, kStepRows = 64;

// `valid` elements, at most 16 bytes of them, and zeros after; for wait_for_copies and a
// sync_block.
template <class S>
__device__ void copy_chunk(S* target, const View<const S>& from, int64_t place, int valid) {
  constexpr int kChunk = 16 / sizeof(S), kWord = 4 / sizeof(S);
  const int count = valid < 0 ? 0 : valid < kChunk ? valid : kChunk;
  // Of nothing, too, the address is one that can be read.
  const S* const source = count > 0 ? from.at(place, count) : from ? from.at(0, 1) : nullptr;
  const auto address = reinterpret_cast<uintptr_t>(source);
  if (address % 16 == 0) {
    copy_async(target, source, count * sizeof(S));
    return;
  }
  BPTT_UNROLL
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

// sum(row, column) = sum over k of row[k] * weights[column][k], for kPlanes * kUnits columns.
//
// Four warps take 16 rows each and the first half of every slice, four more the second half; the
// two parts are added in order where they are read.
template <class Number, int kPlanes, int kUnits, bool kDepthMajor>
class StepProduct {
  using S = typename Number::Storage;
  static constexpr int kColumns = kPlanes * kUnits, kPairs = kColumns / 16;
  static constexpr int kChunk = 16 / sizeof(S);
  static constexpr int kDepth = 4 * kChunk;  // of a slice: two matrix instructions
  // Eight rows start at different banks.
  static constexpr int kPitch = kDepth + kChunk;
  static constexpr int kWeightPitch = kDepthMajor ? kColumns + 8 : kPitch;
  static constexpr int kWeights = (kDepthMajor ? kDepth : kColumns) * kWeightPitch;
  static constexpr int kSlice = kStepRows * kPitch + kWeights;  // elements
  static constexpr int kFit = 48 * 1024 / (kSlice * sizeof(S)), kBuffers = kFit < 6 ? kFit : 6;
  static constexpr int kParts = Number::kStep == 0 ? 1 : 2, kSumsPitch = kColumns + 4;
  static constexpr int kSums = kParts * kStepRows * kSumsPitch;
  // Of a depth-major matrix of 16-bit numbers a lane reads two columns at once; then they take
  // turns between two tiles.
  static constexpr bool kInterleaved = kDepthMajor && sizeof(S) == 2;
  static_assert(kColumns % 16 == 0 && kColumns * 4 <= kStepThreads && kBuffers >= 2);
  static_assert(!kDepthMajor || kPlanes == 1);

 public:
  static constexpr int kSharedBytes =
      kBuffers * kSlice * sizeof(S) > kSums * 4 ? kBuffers * kSlice * sizeof(S) : kSums * 4;
  static_assert(kSharedBytes <= 47 * 1024);

  // The row that a thread brings; it gives start() what that row holds, or nothing for zeros.
  static __device__ int own_row() { return threadIdx.x / 4; }

  // Sends for the first slices. `rows` of the tile are in the batch.
  __device__ void start(View<const S> row, const StepWeights<S>& weights, int depth, int rows) {
    row_ = row;
    weights_ = weights;
    depth_ = depth;
    rows_ = rows;
    slices_ = (depth + kDepth - 1) / kDepth;
    if constexpr (!kDepthMajor) {
      const int column = threadIdx.x / 4, unit = weights.first + column % kUnits;
      const int64_t place = int64_t{column / kUnits} * weights.units + unit;
      const bool inside = column < kColumns && unit < weights.units;
      weights_.values = inside ? weights.values.slice(place * depth, depth) : View<const S>();
    }
    for (int slice = 0; slice < kBuffers - 1; ++slice) fetch(slice);
  }

  // Ends with sums that all threads may read; a barrier for the block.
  __device__ void finish() {
    for (int slice = 0; slice < slices_; ++slice) {
      wait_for_copies<kBuffers - 2>();
      sync_block();  // all have brought this slice, and are done with the one before it
      fetch(slice + kBuffers - 1);
      multiply(slice % kBuffers);
    }
    wait_for_copies<0>();
    sync_block();
    store_sums();
    sync_block();
  }

  __device__ float sum(int row, int column) const {
    float sum = sums(0).at(row, column);
    if constexpr (kParts == 2) sum += sums(1).at(row, column);
    return sum;
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

  __device__ void fetch(int slice) {
    if (slice < slices_) {
      const int k0 = slice * kDepth, k = k0 + threadIdx.x % 4 * kChunk;
      const int column = threadIdx.x % 4 * kChunk, item = threadIdx.x / 4;
      const Tile<S> weights = weights_tile(slice % kBuffers);
      copy_chunk(rows_tile(slice % kBuffers).chunk(item, column), row_, k, row_ ? depth_ - k : 0);
      if constexpr (kDepthMajor) {
        fetch_depth_major(weights, k0);
      } else if (item < kColumns) {
        const bool inside = static_cast<bool>(weights_.values);
        copy_chunk(weights.chunk(item, column), weights_.values, k, inside ? depth_ - k : 0);
      }
    }
    commit_copies();
  }

  __device__ void fetch_depth_major(const Tile<S>& weights, int k0) {
    constexpr int kChunks = kColumns / kChunk;
    if (threadIdx.x >= kDepth * kChunks) return;
    const int k = threadIdx.x / kChunks, column = threadIdx.x % kChunks * kChunk;
    const int unit = weights_.first + column;
    copy_chunk(weights.chunk(k, column), weights_.values, int64_t{k0 + k} * weights_.units + unit,
               k0 + k < depth_ ? weights_.units - unit : 0);
  }

  __device__ void multiply(int buffer) {
    const Tile<S> rows = rows_tile(buffer), weights = weights_tile(buffer);
    if constexpr (Number::kStep == 0) {
      multiply_by_threads(rows, weights);
    } else {
      const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
      const int row0 = warp % 4 * kRowTile, k = warp / 4 * Number::kStep;
      if (row0 >= rows_) return;
      uint32_t words_a[4];
      load_matrices(words_a, rows.chunk(row0 + lane % 16, k + lane / 16 * (Number::kStep / 2)));
      round(words_a);
      BPTT_UNROLL
      for (int pair = 0; pair < kPairs; ++pair) {
        uint32_t words_b[4];
        load_weights(words_b, weights, 16 * pair, k);
        round(words_b);
        const uint32_t left[2] = {words_b[0], words_b[1]}, right[2] = {words_b[2], words_b[3]};
        Number::multiply(d_[2 * pair], words_a, left);
        Number::multiply(d_[2 * pair + 1], words_a, right);
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
    } else if constexpr (kInterleaved) {
      BPTT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int from = k + half * kHalfStep + lane % 4 * 2;
        const uint32_t upper = word_at(weights, from, column + lane / 4 * 2);
        const uint32_t lower = word_at(weights, from + 1, column + lane / 4 * 2);
        words[half] = (upper & 0xFFFF) | lower << 16;
        words[2 + half] = upper >> 16 | (lower & 0xFFFF0000);
      }
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
    BPTT_UNROLL
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
        const int tile = k / 4, j = k % 4, column = lane % 4 * 2 + j % 2;
        const int place = kInterleaved ? 2 * column + tile % 2 : tile % 2 * 8 + column;
        sums.at(warp % 4 * kRowTile + lane / 4 + j / 2 * 8, tile / 2 * 16 + place) = d_[tile][j];
      }
    }
  }

  static constexpr int kTiles = Number::kStep == 0 ? kPairs : 2 * kPairs;
  float d_[kTiles][4] = {};
  View<const S> row_;
  StepWeights<S> weights_;
  int depth_ = 0, rows_ = 0, slices_ = 0;
};

}  // namespace bptt::gpu
