// The recurrent product of one step within a block: both operands in shared memory.
#pragma once

#include "number.cuh"

namespace bptt::gpu {

constexpr int kRowTile = 16, kColumnTile = 8;

__host__ __device__ constexpr int rounded_up(int count, int unit) {
  return (count + unit - 1) / unit * unit;
}

// A matrix in shared memory whose rows are `pitch` elements apart. Rows start at 16 bytes, and
// eight of them at different banks.
template <class T>
struct Tile {
  View<T> values;
  int pitch;

  // For so many columns; the ones past them must hold zeros up to a whole matrix instruction.
  __host__ __device__ static constexpr int pitch_of(int columns) {
    constexpr int kChunk = 16 / sizeof(T);
    return rounded_up(columns, 4 * kChunk) + kChunk;
  }
  __device__ T& at(int row, int column) const { return values[row * pitch + column]; }
  __device__ const T* chunk(int row, int column) const {
    return values.at(row * pitch + column, 16 / sizeof(T));
  }
};

// sums[part][row][column] = one part of the depth of sum over k of a[row][k] * b[column][k].
//
// Whoever reads `sums` adds the parts in order, after a sync_block. Rows are a multiple of
// kRowTile, columns of kColumnTile; depth is the tiles' whole width, whose end holds zeros.
template <class Number>
__device__ void product(const Tile<typename Number::Storage>& a,
                        const Tile<typename Number::Storage>& b, int rows, int columns, int depth,
                        int parts, View<float> sums) {
  const int part_depth = rounded_up((depth + parts - 1) / parts, 64);
  if constexpr (Number::kStep == 0) {
    const int count = parts * rows * columns;
    for (int item = threadIdx.x; item < count; item += blockDim.x) {
      const int column = item % columns, row = item / columns % rows;
      const int first = item / columns / rows * part_depth;
      float sum = 0;
      for (int k = first; k < first + part_depth && k < depth; ++k) {
        sum += a.at(row, k) * b.at(column, k);
      }
      sums[item] = sum;
    }
  } else {
    constexpr int kHalfStep = Number::kStep / 2, kWide = 4;  // tiles of columns at a time
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const int row_tiles = rows / kRowTile, wide_tiles = (columns + 8 * kWide - 1) / (8 * kWide);
    const int count = parts * row_tiles * wide_tiles;
    for (int item = threadIdx.x / 32; item < count; item += warps) {
      const int column0 = item % wide_tiles * 8 * kWide;
      const int row0 = item / wide_tiles % row_tiles * kRowTile;
      const int part = item / wide_tiles / row_tiles, first = part * part_depth;
      float d[kWide][4] = {};
      for (int k = first; k < first + part_depth && k < depth; k += Number::kStep) {
        uint32_t words_a[4];
        load_matrices(words_a, a.chunk(row0 + lane % 16, k + lane / 16 * kHalfStep));
        BPTT_UNROLL
        for (int pair = 0; pair < kWide; pair += 2) {
          if (column0 + 8 * pair >= columns) continue;
          // Two tiles of columns; where the second is past the end its lanes look at the first.
          const int second = column0 + 8 * (pair + 1) < columns ? lane / 16 : 0;
          uint32_t words_b[4];
          load_matrices(words_b, b.chunk(column0 + 8 * (pair + second) + lane % 8,
                                         k + lane / 8 % 2 * kHalfStep));
          const uint32_t left[2] = {words_b[0], words_b[1]}, right[2] = {words_b[2], words_b[3]};
          Number::multiply(d[pair], words_a, left);
          Number::multiply(d[pair + 1], words_a, right);
        }
      }
      BPTT_UNROLL
      for (int tile = 0; tile < kWide; ++tile) {
        const int column = column0 + 8 * tile + 2 * (lane % 4);
        if (column0 + 8 * tile >= columns) continue;
        BPTT_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int row = row0 + lane / 4 + 8 * (j / 2);
          sums[(part * rows + row) * columns + column + j % 2] = d[tile][j];
        }
      }
    }
  }
}

}  // namespace bptt::gpu
