// A block's recurrent weights, [gate_rows, depth], where they stay for the whole sequence:
//
//   load(weight)      weight(row, k) is an element, zero past the last row or column; for all
//                     threads, with a barrier before the first product
//   multiply(operand)    sums[part][row][column] = one part of the depth of
//                        sum over k of weights[row][k] * operand[column][k]
//
// Weights have gate_rows rows, a multiple of kRowTile, an operand Cut::rows, of kColumnTile; depth
// is the operand's whole width, whose end holds zeros.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

// Fills rows x columns of a tile with weight(row, column). Neighbouring threads take neighbours in
// memory, which is along rows, or along columns where kRowsFirst.
template <bool kRowsFirst, class T, class Weight>
__device__ void fill(const Tile<T>& tile, int rows, int columns, Weight weight) {
  for (int item = threadIdx.x; item < rows * columns; item += blockDim.x) {
    const int row = kRowsFirst ? item % rows : item / columns;
    const int column = kRowsFirst ? item / rows : item % columns;
    tile.at(row, column) = weight(row, column);
  }
}

// In shared memory.
template <class Number>
struct SharedWeights {
  static constexpr bool kHeld = false, kAvailable = true;
  using S = typename Number::Storage;

  Cut cut;
  Layout layout;
  Tile<S> tile;
  Sums sums;

  template <bool kRowsFirst, class Weight>
  __device__ void load(Weight weight) {
    fill<kRowsFirst>(tile, layout.gate_rows, layout.depth, weight);
  }

  __device__ void multiply(const Tile<S>& operand) const {
    if constexpr (Number::kStep == 0) {
      product_by_threads(tile, operand, layout.gate_rows, cut.rows, layout.depth, layout.part_depth,
                         sums);
    } else {
      product_by_warps<Number>(tile, operand, layout.gate_rows, cut.rows, layout.depth,
                               layout.part_depth, sums);
    }
  }
};

// In registers, as matrix instructions take them: a warp holds 16 rows of one part of the depth, or
// 8 of a part twice as deep. A step then reads nothing but the operand from shared memory.
template <class Number>
struct HeldWeights {
  static constexpr bool kHeld = true, kAvailable = Number::kStep != 0;
  using S = typename Number::Storage;
  static constexpr int kHalfStep = Number::kStep / 2;

  Cut cut;
  Layout layout;
  Tile<S> tile;  // rows of [parts, gate_rows], only while weights are loaded
  Sums sums;
  uint32_t words[kHeldSteps][4];

  __device__ int row_tile() const { return held_rows(layout.gate_rows); }
  __device__ int row_tiles() const { return layout.gate_rows / row_tile(); }
  __device__ bool takes_part() const { return warp() < row_tiles() * cut.parts; }
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ int part() const { return warp() / row_tiles(); }
  __device__ int row0() const { return warp() % row_tiles() * row_tile(); }
  __device__ int begin() const { return part() * layout.part_depth; }
  __device__ int end() const {
    const int end = begin() + layout.part_depth;
    return end < layout.depth ? end : layout.depth;
  }

  template <bool kRowsFirst, class Weight>
  __device__ void load(Weight weight) {
    for (int group = 0; group * layout.loaded < layout.part_depth; ++group) {
      sync_block();
      fill<kRowsFirst>(tile, cut.parts * layout.gate_rows, layout.loaded, [&](int row, int column) {
        const int k = (row / layout.gate_rows * layout.part_depth) + group * layout.loaded + column;
        return weight(row % layout.gate_rows, k);
      });
      sync_block();
      // Registers have no index: every group of them asks whether it is meant.
      BPTT_UNROLL
      for (int own = 0; own < kHeldSteps / kLoadedSteps; ++own) {
        if (own == group && takes_part()) load_group(own);
      }
    }
  }

  __device__ void load_group(int own) {
    BPTT_UNROLL
    for (int j = 0; j < kLoadedSteps; ++j) {
      const int row = part() * layout.gate_rows + row0() + lane() % row_tile();
      const int k = (j * 32 + lane()) / row_tile() * kHalfStep;
      load_matrices(words[own * kLoadedSteps + j], tile.chunk(row, k));
    }
  }

  __device__ void multiply(const Tile<S>& operand) const {
    if (!takes_part()) return;
    if (row_tile() == kRowTile) {
      multiply_sixteen(operand);
    } else {
      multiply_eight(operand);
    }
  }

  // Rows of the instruction are rows of the weights. Instructions depend on each other in chains of
  // their own for two tiles of columns and for every second step, so that few wait.
  __device__ void multiply_sixteen(const Tile<S>& operand) const {
    constexpr int kTiles = 2;
    for (int column0 = 0; column0 < cut.rows; column0 += kTiles * kColumnTile) {
      float d[2][kTiles][4] = {};
      BPTT_UNROLL
      for (int step = 0; step < kHeldSteps; ++step) {
        const int k = begin() + step * Number::kStep;
        if (k >= end()) break;
        multiply_wide<Number>(d[step % 2], words[step], operand, column0, cut.rows, k);
      }
      BPTT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        BPTT_UNROLL
        for (int j = 0; j < 4; ++j) d[0][tile][j] += d[1][tile][j];
      }
      store_wide(d[0], sums, part(), row0(), column0, cut.rows);
    }
  }

  // Rows of the instruction are columns of the product, its columns rows of the weights.
  __device__ void multiply_eight(const Tile<S>& operand) const {
    for (int column0 = 0; column0 < cut.rows; column0 += kRowTile) {
      // Where there are 8 columns, lanes of the others look at them.
      const int column = column0 + lane() % (column0 + kColumnTile < cut.rows ? 16 : 8);
      float d[2][4] = {};
      BPTT_UNROLL
      for (int step = 0; step < 2 * kHeldSteps; ++step) {
        const int k = begin() + step * Number::kStep;
        if (k >= end()) break;
        uint32_t columns[4];
        load_matrices(columns, operand.chunk(column, k + lane() / 16 * kHalfStep));
        const uint32_t rows[2] = {words[step / 2][step % 2 * 2], words[step / 2][step % 2 * 2 + 1]};
        Number::multiply(d[step % 2], columns, rows);
      }
      BPTT_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int own = column0 + lane() / 4 + 8 * (j / 2);
        if (own < cut.rows) sums.at(part(), lane() % 4 * 2 + j % 2, own) = d[0][j] + d[1][j];
      }
    }
  }
};

}  // namespace bptt::gpu
