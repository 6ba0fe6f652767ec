// A block's recurrent weights, [gate_rows, depth], where they stay for the whole sequence:
//
//   load(fill)           fill(tile, rows, columns, at) brings some rows x columns to a tile: what
//                        belongs at (row, column) is weight at(row, column), zero past the last row
//                        or column. For all threads, with a barrier before the first product.
//   multiply(operand)    sums[part][row][column] = one part of the depth of
//                        sum over k of weights[row][k] * operand[column][k]
//
// Weights have gate_rows rows, a multiple of kRowTile, an operand Cut::rows, of kColumnTile; depth
// is the operand's whole width, whose end holds zeros.
#pragma once

#include "product.cuh"

namespace bptt::gpu {

// Of a matrix of weights.
struct WeightAt {
  int row, k;
};

constexpr int kLoadsAhead = 8;  // of a thread, that are under way at a time

// Fills rows x columns of a tile with weight(row, column). Neighbouring threads take neighbours in
// memory, which is along rows, or along columns where kRowsFirst.
template <bool kRowsFirst, class T, class Weight>
__device__ void fill_elements(const Tile<T>& tile, int rows, int columns, Weight weight) {
  const int count = rows * columns;
  for (int first = threadIdx.x; first < count; first += kLoadsAhead * blockDim.x) {
    T values[kLoadsAhead];
    int places[kLoadsAhead];
    BPTT_UNROLL
    for (int j = 0; j < kLoadsAhead; ++j) {
      // At the end the last one again, without a branch: that would end what is under way.
      const int item = smaller(first + j * static_cast<int>(blockDim.x), count - 1);
      const int row = kRowsFirst ? item % rows : item / columns;
      const int column = kRowsFirst ? item / rows : item % columns;
      places[j] = row * tile.pitch + column;
      values[j] = weight(row, column);
    }
    BPTT_UNROLL
    for (int j = 0; j < kLoadsAhead; ++j) {
      if (first + j * static_cast<int>(blockDim.x) < count) tile.values[places[j]] = values[j];
    }
  }
}

// The same, 16 bytes of a row at a time: they lie at values[place(row, column)], or are zeros where
// that is below zero.
template <class T, class Place>
__device__ void fill_chunks(const Tile<T>& tile, int rows, int columns, const View<const T>& values,
                            Place place) {
  constexpr int kChunk = 16 / sizeof(T);
  const int width = columns / kChunk;
  for (int item = threadIdx.x; item < rows * width; item += blockDim.x) {
    const int row = item / width, column = item % width * kChunk;
    const int64_t from = place(row, column);
    copy_async(tile.chunk(row, column), values.at(from < 0 ? 0 : from, kChunk), from < 0 ? 0 : 16);
  }
  commit_copies();
  wait_for_copies<0>();
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

  template <class Fill>
  __device__ void load(Fill fill) {
    fill(tile, layout.gate_rows, layout.depth,
         [](int row, int column) { return WeightAt{row, column}; });
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
  static constexpr int kAhead = 4;  // instructions' depths that are loaded at a time: see pitch_of
  using Words = uint32_t[4];

  Cut cut;
  Layout layout;
  Tile<S> tile;  // rows of [parts, gate_rows], only while weights are loaded
  Sums sums;
  uint32_t words[kHeldSteps][4];
  // Of this warp, known from `load` on: its part, its first row, and the instructions' depths of
  // the part, a multiple of kAhead, with where they begin.
  int part, row0, steps, begin;

  __device__ int row_tile() const { return held_rows(layout.gate_rows); }
  __device__ int row_tiles() const { return layout.gate_rows / row_tile(); }
  __device__ bool takes_part() const { return part < cut.parts; }
  __device__ static int lane() { return threadIdx.x % 32; }

  template <class Fill>
  __device__ void load(Fill fill) {
    const int warp = threadIdx.x / 32;
    part = warp / row_tiles();
    row0 = warp % row_tiles() * row_tile();
    const int first = part * layout.part_depth, left = layout.depth - first;
    steps = left > 0 ? smaller(left, layout.part_depth) / Number::kStep : 0;
    begin = left > 0 ? first : 0;
    for (int group = 0; group * layout.loaded < layout.part_depth; ++group) {
      sync_block();
      fill(tile, cut.parts * layout.gate_rows, layout.loaded, [&](int row, int column) {
        const int of_part = row / layout.gate_rows;
        return WeightAt{row - of_part * layout.gate_rows,
                        of_part * layout.part_depth + group * layout.loaded + column};
      });
      sync_block();
      // Registers have no index: every group of them asks whether it is meant, by a bit, as a
      // compiler that saw a comparison would take the index for it.
      const unsigned meant = takes_part() ? 1u << group : 0;
      BPTT_UNROLL
      for (int own = 0; own < kHeldSteps / kLoadedSteps; ++own) {
        if (meant >> own & 1) load_group(own);
      }
    }
  }

  __device__ BPTT_INLINED void load_group(int own) {
    BPTT_UNROLL
    for (int j = 0; j < kLoadedSteps; ++j) {
      const int row = part * layout.gate_rows + row0 + lane() % row_tile();
      const int k = (j * 32 + lane()) / row_tile() * kHalfStep;
      load_matrices(words[own * kLoadedSteps + j], tile.chunk(row, k));
    }
  }

  __device__ BPTT_INLINED void multiply(const Tile<S>& operand) const {
    if (!takes_part()) return;
    if (row_tile() != kRowTile) {
      for (int column0 = 0; column0 < cut.rows; column0 += kRowTile) by_columns(operand, column0);
      return;
    }
    int column0 = 0;
    for (; column0 + kColumnTile < cut.rows; column0 += 2 * kColumnTile) {
      by_rows<2>(operand, column0);
    }
    if (column0 < cut.rows) by_rows<1>(operand, column0);
  }

  // The step from which the next kAhead are loaded while those from `step` on are multiplied: at
  // the end, these again.
  __device__ int ahead(int step) const { return smaller(step, steps - 2 * kAhead) + kAhead; }

  // Rows of the instruction are rows of the weights, its columns one or two tiles of columns. Every
  // load brings two tiles or two steps; sums are made in eight chains, which do not wait for one
  // another.
  template <int kTiles>
  __device__ BPTT_INLINED void by_rows(const Tile<S>& operand, int column0) const {
    constexpr int kLoad = 2 / kTiles, kLoads = kAhead / kLoad, kChains = 8 / kTiles;
    const int upper = lane() / 16;
    const int column = column0 + lane() % 8 + (kTiles == 2 ? upper * kColumnTile : 0);
    const int k0 = begin + lane() / 8 % 2 * kHalfStep + (kTiles == 1 ? upper * Number::kStep : 0);
    const auto load = [&](Words(&columns)[kLoads], int step) {
      BPTT_UNROLL
      for (int j = 0; j < kLoads; ++j) {
        load_matrices(columns[j], operand.chunk(column, k0 + (step + j * kLoad) * Number::kStep));
      }
    };
    float d[kTiles][kChains][4] = {}, sum[kTiles][4];
    Words next[kLoads];
    load(next, 0);
    BPTT_UNROLL
    for (int first = 0; first < kHeldSteps; first += kAhead) {
      if (first >= steps) break;
      Words now[kLoads];
      copy(now, next);
      load(next, ahead(first));
      BPTT_UNROLL
      for (int j = 0; j < kLoads; ++j) {
        BPTT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int step = first + j * kLoad + (kTiles == 1 ? half : 0);
          const uint32_t pair[2] = {now[j][2 * half], now[j][2 * half + 1]};
          Number::multiply(d[kTiles == 2 ? half : 0][step % kChains], words[step], pair);
        }
      }
    }
    BPTT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) add_chains(sum[tile], d[tile]);
    store_wide(sum, sums, part, row0, column0, cut.rows);
  }

  // Rows of the instruction are columns of the product, its columns rows of the weights. Where
  // there are 8 columns, lanes of the others look at them.
  __device__ BPTT_INLINED void by_columns(const Tile<S>& operand, int column0) const {
    const int column = column0 + lane() % (column0 + kColumnTile < cut.rows ? 16 : 8);
    const int k0 = begin + lane() / 16 * kHalfStep;
    const auto load = [&](Words(&columns)[kAhead], int step) {
      BPTT_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        load_matrices(columns[j], operand.chunk(column, k0 + (step + j) * Number::kStep));
      }
    };
    float d[8][4] = {}, sum[4];
    Words next[kAhead];
    load(next, 0);
    BPTT_UNROLL
    for (int first = 0; first < 2 * kHeldSteps; first += kAhead) {
      if (first >= steps) break;
      Words now[kAhead];
      copy(now, next);
      load(next, ahead(first));
      BPTT_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const int step = first + j;
        const uint32_t rows[2] = {words[step / 2][step % 2 * 2], words[step / 2][step % 2 * 2 + 1]};
        Number::multiply(d[step % 8], now[j], rows);
      }
    }
    add_chains(sum, d);
    BPTT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int own = column0 + lane() / 4 + 8 * (j / 2);
      if (own < cut.rows) sums.at(part, lane() % 4 * 2 + j % 2, own) = sum[j];
    }
  }

  template <int kCount>
  __device__ static void copy(Words (&to)[kCount], const Words (&from)[kCount]) {
    BPTT_UNROLL
    for (int j = 0; j < kCount; ++j) {
      BPTT_UNROLL
      for (int k = 0; k < 4; ++k) to[j][k] = from[j][k];
    }
  }

  template <int kChains>
  __device__ static void add_chains(float (&sum)[4], const float (&d)[kChains][4]) {
    BPTT_UNROLL
    for (int j = 0; j < 4; ++j) {
      float parts[kChains];
      BPTT_UNROLL
      for (int chain = 0; chain < kChains; ++chain) parts[chain] = d[chain][j];
      BPTT_UNROLL
      for (int width = kChains / 2; width > 0; width /= 2) {
        BPTT_UNROLL
        for (int chain = 0; chain < width; ++chain) parts[chain] += parts[chain + width];
      }
      sum[j] = parts[0];
    }
  }
};

}  // namespace bptt::gpu
