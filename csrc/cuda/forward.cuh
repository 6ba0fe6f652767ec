// The forward pass with the recurrent weights in shared memory for the whole sequence.
//
// Block (rank, slice, direction) owns `units` hidden units, all their gates, for `rows` sequences
// of the batch. In each step it multiplies its weights with the hidden state of all units, runs the
// cell for its own, and hands its part of the new hidden state to the blocks of its team.
//
// Shapes are those of csrc/engine/params.h, arrays dense, R = H. S is Number::Storage.
#pragma once

#include "../cells/cell.h"
#include "team.cuh"

namespace bptt::gpu {

template <class S>
struct ForwardArgs {
  int steps, batch, directions, hidden;
  uint32_t pattern;             // of directions, as in kernels/launch.py: period << 24 | flags
  int units;                    // of a block; a multiple of the elements of a word
  int rows;                     // of the batch, of a block; a multiple of kColumnTile
  int parts;                    // that the depth of the product is cut into
  View<const S> gates_x;        // [T, B, D, G, H], both biases in it but for those of kGates_h
  View<const S> w_hh;           // [D, G, H, H]
  View<const S> b_hh;           // [D, G, H], or empty
  View<const S> peephole;       // [D, P, H]
  View<const S> h0;             // [D, B, H]
  View<const int64_t> lengths;  // [B], or empty
  View<const uint8_t> resets;   // [T, B], or empty
  View<S> y;                    // [T, B, D, H]
  View<S> h_n;                  // [D, B, H]
  View<float> c;                // [D, B, H]: c0 on entry, c_n at the end
  View<S> saved;                // [T, B, D, A, H], or empty
  View<float> cells;            // [T, B, D, H], or empty
  View<uint32_t> exchange;      // [D, slices, 2, rows, all units] for GridTeam
  View<uint32_t> counters;      // [D, slices], zeros
};

// How a block's shared memory is laid out.
template <class Cell, class Number, class Team>
struct ForwardLayout {
  using S = typename Number::Storage;
  int gate_rows, depth, pitch;
  int weights, buffer, sums, states, team, bytes;  // where each begins, in bytes

  __host__ __device__ ForwardLayout(int units, int rows, int parts, int team_size) {
    gate_rows = rounded_up(Cell::kGates * units, kRowTile);
    pitch = Tile<S>::pitch_of(units * team_size);
    depth = pitch - static_cast<int>(16 / sizeof(S));
    weights = 0;
    buffer = weights + gate_rows * pitch * static_cast<int>(sizeof(S));
    sums = buffer + 2 * rows * pitch * static_cast<int>(sizeof(S));
    states = sums + parts * gate_rows * rows * 4;
    team = states + Cell::kStates * rows * units * 4;
    bytes = rounded_up(team, 8) + Team::kSharedBytes;
    team = rounded_up(team, 8);
  }
};

__host__ __device__ inline bool runs_backwards(uint32_t pattern, int direction) {
  return pattern >> (direction % (pattern >> 24)) & 1;
}

template <class Number>
__device__ uint32_t packed(const float* values) {
  using S = typename Number::Storage;
  S stored[4 / sizeof(S)];
  BPTT_UNROLL
  for (size_t j = 0; j < 4 / sizeof(S); ++j) stored[j] = Number::operand(Number::narrow(values[j]));
  uint32_t word;
  memcpy(&word, stored, 4);
  return word;
}

template <class Cell, class Number, class Team>
__global__ void __launch_bounds__(256) recurrence_forward(ForwardArgs<typename Number::Storage> p) {
  static_assert(Cell::kStages == 1, "one exchange a step");
  using S = typename Number::Storage;
  constexpr int kPerWord = 4 / sizeof(S), G = Cell::kGates;
  const int rank = blockIdx.x, team_size = gridDim.x, slice = blockIdx.y, direction = blockIdx.z;
  const int unit0 = rank * p.units, row0 = slice * p.rows, units = p.units, rows = p.rows;
  const int H = p.hidden, B = p.batch, D = p.directions, threads = blockDim.x;
  const ForwardLayout<Cell, Number, Team> layout(units, rows, p.parts, team_size);

  char* const memory = shared_memory();
  const auto elements = [memory](int start, int count) {
    return View<S>(reinterpret_cast<S*>(memory + start), count);
  };
  const int pitch = layout.pitch;
  const Tile<S> weights{elements(layout.weights, layout.gate_rows * pitch), pitch};
  const Buffers<S> buffers{elements(layout.buffer, 2 * rows * pitch), rows, pitch};
  const View<float> sums(reinterpret_cast<float*>(memory + layout.sums),
                         p.parts * layout.gate_rows * rows);
  const View<float> states(reinterpret_cast<float*>(memory + layout.states),
                           Cell::kStates * rows * units);
  const int all_units = units * team_size, own = direction * gridDim.y + slice;
  const int exchanged = 2 * rows * all_units / kPerWord;
  Team team(buffers, memory + layout.team, rows, all_units,
            p.exchange ? p.exchange.slice(int64_t{own} * exchanged, exchanged) : View<uint32_t>(),
            p.counters ? p.counters.slice(own, 1) : View<uint32_t>());

  // Weights of gate g and unit u in row g * units + u; zeros past the last unit, gate and column.
  for (int item = threadIdx.x; item < layout.gate_rows * layout.pitch; item += threads) {
    const int row = item / layout.pitch, k = item % layout.pitch;
    const int gate = row / units, unit = unit0 + row % units;
    const bool inside = gate < G && unit < H && k < H;
    const int64_t place = ((int64_t{direction} * G + gate) * H + unit) * H + k;
    weights.at(row, k) = inside ? Number::operand(p.w_hh[place]) : Number::zero();
  }
  for (int item = threadIdx.x; item < rows * layout.pitch; item += threads) {
    const int row = item / layout.pitch, k = item % layout.pitch, b = row0 + row;
    const bool inside = b < B && k < H;
    const int64_t place = (int64_t{direction} * B + b) * H + k;
    buffers[0].at(row, k) = inside ? Number::operand(p.h0[place]) : Number::zero();
    // Of the other one the columns past the units: nobody publishes those.
    if (k >= all_units) buffers[1].at(row, k) = Number::zero();
  }
  for (int item = threadIdx.x; item < rows * units; item += threads) {
    const int row = item / units, b = row0 + row, unit = unit0 + item % units;
    const bool inside = b < B && unit < H;
    const int64_t place = (int64_t{direction} * B + b) * H + unit;
    states[item] = inside ? Number::widen(p.h0[place]) : 0;
    if constexpr (Cell::kStates == 2) states[rows * units + item] = inside ? p.c[place] : 0;
  }
  team.start();

  const bool backwards = runs_backwards(p.pattern, direction);
  for (int step = 0; step < p.steps; ++step) {
    const int64_t t = backwards ? p.steps - 1 - step : step;
    product<Number>(weights, buffers[step], layout.gate_rows, rows, layout.depth, p.parts, sums);
    sync_block();
    for (int item = threadIdx.x; item < rows * units / kPerWord; item += threads) {
      const int row = item / (units / kPerWord), first = item % (units / kPerWord) * kPerWord;
      const int b = row0 + row;
      const bool active = b < B && (!p.lengths || t < p.lengths[b]);
      const bool keep = active && (!p.resets || p.resets[t * B + b] == 0);
      float h[kPerWord];
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) {
        const int u = first + j, unit = unit0 + u, state = row * units + u;
        if (b < B && unit < H) {
          const int64_t at = (t * B + b) * D + direction;
          float gates_x[G], gates_h[G], before[Cell::kStates], after[Cell::kStates];
          float saved[Cell::kSaved > 0 ? Cell::kSaved : 1], peep[Cell::kPeep > 0 ? Cell::kPeep : 1];
          BPTT_UNROLL
          for (int g = 0; g < G; ++g) {
            gates_x[g] = Number::widen(p.gates_x[(at * G + g) * H + unit]);
            float sum = p.b_hh ? Number::widen(p.b_hh[(direction * G + g) * H + unit]) : 0;
            for (int part = 0; keep && part < p.parts; ++part) {
              sum += sums[(part * layout.gate_rows + g * units + u) * rows + row];
            }
            gates_h[g] = sum;
          }
          BPTT_UNROLL
          for (int k = 0; k < Cell::kStates; ++k) {
            before[k] = keep ? states[k * rows * units + state] : 0;
          }
          BPTT_UNROLL
          for (int k = 0; k < Cell::kPeep; ++k) {
            peep[k] = Number::widen(p.peephole[(direction * Cell::kPeep + k) * H + unit]);
          }
          Cell::forward(gates_x, gates_h, before, peep, after, saved);
          p.y[at * H + unit] = Number::narrow(active ? after[0] : 0);
          if (active) {
            BPTT_UNROLL
            for (int k = 0; k < Cell::kStates; ++k) states[k * rows * units + state] = after[k];
            BPTT_UNROLL
            for (int k = 0; k < Cell::kSaved; ++k) {
              if (!p.saved) continue;
              p.saved[(at * Cell::kSaved + k) * H + unit] = Number::narrow(saved[k]);
            }
            if (Cell::kStates == 2 && p.cells) p.cells[at * H + unit] = after[Cell::kStates - 1];
          }
        }
        h[j] = states[state];
      }
      team.publish(step, row, unit0 + first, packed<Number>(h));
    }
    team.exchange(step);
  }

  for (int item = threadIdx.x; item < rows * units; item += threads) {
    const int row = item / units, b = row0 + row, unit = unit0 + item % units;
    if (b < B && unit < H) {
      const int64_t place = (int64_t{direction} * B + b) * H + unit;
      p.h_n[place] = Number::narrow(states[item]);
      if constexpr (Cell::kStates == 2) p.c[place] = states[rows * units + item];
    }
  }
  team.finish();
}

}  // namespace bptt::gpu
