// What a loop does besides running its cell, as a kernel takes it: nothing, or what `Control` in
// csrc/engine/params.h says.
#pragma once

#include "../cells/math.h"
#include "../engine/params.h"
#include "../engine/random.h"
#include "primitives.cuh"

namespace bptt::gpu {

// Of a launch of the backward pass's first product, where a row's norm is taken between the
// gradients of its hidden state and the cell.
enum class Phase { kWhole, kArrive, kCell };

// One unit of a row in a step.
struct Place {
  int64_t unit, row, time, direction;
};

// Each cell as its paper has it. Costs nothing.
struct PlainLoop {
  static constexpr bool kOn = false;

  __host__ __device__ PlainMath math() const { return {}; }
  __host__ __device__ bool zones_out(int) const { return false; }
  __host__ __device__ bool drops() const { return false; }
  __host__ __device__ bool norms_gradients() const { return false; }
  __host__ __device__ Phase phase() const { return Phase::kWhole; }
  __device__ bool cuts(int64_t, int64_t, bool) const { return false; }
  __device__ float kept(const Place&) const { return 1; }
  __device__ float zoned(int, const Place&, float, float made) const { return made; }
  __device__ float take_zoned(int, const Place&, float*) const { return 0; }
  __device__ float made_before(int, float, float left, float) const { return left; }
  __device__ float bounded(float dh) const { return dh; }
};

class ControlledLoop {
 public:
  static constexpr bool kOn = true;

  explicit ControlledLoop(const Control& c, Phase phase = Phase::kWhole)
      : phase_(phase),
        math_{c.gates, c.states, static_cast<float>(c.cell_bound)},
        zoneout_{c.zoneout_h, c.zoneout_c},
        sampled_(c.sampled),
        dropout_(c.recurrent_dropout),
        truncate_(c.truncate),
        bound_(static_cast<float>(c.gradient_bound)),
        norm_(static_cast<float>(c.gradient_norm)),
        seed_(c.seed, c.seed == nullptr ? 0 : 1) {}

  ControlledLoop in_phase(Phase phase) const {
    ControlledLoop other = *this;
    other.phase_ = phase;
    return other;
  }

  __host__ __device__ const ChosenMath<float>& math() const { return math_; }
  __host__ __device__ bool zones_out(int state) const { return zoneout_[state > 0] > 0; }
  __host__ __device__ bool drops() const { return dropout_ > 0; }
  __host__ __device__ bool norms_gradients() const { return norm_ > 0; }
  __host__ __device__ Phase phase() const { return phase_; }

  // Whether no gradient passes from step t of a sequence to the step that it took before.
  __device__ bool cuts(int64_t t, int64_t length, bool backwards) const {
    if (truncate_ == 0) return false;
    const int64_t border = backwards ? t + 1 : t;
    return border > 0 && border < length && border % truncate_ == 0;
  }

  // What recurrent dropout multiplies a hidden state with on its way into products.
  __device__ float kept(const Place& at) const {
    const RandomWords words =
        draw_at(seed(), Draw::kRecurrentDropout, at.unit, at.row, 0, at.direction);
    if (happens(words.word[0], dropout_)) return 0;
    return dropout_ < 1 ? static_cast<float>(1 / (1 - dropout_)) : 0;
  }

  // A state after zoneout: `made` by the cell, or what it was before.
  __device__ float zoned(int state, const Place& at, float before, float made) const {
    if (sampled_) return stays(state, at) > 0 ? before : made;
    const float p = stays(state, at);
    return p * before + (1 - p) * made;
  }

  // Takes from the gradient of a state what passes the cell by, as the state stayed what it was;
  // returns that.
  __device__ float take_zoned(int state, const Place& at, float* gradient) const {
    const float passes = *gradient * stays(state, at);
    *gradient -= passes;
    return passes;
  }

  // What the cell made where `left` is its mean with the state before it. Rounding, of which
  // storing took the share `stored`, must not move it off a value at which an activation has a
  // kink.
  __device__ float made_before(int state, float before, float left, float stored) const {
    if (sampled_) return left;
    const float p = static_cast<float>(zoneout_[state > 0]);
    // Where all of it stayed, no gradient asks for the rest.
    const float rest = p < 1 ? 1 - p : 1, made = (left - p * before) / rest;
    const float computed = 1e-6f * (magnitude(left) + magnitude(before));
    const float error = (stored * magnitude(left) + computed) / rest;
    for (int kink = -1; kink <= 1; ++kink) {
      if (magnitude(made - kink) < error) return static_cast<float>(kink);
    }
    return made;
  }

  __device__ float bounded(float dh) const {
    return bound_ > 0 ? limited(dh, -bound_, bound_) : dh;
  }
  // What a row of gradients of this squared norm is multiplied with.
  __device__ float shrink(float squares) const {
    const float norm = sqrtf(squares);
    return norm > norm_ ? norm_ / norm : 1;
  }

 private:
  __device__ uint64_t seed() const { return static_cast<uint64_t>(seed_[0]); }

  // 1 where a state stays what it was, else 0; or the probability of that.
  __device__ float stays(int state, const Place& at) const {
    const double p = zoneout_[state > 0];
    if (!sampled_) return static_cast<float>(p);
    const Draw what = state > 0 ? Draw::kZoneoutCells : Draw::kZoneout;
    const RandomWords words =
        draw_at(seed(), what, at.unit, at.row / kRowsOfDraw, at.time, at.direction);
    return happens(half_word(words, at.row), p) ? 1 : 0;
  }

  Phase phase_;
  ChosenMath<float> math_;
  double zoneout_[2];  // of the hidden state, of cell states
  bool sampled_;
  double dropout_;
  int64_t truncate_;
  float bound_, norm_;
  View<const int64_t> seed_;  // [1], in device memory: nobody reads it on the host
};

}  // namespace bptt::gpu
