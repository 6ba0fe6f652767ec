// The recurrent product of one step within a block: both operands in shared memory.
#pragma once

#include "layout.h"
#include "number.cuh"

namespace bptt::gpu {

// A matrix in shared memory whose rows are `pitch` elements apart (layout.h).
template <class T>
struct Tile {
  View<T> values;
  int pitch;

  __device__ T& at(int row, int column) const { return values[row * pitch + column]; }
  __device__ T* chunk(int row, int column) const {
    return values.at(row * pitch + column, 16 / sizeof(T));
  }
};

// Sums of a product, in parts that whoever reads them adds up in order, after a sync_block.
struct Sums {
  View<float> values;
  int parts, columns, pitch;

  __device__ float& at(int part, int row, int column) const {
    return values[(part * columns + column) * pitch + row];
  }
  __device__ float total(int row, int column) const {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += at(part, row, column);
    return sum;
  }
};

struct alignas(16) Float4 {
  float x[4];
};

// By the threads themselves: each takes 4 rows x 4 columns of one part of the depth.
inline __device__ void product_by_threads(const Tile<float>& a, const Tile<float>& b, int rows,
                                          int columns, int depth, int part_depth,
                                          const Sums& sums) {
  const auto chunk = [](const Tile<float>& tile, int row, int k) {
    return *reinterpret_cast<const Float4*>(tile.chunk(row, k));
  };
  // Neighbouring threads take neighbouring rows, which lie at different banks.
  const int row_groups = rows / 4, column_groups = columns / 4;
  const int count = sums.parts * row_groups * column_groups;
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const int row0 = item % row_groups, column0 = item / row_groups % column_groups * 4;
    const int part = item / row_groups / column_groups, first = part * part_depth;
    float sum[4][4] = {};
    for (int k = first; k < first + part_depth && k < depth; k += 4) {
      Float4 left[4], right[4];
      BPTT_UNROLL
      for (int j = 0; j < 4; ++j) left[j] = chunk(a, row0 + j * row_groups, k);
      BPTT_UNROLL
      for (int j = 0; j < 4; ++j) right[j] = chunk(b, column0 + j, k);
      BPTT_UNROLL
      for (int i = 0; i < 4; ++i) {
        BPTT_UNROLL
        for (int j = 0; j < 4; ++j) {
          BPTT_UNROLL
          for (int l = 0; l < 4; ++l) sum[i][j] += left[i].x[l] * right[j].x[l];
        }
      }
    }
    BPTT_UNROLL
    for (int i = 0; i < 4; ++i) {
      BPTT_UNROLL
      for (int j = 0; j < 4; ++j) {
        sums.at(part, row0 + i * row_groups, column0 + j) = sum[i][j];
      }
    }
  }
}

// By matrix instructions: a warp takes 16 rows x 32 columns of one part of the depth.
template <class Number>
__device__ void product_by_warps(const Tile<typename Number::Storage>& a,
                                 const Tile<typename Number::Storage>& b, int rows, int columns,
                                 int depth, int part_depth, const Sums& sums) {
  constexpr int kHalfStep = Number::kStep / 2, kWide = 4;  // tiles of columns at a time
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int row_tiles = rows / kRowTile, wide_tiles = (columns + 8 * kWide - 1) / (8 * kWide);
  const int count = sums.parts * row_tiles * wide_tiles;
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
        sums.at(part, row0 + lane / 4 + 8 * (j / 2), column + j % 2) = d[tile][j];
      }
    }
  }
}

// sums[part][row][column] = one part of the depth of sum over k of a[row][k] * b[column][k].
//
// Rows are a multiple of kRowTile, columns of kColumnTile; depth is the tiles' whole width, whose
// end holds zeros.
template <class Number>
__device__ void product(const Tile<typename Number::Storage>& a,
                        const Tile<typename Number::Storage>& b, int rows, int columns, int depth,
                        const Sums& sums) {
  const int part_depth = rounded_up((depth + sums.parts - 1) / sums.parts, 64);
  if constexpr (Number::kStep == 0) {
    product_by_threads(a, b, rows, columns, depth, part_depth, sums);
  } else {
    product_by_warps<Number>(a, b, rows, columns, depth, part_depth, sums);
  }
}

}  // namespace bptt::gpu
