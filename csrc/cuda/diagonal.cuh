// Cells without a recurrent product: no unit looks at another, so a thread owns a unit of a
// sequence and runs through its steps in one launch. What a few steps read is fetched together.
#pragma once

#include "control.cuh"
#include "masks.cuh"
#include "step_backward.cuh"

namespace bptt::gpu {

constexpr int kAhead = 4;          // steps whose loads are on their way at a time
constexpr int kUnitThreads = 128;  // few: a thread holds those steps in registers

// Of a thread: its unit, and where its values lie.
template <class Cell>
struct DiagonalUnit {
  static_assert(Cell::kStages == 0 && Cell::kStates == 1 && Cell::kSaved == 0);
  static constexpr int kGates = Cell::kGates;

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
  // Of step t in arrays [T, B, D, H] and [T, B, D, G, H].
  __device__ int64_t at(int64_t t) const {
    return ((t * sizes.batch + row) * sizes.directions + direction) * sizes.hidden + unit;
  }
  __device__ int64_t gate_at(int64_t t, int g) const {
    return (((t * sizes.batch + row) * sizes.directions + direction) * kGates + g) * sizes.hidden +
           unit;
  }
  // Of what a unit has for each gate, [D, G, H].
  __device__ int64_t own(int g) const { return (direction * kGates + g) * sizes.hidden + unit; }
  __device__ Place place(int64_t t) const { return {unit, row, t, direction}; }

  template <class Number, class View>
  __device__ void load_own(const View& from, float (&values)[kGates]) const {
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) values[g] = load_or_zero<Number>(from, own(g));
  }
};

template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kUnitThreads)
    diagonal_forward(ForwardArgs<typename Number::Storage> p, Loop loop) {
  constexpr int kGates = Cell::kGates;
  const DiagonalUnit<Cell> own(p);
  if (!own.is_there()) return;
  float weights[kGates], biases_x[kGates], biases_h[kGates];
  own.template load_own<Number>(p.w_unit, weights);
  own.template load_own<Number>(p.b_ih, biases_x);
  own.template load_own<Number>(p.b_hh, biases_h);
  const float kept = loop.drops() ? loop.kept(own.place(0)) : 1;
  float h = load_or_zero<Number>(p.h0, own.item);
  for (int64_t start = 0; start < p.steps; start += kAhead) {
    float ahead[kAhead][kGates] = {};
    bool enters[kAhead] = {};
    BPTT_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int64_t t = own.time_of(start + k);
      if (start + k >= p.steps || t >= own.length) continue;
      enters[k] = own.masks.enters(t, own.row);
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) ahead[k][g] = Number::widen(p.gates_x[own.gate_at(t, g)]);
    }
    BPTT_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k >= p.steps) break;
      const int64_t t = own.time_of(start + k);
      if (t < own.length) {
        float gates_x[kGates], gates_h[kGates], after[1], saved[1];
        const float before[1] = {enters[k] ? h : 0};
        BPTT_UNROLL
        for (int g = 0; g < kGates; ++g) {
          gates_x[g] = ahead[k][g] + biases_x[g];
          gates_h[g] = weights[g] * before[0] * kept + biases_h[g];
        }
        Cell::forward(loop.math(), gates_x, gates_h, before, weights, after, saved);
        h = loop.zones_out(0) ? loop.zoned(0, own.place(t), before[0], after[0]) : after[0];
      }
      p.y[own.at(t)] = Number::narrow(t < own.length ? h : 0);
    }
  }
  p.h_n[own.item] = Number::narrow(h);
}

// The gradient of a hidden state travels in `arrived`, or in scratch memory between launches of a
// step each, where rows are looked at as a whole.
template <class Cell, class Number, class Loop>
class DiagonalBackward {
  using S = typename Number::Storage;
  static constexpr int kGates = Cell::kGates;

 public:
  __device__ DiagonalBackward(const BackwardArgs<S>& p, const Loop& loop)
      : p(p), loop(loop), own(p) {
    if (!own.is_there()) return;
    own.template load_own<Number>(p.w_unit, weights);
    if (loop.drops()) kept = loop.kept(own.place(0));
  }

  __device__ void run() {
    if (!own.is_there()) return;
    float dh = load_or_zero<Number>(p.dh_n, own.item);
    for (int64_t start = 0; start < p.steps; start += kAhead) {
      Ahead ahead[kAhead];
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) ahead[k] = load(start + k);
      BPTT_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (start + k < p.steps) dh = cell(ahead[k], arrive(ahead[k], dh));
      }
    }
    p.dh0[own.item] = Number::narrow(dh);
    store_dw_unit();
  }

  // The cell of the step before, and what arrives at this one.
  __device__ void run_step(int step, const View<float>& arrived) {
    if (!own.is_there()) return;
    float dh = 0;
    if (step == 0) {
      dh = load_or_zero<Number>(p.dh_n, own.item);
    } else {
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) dw_unit[g] = step == 1 ? 0 : dw_unit_at(g);
      dh = cell(load(step - 1), arrived[own.item]);
      store_dw_unit();
    }
    if (step < p.steps) {
      arrived[own.item] = arrive(load(step), dh);
    } else {
      p.dh0[own.item] = Number::narrow(dh);
    }
  }

 private:
  // What a step reads.
  struct Ahead {
    int64_t t;
    bool active, keep;
    float dy, before, after;
  };

  // Of the steps of backpropagation, the last step of the sequence first.
  __device__ Ahead load(int64_t step) const {
    Ahead a = {};
    if (step >= p.steps) return a;
    a.t = own.time_of(p.steps - 1 - step);
    a.active = a.t < own.length;
    if (!a.active) return a;
    a.keep = own.masks.enters(a.t, own.row);
    a.dy = load_or_zero<Number>(p.dy, own.at(a.t));
    a.after = Number::widen(p.y[own.at(a.t)]);
    const bool first = own.backwards ? a.t == own.length - 1 : a.t == 0;
    if (first) {
      a.before = load_or_zero<Number>(p.h0, own.item);
    } else {
      a.before = Number::widen(p.y[own.at(own.backwards ? a.t + 1 : a.t - 1)]);
    }
    if (!a.keep) a.before = 0;
    return a;
  }

  // Of a step that is not taken the gradient passes by.
  __device__ float arrive(const Ahead& a, float dh) const {
    if (a.active) dh += a.dy;
    if (p.dh) p.dh[own.at(a.t)] = Number::narrow(a.active ? dh : 0);
    return a.active ? loop.bounded(dh) : dh;
  }

  __device__ float cell(Ahead a, float dh) {
    float dgates_x[kGates] = {}, dgates_h[kGates] = {};
    if (a.active) {
      const float saved[1] = {}, before[1] = {a.before};
      float passes = 0, unused[kGates] = {};
      if constexpr (Loop::kOn) {
        if (loop.zones_out(0)) {
          a.after = loop.made_before(0, a.before, a.after, kStoredError<S>);
          passes = loop.take_zoned(0, own.place(a.t), &dh);
        }
      }
      const float after[1] = {a.after};
      float dstates[1] = {dh};
      Cell::backward(loop.math(), saved, before, after, weights, dstates, dgates_x, dgates_h,
                     unused);
      dh = dstates[0] + passes;
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) {
        dh += weights[g] * kept * dgates_h[g];
        dw_unit[g] += a.before * kept * dgates_h[g];
      }
      if (!a.keep || loop.cuts(a.t, own.length, own.backwards)) dh = 0;
    }
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      p.dgates_x[own.gate_at(a.t, g)] = Number::narrow(dgates_x[g]);
      if constexpr (!Cell::kSharedGates) {
        p.dgates_h[own.gate_at(a.t, g)] = Number::narrow(dgates_h[g]);
      }
    }
    return dh;
  }

  // In [B, D, G, H].
  __device__ float& dw_unit_at(int g) const {
    const int64_t lane = own.row * p.directions + own.direction;
    return p.dw_unit[(lane * kGates + g) * p.hidden + own.unit];
  }
  __device__ void store_dw_unit() const {
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) dw_unit_at(g) = dw_unit[g];
  }

  const BackwardArgs<S>& p;
  const Loop& loop;
  const DiagonalUnit<Cell> own;
  float weights[kGates] = {}, dw_unit[kGates] = {}, kept = 1;
};

// All steps, or with `arrived` one.
template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kUnitThreads)
    diagonal_backward(BackwardArgs<typename Number::Storage> p, Loop loop, View<float> arrived,
                      int step) {
  DiagonalBackward<Cell, Number, Loop> unit(p, loop);
  if (Loop::kOn && arrived) {
    unit.run_step(step, arrived);
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

// Bytes of scratch memory, which only a backward pass with control needs.
inline size_t diagonal_scratch(const SizeArgs& sizes, bool controlled) {
  const size_t units = size_t{1} * sizes.directions * sizes.batch * sizes.hidden;
  return controlled ? units * sizeof(float) : 0;
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
      const int64_t units = int64_t{p.directions} * p.batch * p.hidden;
      const View<float> arrived(static_cast<float*>(scratch), units);
      for (int step = 0; step <= p.steps; ++step) {
        cudaError_t status = launch("diagonal_backward", kernel, config, p, loop, arrived, step);
        if (status == cudaSuccess && step < p.steps) {
          status = launch("bound_rows", bound_rows<S, Loop>,
                          row_config(p, p.state, kRowBytes, stream), p, arrived, loop, step);
        }
        if (status != cudaSuccess) return status;
      }
      return cudaSuccess;
    }
  }
  return launch("diagonal_backward", kernel, config, p, loop, View<float>(), 0);
}

}  // namespace bptt::gpu
