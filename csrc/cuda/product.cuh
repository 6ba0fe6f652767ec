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

// Of neighbouring units.
template <int kCount>
struct alignas(4 * kCount) FloatWord {
  float x[kCount];
};

// Sums of a product, in parts that whoever reads them adds up in order, after a sync_block.
struct Sums {
  View<float> values;
  int parts, columns, pitch;

  __device__ float& at(int part, int row, int column) const {
    return values[(part * columns + column) * pitch + row];
  }
  // Adds the parts for kCount rows from one on to `totals`, of kPlanes planes of rows that are
  // `plane` apart.
  template <int kCount, int kPlanes>
  __device__ void add(float (&totals)[kPlanes][kCount], int plane, int row, int column) const {
    for (int part = 0; part < parts; ++part) {
      BPTT_UNROLL
      for (int k = 0; k < kPlanes; ++k) {
        const int place = (part * columns + column) * pitch + k * plane + row;
        const auto& sum = *reinterpret_cast<const FloatWord<kCount>*>(values.at(place, kCount));
        BPTT_UNROLL
        for (int j = 0; j < kCount; ++j) totals[k][j] += sum.x[j];
      }
    }
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

// By matrix instructions: d += one step of the depth, from k on, of 16 rows and of up to kTiles
// tiles of columns, from column0 on.
template <class Number, int kTiles>
__device__ void multiply_wide(float (&d)[kTiles][4], const uint32_t (&rows)[4],
                              const Tile<typename Number::Storage>& b, int column0, int columns,
                              int k) {
  const int lane = threadIdx.x % 32;
  BPTT_UNROLL
  for (int pair = 0; pair < kTiles; pair += 2) {
    const int column = column0 + kColumnTile * pair;
    if (column >= columns) continue;
    // Two tiles of columns; where the second is past the end its lanes look at the first.
    const bool both = column + kColumnTile < columns;
    const int own = both ? lane / 16 * kColumnTile : 0;
    uint32_t words[4];
    load_matrices(words, b.chunk(column + own + lane % 8, k + lane / 8 % 2 * (Number::kStep / 2)));
    const uint32_t left[2] = {words[0], words[1]}, right[2] = {words[2], words[3]};
    Number::multiply(d[pair], rows, left);
    if (both) Number::multiply(d[pair + 1], rows, right);
  }
}

// 16 rows of the weights, one step of the depth, from a matrix in shared memory.
template <class Number>
__device__ void load_rows(uint32_t (&rows)[4], const Tile<typename Number::Storage>& a, int row0,
                          int k) {
  const int lane = threadIdx.x % 32;
  load_matrices(rows, a.chunk(row0 + lane % 16, k + lane / 16 * (Number::kStep / 2)));
}

template <int kTiles>
__device__ void store_wide(const float (&d)[kTiles][4], const Sums& sums, int part, int row0,
                           int column0, int columns) {
  const int lane = threadIdx.x % 32;
  BPTT_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const int column = column0 + kColumnTile * tile + 2 * (lane % 4);
    if (column0 + kColumnTile * tile >= columns) continue;
    BPTT_UNROLL
    for (int j = 0; j < 4; ++j) {
      sums.at(part, row0 + lane / 4 + 8 * (j / 2), column + j % 2) = d[tile][j];
    }
  }
}

// Tiles of columns that a warp multiplies at a time.
constexpr int kWideTiles = 4, kWideColumns = kWideTiles * kColumnTile;

// A warp takes 16 rows x 32 columns of one part of the depth.
template <class Number>
__device__ void product_by_warps(const Tile<typename Number::Storage>& a,
                                 const Tile<typename Number::Storage>& b, int rows, int columns,
                                 int depth, int part_depth, const Sums& sums) {
  const int warps = blockDim.x / 32, row_tiles = rows / kRowTile;
  const int wide_tiles = (columns + kWideColumns - 1) / kWideColumns;
  const int count = sums.parts * row_tiles * wide_tiles;
  for (int item = threadIdx.x / 32; item < count; item += warps) {
    const int column0 = item % wide_tiles * kWideColumns;
    const int row0 = item / wide_tiles % row_tiles * kRowTile;
    const int part = item / wide_tiles / row_tiles, first = part * part_depth;
    float d[kWideTiles][4] = {};
    for (int k = first; k < first + part_depth && k < depth; k += Number::kStep) {
      uint32_t words[4];
      load_rows<Number>(words, a, row0, k);
      multiply_wide<Number>(d, words, b, column0, columns, k);
    }
    store_wide(d, sums, part, row0, column0, columns);
  }
}

}  // namespace bptt::gpu
