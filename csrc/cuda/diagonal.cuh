// Cells without a recurrent product: no unit looks at another, so a thread owns a unit of a
// sequence and runs through its steps in one launch. What a few steps read is fetched together.
#pragma once

#include "control.cuh"
#include "masks.cuh"
#include "step_backward.cuh"

namespace bptt::gpu {

constexpr int kAhead = 4;          // steps whose loads are on their way at a time
constexpr int kUnitThreads = 128;  // few: a thread holds those steps in registers
constexpr int kUnitBlocks = 4;     // at least; where none is named, ptxas spills to fit in more

// Of a thread: its unit, and where its values lie.
template <class Cell>
struct DiagonalUnit {
  static_assert(Cell::kStages == 0 && !kNormalized<Cell>);
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kCells = kCellStates<Cell>;
  static constexpr int kSaved = Cell::kSaved, kWeights = Cell::kUnitWeights;

  const SizeArgs sizes;
  const Masks masks;
  const int64_t item;  // of [D, B, H]
  const int64_t unit, row, direction, length;
  const bool backwards;

  template <class Args>
  __device__ explicit DiagonalUnit(const Args& p)
      : sizes(p),
        masks(p),
        item(int64_t{blockIdx.x} * blockDim.x + threadIdx.x),
        unit(item % p.hidden),
        row(item / p.hidden % p.batch),
        direction(item / p.hidden / p.batch),
        length(is_there() ? masks.length(row) : 0),
        backwards(is_there() && runs_backwards(p.pattern, static_cast<int>(direction))) {}

  __device__ bool is_there() const { return direction < sizes.directions; }
  __device__ int64_t time_of(int64_t step) const {
    return backwards ? sizes.steps - 1 - step : step;
  }
  // Of step t in arrays [T, B, D, H], and of plane k of those that a unit has in a step.
  __device__ int64_t at(int64_t t) const { return at(t, 0, 1); }
  __device__ int64_t at(int64_t t, int k, int planes) const {
    const int64_t lane = (t * sizes.batch + row) * sizes.directions + direction;
    return (lane * planes + k) * sizes.hidden + unit;
  }
  // Of cell state k in [D, B, C, H].
  __device__ int64_t cell_at(int k) const {
    return ((direction * sizes.batch + row) * kCells + k) * sizes.hidden + unit;
  }
  // Of what a unit has to itself, [D, count, H].
  __device__ int64_t own(int k, int count) const {
    return (direction * count + k) * sizes.hidden + unit;
  }
  __device__ Place place(int64_t t) const { return {unit, row, t, direction}; }

  template <class Number, class View>
  __device__ void load_own(const View& from, int count, float* values) const {
    BPTT_UNROLL
    for (int k = 0; k < count; ++k) values[k] = load_or_zero<Number>(from, own(k, count));
  }
  // Those before the first step, or their gradients after the last one.
  template <class Number, class View>
  __device__ void load_states(const View& hidden, const View& cells,
                              float (&states)[kStates]) const {
    states[0] = load_or_zero<Number>(hidden, item);
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) states[1 + k] = load_or_zero<Number>(cells, cell_at(k));
  }
  template <class Number, class View>
  __device__ void store_states(const View& hidden, const View& cells,
                               const float (&states)[kStates]) const {
    hidden[item] = Number::narrow(states[0]);
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) cells[cell_at(k)] = Number::narrow(states[1 + k]);
  }
};

template <class Cell, class Number, class Loop>
class DiagonalForward {
  using S = typename Number::Storage;
  using Unit = DiagonalUnit<Cell>;
  static constexpr int kGates = Unit::kGates, kStates = Unit::kStates, kSaved = Unit::kSaved;

 public:
  __device__ DiagonalForward(const ForwardArgs<S>& p, const Loop& loop)
      : p(p), loop(loop), own(p) {}

  __device__ void run() {
    if (!own.is_there()) return;
    own.template load_own<Number>(p.w_unit, Unit::kWeights, weights);
    own.template load_own<Number>(p.b_ih, kGates, biases_x);
    own.template load_own<Number>(p.b_hh, kGates, biases_h);
    if (loop.drops()) kept = loop.kept(own.place(0));
    own.template load_states<Number>(p.h0, p.c0, states);
    for (int64_t start = 0; start < p.steps; start += kAhead) {
      Ahead ahead[kAhead];
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) ahead[k] = load(start + k);
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (start + k >= p.steps) break;
        const int64_t t = own.time_of(start + k);
        if (t < own.length) cell(t, ahead[k]);
        p.y[own.at(t)] = Number::narrow(t < own.length ? states[0] : 0);
      }
    }
    own.template store_states<Number>(p.h_n, p.c_n, states);
  }

 private:
  // What a step reads.
  struct Ahead {
    float gates_x[kGates];
    bool enters;
  };

  __device__ Ahead load(int64_t step) const {
    Ahead a = {};
    const int64_t t = own.time_of(step);
    if (step >= p.steps || t >= own.length) return a;
    a.enters = own.masks.enters(t, own.row);
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      a.gates_x[g] = Number::widen(p.gates_x[own.at(t, g, kGates)]);
    }
    return a;
  }

  __device__ void cell(int64_t t, const Ahead& a) {
    float gates_x[kGates], gates_h[kGates], before[kStates], saved[kSaved + 1];
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) before[k] = a.enters ? states[k] : 0;
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      gates_x[g] = a.gates_x[g] + biases_x[g];
      gates_h[g] = biases_h[g];
      if constexpr (kOwnProducts<Cell>) gates_h[g] = weights[g] * before[0] * kept + biases_h[g];
    }
    Cell::forward(loop.math(), gates_x, gates_h, before, weights + kFirstWeight<Cell>, states,
                  saved);
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) {
      if (loop.zones_out(k)) states[k] = loop.zoned(k, own.place(t), before[k], states[k]);
    }
    BPTT_UNROLL
    for (int k = 0; k < kSaved; ++k) {
      if (p.saved) p.saved[own.at(t, k, kSaved)] = Number::narrow(saved[k]);
    }
    BPTT_UNROLL
    for (int k = 1; k < kStates; ++k) {
      if (p.cells) p.cells[own.at(t, k - 1, Unit::kCells)] = states[k];
    }
  }

  const ForwardArgs<S>& p;
  const Loop& loop;
  const Unit own;
  float weights[Unit::kWeights + 1] = {}, biases_x[kGates], biases_h[kGates], kept = 1;
  float states[kStates];
};

template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kUnitThreads, kUnitBlocks)
    diagonal_forward(ForwardArgs<typename Number::Storage> p, Loop loop) {
  DiagonalForward<Cell, Number, Loop>(p, loop).run();
}

// What gradients of a unit's states travel in between launches of a step each: [D, B, H], and
// [D, B, C, H] of the cell states. Without elements where one launch takes all steps.
struct Travelling {
  View<float> dh, dc;
};

template <class Cell, class Number, class Loop>
class DiagonalBackward {
  using S = typename Number::Storage;
  using Unit = DiagonalUnit<Cell>;
  static constexpr int kGates = Unit::kGates, kStates = Unit::kStates, kSaved = Unit::kSaved;
  static constexpr int kCells = Unit::kCells, kWeights = Unit::kWeights;

 public:
  __device__ DiagonalBackward(const BackwardArgs<S>& p, const Loop& loop)
      : p(p), loop(loop), own(p) {
    if (!own.is_there()) return;
    own.template load_own<Number>(p.w_unit, kWeights, weights);
    if (loop.drops()) kept = loop.kept(own.place(0));
  }

  __device__ void run() {
    if (!own.is_there()) return;
    own.template load_states<Number>(p.dh_n, p.dc_n, dstates);
    for (int64_t start = 0; start < p.steps; start += kAhead) {
      Ahead ahead[kAhead];
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) ahead[k] = load(start + k);
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (start + k >= p.steps) break;
        arrive(ahead[k]);
        cell(ahead[k]);
      }
    }
    own.template store_states<Number>(p.dh0, p.dc0, dstates);
    store_dw_unit();
  }

  // The cell of the step before, and what arrives at this one.
  __device__ void run_step(int step, const Travelling& between) {
    if (!own.is_there()) return;
    if (step == 0) {
      own.template load_states<Number>(p.dh_n, p.dc_n, dstates);
    } else {
      dstates[0] = between.dh[own.item];
      BPTT_UNROLL
      for (int k = 0; k < kCells; ++k) dstates[1 + k] = between.dc[own.cell_at(k)];
      BPTT_UNROLL
      for (int k = 0; k < kWeights; ++k) dw_unit[k] = step == 1 ? 0 : dw_unit_at(k);
      cell(load(step - 1));
      store_dw_unit();
    }
    if (step < p.steps) {
      arrive(load(step));
      between.dh[own.item] = dstates[0];
      BPTT_UNROLL
      for (int k = 0; k < kCells; ++k) between.dc[own.cell_at(k)] = dstates[1 + k];
    } else {
      own.template store_states<Number>(p.dh0, p.dc0, dstates);
    }
  }

 private:
  // What a step reads.
  struct Ahead {
    int t;
    bool active, keep;
    float dy, before[kStates], after[kStates], saved[kSaved + 1], dcells[kStates];
  };

  // Of the steps of backpropagation, the last step of the sequence first.
  __device__ Ahead load(int64_t step) const {
    Ahead a = {};
    if (step >= p.steps) return a;
    a.t = static_cast<int>(own.time_of(p.steps - 1 - step));
    a.active = a.t < own.length;
    if (!a.active) return a;
    a.keep = own.masks.enters(a.t, own.row);
    a.dy = load_or_zero<Number>(p.dy, own.at(a.t));
    BPTT_UNROLL
    for (int k = 0; k < kSaved; ++k) a.saved[k] = Number::widen(p.saved[own.at(a.t, k, kSaved)]);
    const bool first = own.backwards ? a.t == own.length - 1 : a.t == 0;
    const int64_t earlier = own.backwards ? a.t + 1 : a.t - 1;
    if (first) {
      own.template load_states<Number>(p.h0, p.c0, a.before);
    } else {
      a.before[0] = Number::widen(p.y[own.at(earlier)]);
    }
    a.after[0] = Number::widen(p.y[own.at(a.t)]);
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      if (!first) a.before[1 + k] = p.cells[own.at(earlier, k, kCells)];
      a.after[1 + k] = p.cells[own.at(a.t, k, kCells)];
      if (Loop::kOn && p.dcells) a.dcells[1 + k] = p.dcells[own.at(a.t, k, kCells)];
    }
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) {
      if (!a.keep) a.before[k] = 0;
    }
    return a;
  }

  // Of a step that is not taken the gradient passes by.
  __device__ void arrive(const Ahead& a) {
    if (a.active) dstates[0] += a.dy;
    if (p.dh) p.dh[own.at(a.t)] = Number::narrow(a.active ? dstates[0] : 0);
    if (a.active) dstates[0] = loop.bounded(dstates[0]);
  }

  __device__ void cell(Ahead a) {
    float dgates_x[kGates] = {}, dgates_h[kGates] = {};
    if (a.active) {
      float passes[kStates] = {};
      BPTT_UNROLL
      for (int k = 1; k < kStates; ++k) dstates[k] += a.dcells[k];
      if constexpr (Loop::kOn) undo_zoneout(a, passes);
      Cell::backward(loop.math(), a.saved, a.before, a.after, weights + kFirstWeight<Cell>, dstates,
                     dgates_x, dgates_h, dw_unit + kFirstWeight<Cell>);
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) dstates[k] += passes[k];
      if constexpr (kOwnProducts<Cell>) {
        BPTT_UNROLL
        for (int g = 0; g < kGates; ++g) {
          dstates[0] += weights[g] * kept * dgates_h[g];
          dw_unit[g] += a.before[0] * kept * dgates_h[g];
        }
      }
      const bool stops = !a.keep || loop.cuts(a.t, own.length, own.backwards);
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) {
        if (stops) dstates[k] = 0;
      }
    }
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      p.dgates_x[own.at(a.t, g, kGates)] = Number::narrow(dgates_x[g]);
      if constexpr (!Cell::kSharedGates) {
        p.dgates_h[own.at(a.t, g, kGates)] = Number::narrow(dgates_h[g]);
      }
    }
  }

  // The states that the cell made, out of those that were left, and what of their gradients passes
  // the cell by.
  __device__ void undo_zoneout(Ahead& a, float (&passes)[kStates]) {
    if (kStates == 1 && loop.zones_out(0)) {
      a.after[0] = loop.made_before(0, a.before[0], a.after[0], kStoredError<S>);
    }
    if constexpr (kCells > 0) {
      if (loop.zones_out(1)) Cell::rebuild(loop.math(), a.saved, a.before, a.after);
    }
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) {
      if (loop.zones_out(k)) passes[k] = loop.take_zoned(k, own.place(a.t), &dstates[k]);
    }
  }

  // In [B, D, P, H].
  __device__ float& dw_unit_at(int k) const {
    const int64_t lane = own.row * p.directions + own.direction;
    return p.dw_unit[(lane * kWeights + k) * p.hidden + own.unit];
  }
  __device__ void store_dw_unit() const {
    BPTT_UNROLL
    for (int k = 0; k < kWeights; ++k) dw_unit_at(k) = dw_unit[k];
  }

  const BackwardArgs<S>& p;
  const Loop& loop;
  const Unit own;
  float weights[kWeights + 1] = {}, dw_unit[kWeights + 1] = {}, kept = 1;
  float dstates[kStates];
};

// All steps, or where gradients travel one.
template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kUnitThreads, kUnitBlocks)
    diagonal_backward(BackwardArgs<typename Number::Storage> p, Loop loop, Travelling between,
                      int step) {
  DiagonalBackward<Cell, Number, Loop> unit(p, loop);
  if (Loop::kOn && between.dh) {
    unit.run_step(step, between);
  } else {
    unit.run();
  }
}

inline LaunchConfig diagonal_config(const SizeArgs& sizes, void* stream) {
  const int64_t units = int64_t{sizes.directions} * sizes.batch * sizes.hidden;
  LaunchConfig config;
  config.grid = {static_cast<unsigned>((units + kUnitThreads - 1) / kUnitThreads)};
  config.block = {kUnitThreads};
  config.stream = stream;
  return config;
}

// What only a backward pass with control needs.
template <class Cell>
Travelling carve_travelling(const SizeArgs& sizes, bool controlled, Carver& carver) {
  const int64_t units = int64_t{sizes.directions} * sizes.batch * sizes.hidden;
  return {carver.take<float>(controlled ? units : 0),
          carver.take<float>(controlled ? units * kCellStates<Cell> : 0)};
}

template <class Cell>
size_t diagonal_scratch(const SizeArgs& sizes, bool controlled) {
  Carver counted(nullptr);
  carve_travelling<Cell>(sizes, controlled, counted);
  return counted.bytes();
}

template <class Cell, class Number, class Loop>
cudaError_t run_diagonal_forward(const ForwardArgs<typename Number::Storage>& p, const Loop& loop,
                                 void* stream) {
  return launch("diagonal_forward", diagonal_forward<Cell, Number, Loop>,
                diagonal_config(p, stream), p, loop);
}

template <class Cell, class Number, class Loop>
cudaError_t run_diagonal_backward(const BackwardArgs<typename Number::Storage>& p, const Loop& loop,
                                  void* scratch, void* stream) {
  using S = typename Number::Storage;
  const LaunchConfig config = diagonal_config(p, stream);
  const auto kernel = diagonal_backward<Cell, Number, Loop>;
  if constexpr (Loop::kOn) {
    if (loop.norms_gradients()) {
      Carver carver(scratch);
      const Travelling between = carve_travelling<Cell>(p, true, carver);
      for (int step = 0; step <= p.steps; ++step) {
        cudaError_t status = launch("diagonal_backward", kernel, config, p, loop, between, step);
        if (status == cudaSuccess && step < p.steps) {
          status = launch("bound_rows", bound_rows<S, Loop>,
                          row_config(p, p.state, kRowBytes, stream), p, between.dh, loop, step);
        }
        if (status != cudaSuccess) return status;
      }
      return cudaSuccess;
    }
  }
  return launch("diagonal_backward", kernel, config, p, loop, Travelling(), 0);
}

}  // namespace bptt::gpu
