// The cells of python/bptt/custom/library.py, by `python -m bptt.custom.library_header`.
#pragma once

#include "cell.h"
#include "choices.h"

namespace bptt {

struct MinGru {
  static constexpr int kGates = 2, kStates = 1, kSaved = 2;
  static constexpr int kUnitWeights = 0, kStages = 0;
  static constexpr bool kSharedGates = true, kFree = true;
  static constexpr const char* kName = "min_gru_338c8c04";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v6 = Sigmoid::forward((gates_x[0] + gates_h[0]));
    const V v7 = (gates_x[1] + gates_h[1]) - states_prev[0];
    const V v8 = v6 * v7;
    const V v9 = states_prev[0] + v8;
    saved[0] = v6;
    saved[1] = v7;
    states[0] = v9;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[1];
    given[0] = dstates[0];
    const V v11 = given[0] * saved[0];
    const V v12 = given[0] * saved[1];
    const V v13 = -v11;
    const V v14 = given[0] + v13;
    const V v15 = constant<V>(1.0) - saved[0];
    const V v16 = saved[0] * v15;
    const V v17 = v12 * v16;
    dgates_x[0] = v17;
    dgates_x[1] = v11;
    dgates_h[0] = v17;
    dgates_h[1] = v11;
    dstates[0] = v14;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct MinLstm {
  static constexpr int kGates = 3, kStates = 1, kSaved = 3;
  static constexpr int kUnitWeights = 0, kStages = 0;
  static constexpr bool kSharedGates = true, kFree = true;
  static constexpr const char* kName = "min_lstm_25e761f7";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v8 = Sigmoid::forward((gates_x[0] + gates_h[0]));
    const V v9 = Sigmoid::forward((gates_x[1] + gates_h[1]));
    const V v10 = states_prev[0] * v8;
    const V v11 = (gates_x[2] + gates_h[2]) * v9;
    const V v12 = settled(v10) + v11;
    const V v13 = v8 + v9;
    const V v14 = v12 / v13;
    saved[0] = (gates_x[2] + gates_h[2]);
    saved[1] = v8;
    saved[2] = v9;
    states[0] = v14;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[1];
    given[0] = dstates[0];
    const V v10 = states_prev[0] * saved[1];
    const V v11 = saved[0] * saved[2];
    const V v12 = settled(v10) + v11;
    const V v13 = saved[1] + saved[2];
    const V v14 = v12 / v13;
    const V v16 = v14 / v13;
    const V v17 = -given[0];
    const V v18 = v16 * v17;
    const V v19 = given[0] / v13;
    const V v20 = saved[2] * v19;
    const V v21 = saved[0] * v19;
    const V v22 = settled(v18) + v21;
    const V v23 = saved[1] * v19;
    const V v24 = states_prev[0] * v19;
    const V v25 = settled(v18) + v24;
    const V v26 = constant<V>(1.0) - saved[2];
    const V v27 = saved[2] * v26;
    const V v28 = v22 * v27;
    const V v29 = constant<V>(1.0) - saved[1];
    const V v30 = saved[1] * v29;
    const V v31 = v25 * v30;
    dgates_x[0] = v31;
    dgates_x[1] = v28;
    dgates_x[2] = v20;
    dgates_h[0] = v31;
    dgates_h[1] = v28;
    dgates_h[2] = v20;
    dstates[0] = v23;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct Sru {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4;
  static constexpr int kUnitWeights = 2, kStages = 0;
  static constexpr bool kSharedGates = true, kFree = true;
  static constexpr const char* kName = "sru_af91a8c8";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v14 = states_prev[1] * w_unit[0];
    const V v15 = (gates_x[1] + gates_h[1]) + v14;
    const V v16 = Sigmoid::forward(v15);
    const V v17 = states_prev[1] * w_unit[1];
    const V v18 = (gates_x[2] + gates_h[2]) + v17;
    const V v19 = Sigmoid::forward(v18);
    const V v20 = states_prev[1] - (gates_x[0] + gates_h[0]);
    const V v21 = v16 * v20;
    const V v22 = (gates_x[0] + gates_h[0]) + v21;
    const V v23 = v22 - (gates_x[3] + gates_h[3]);
    const V v24 = v19 * v23;
    const V v25 = (gates_x[3] + gates_h[3]) + v24;
    saved[0] = v16;
    saved[1] = v19;
    saved[2] = v20;
    saved[3] = v23;
    states[0] = v25;
    states[1] = v22;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[2];
    given[0] = dstates[0];
    given[1] = dstates[1];
    const V v27 = given[0] * saved[1];
    const V v28 = given[0] * saved[3];
    const V v29 = -v27;
    const V v30 = given[1] + v27;
    const V v31 = given[0] + v29;
    const V v32 = saved[0] * v30;
    const V v33 = saved[2] * v30;
    const V v34 = -v32;
    const V v35 = v30 + v34;
    const V v36 = constant<V>(1.0) - saved[1];
    const V v37 = saved[1] * v36;
    const V v38 = v28 * v37;
    const V v39 = w_unit[1] * v38;
    const V v40 = states_prev[1] * v38;
    const V v41 = settled(v32) + v39;
    const V v42 = constant<V>(1.0) - saved[0];
    const V v43 = saved[0] * v42;
    const V v44 = v33 * v43;
    const V v45 = w_unit[0] * v44;
    const V v46 = states_prev[1] * v44;
    const V v47 = v41 + v45;
    dgates_x[0] = v35;
    dgates_x[1] = v44;
    dgates_x[2] = v38;
    dgates_x[3] = v31;
    dgates_h[0] = v35;
    dgates_h[1] = v44;
    dgates_h[2] = v38;
    dgates_h[3] = v31;
    dstates[0] = constant<V>(0.0);
    dstates[1] = v47;
    dw_unit[0] = dw_unit[0] + v46;
    dw_unit[1] = dw_unit[1] + v40;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct DiagonalGru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4;
  static constexpr int kUnitWeights = 3, kStages = 0;
  static constexpr bool kSharedGates = false, kFree = false;
  static constexpr const char* kName = "diagonal_gru_960fca61";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v8 = gates_x[0] + gates_h[0];
    const V v9 = Sigmoid::forward(v8);
    const V v10 = gates_x[1] + gates_h[1];
    const V v11 = Sigmoid::forward(v10);
    const V v12 = gates_h[2] * v9;
    const V v13 = gates_x[2] + v12;
    const V v14 = Tanh::forward(v13);
    const V v15 = states_prev[0] - v14;
    const V v16 = v11 * v15;
    const V v17 = v14 + v16;
    saved[0] = gates_h[2];
    saved[1] = v9;
    saved[2] = v11;
    saved[3] = v14;
    states[0] = v17;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[1];
    given[0] = dstates[0];
    const V v15 = states_prev[0] - saved[3];
    const V v19 = given[0] * saved[2];
    const V v20 = given[0] * v15;
    const V v21 = -v19;
    const V v22 = given[0] + v21;
    const V v23 = saved[3] * saved[3];
    const V v24 = constant<V>(1.0) - v23;
    const V v25 = v22 * v24;
    const V v26 = saved[1] * v25;
    const V v27 = saved[0] * v25;
    const V v28 = constant<V>(1.0) - saved[2];
    const V v29 = saved[2] * v28;
    const V v30 = v20 * v29;
    const V v31 = constant<V>(1.0) - saved[1];
    const V v32 = saved[1] * v31;
    const V v33 = v27 * v32;
    dgates_x[0] = v33;
    dgates_x[1] = v30;
    dgates_x[2] = v25;
    dgates_h[0] = v33;
    dgates_h[1] = v30;
    dgates_h[2] = v26;
    dstates[0] = v19;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct DiagonalLstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4;
  static constexpr int kUnitWeights = 4, kStages = 0;
  static constexpr bool kSharedGates = true, kFree = false;
  static constexpr const char* kName = "diagonal_lstm_3b575946";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v12 = gates_x[0] + gates_h[0];
    const V v13 = gates_x[1] + gates_h[1];
    const V v14 = gates_x[2] + gates_h[2];
    const V v15 = gates_x[3] + gates_h[3];
    const V v16 = Sigmoid::forward(v13);
    const V v17 = states_prev[1] * v16;
    const V v18 = Sigmoid::forward(v12);
    const V v19 = Tanh::forward(v14);
    const V v20 = v18 * v19;
    const V v21 = settled(v17) + v20;
    const V v22 = Sigmoid::forward(v15);
    const V v23 = Tanh::forward(v21);
    const V v24 = v22 * v23;
    saved[0] = v16;
    saved[1] = v18;
    saved[2] = v19;
    saved[3] = v22;
    states[0] = v24;
    states[1] = v21;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[2];
    given[0] = dstates[0];
    given[1] = dstates[1];
    const V v17 = states_prev[1] * saved[0];
    const V v20 = saved[1] * saved[2];
    const V v21 = settled(v17) + v20;
    const V v23 = Tanh::forward(v21);
    const V v26 = given[0] * saved[3];
    const V v27 = given[0] * v23;
    const V v28 = v23 * v23;
    const V v29 = constant<V>(1.0) - v28;
    const V v30 = v26 * v29;
    const V v31 = given[1] + v30;
    const V v32 = constant<V>(1.0) - saved[3];
    const V v33 = saved[3] * v32;
    const V v34 = v27 * v33;
    const V v35 = saved[1] * v31;
    const V v36 = saved[2] * v31;
    const V v37 = saved[2] * saved[2];
    const V v38 = constant<V>(1.0) - v37;
    const V v39 = v35 * v38;
    const V v40 = constant<V>(1.0) - saved[1];
    const V v41 = saved[1] * v40;
    const V v42 = v36 * v41;
    const V v43 = saved[0] * v31;
    const V v44 = states_prev[1] * v31;
    const V v45 = constant<V>(1.0) - saved[0];
    const V v46 = saved[0] * v45;
    const V v47 = v44 * v46;
    dgates_x[0] = v42;
    dgates_x[1] = v47;
    dgates_x[2] = v39;
    dgates_x[3] = v34;
    dgates_h[0] = v42;
    dgates_h[1] = v47;
    dgates_h[2] = v39;
    dgates_h[3] = v34;
    dstates[0] = constant<V>(0.0);
    dstates[1] = v43;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct LightGru {
  static constexpr int kGates = 2, kStates = 1, kSaved = 2;
  static constexpr int kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = true, kFree = false;
  static constexpr const char* kName = "light_gru_bc0b6928";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v6 = gates_x[0] + gates_h[0];
    const V v7 = Sigmoid::forward(v6);
    const V v8 = gates_x[1] + gates_h[1];
    const V v10 = maximum(v8, constant<V>(0.0));
    const V v11 = states_prev[0] - v10;
    const V v12 = v7 * v11;
    const V v13 = v10 + v12;
    saved[0] = v7;
    saved[1] = v10;
    states[0] = v13;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[1];
    given[0] = dstates[0];
    const V v11 = states_prev[0] - saved[1];
    const V v15 = given[0] * saved[0];
    const V v16 = given[0] * v11;
    const V v17 = -v15;
    const V v18 = given[0] + v17;
    const V v19 = where_less_equal(saved[1], constant<V>(0.0), V(1), V(0));
    const V v20 = where_less_equal(saved[1], constant<V>(0.0), constant<V>(0.0), v18);
    const V v21 = constant<V>(1.0) - saved[0];
    const V v22 = saved[0] * v21;
    const V v23 = v16 * v22;
    dgates_x[0] = v23;
    dgates_x[1] = v20;
    dgates_h[0] = v23;
    dgates_h[1] = v20;
    dstates[0] = v15;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

struct MinimalGatedUnit {
  static constexpr int kGates = 2, kStates = 1, kSaved = 3;
  static constexpr int kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = false, kFree = false;
  static constexpr const char* kName = "minimal_gated_unit_0a190d95";

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math&, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* w_unit, V* states, V* saved) {
    (void)gates_x, (void)gates_h, (void)states_prev, (void)w_unit, (void)saved;
    const V v6 = gates_x[0] + gates_h[0];
    const V v7 = Sigmoid::forward(v6);
    const V v8 = gates_h[1] * v7;
    const V v9 = gates_x[1] + v8;
    const V v10 = Tanh::forward(v9);
    const V v11 = v10 - states_prev[0];
    const V v12 = v7 * v11;
    const V v13 = states_prev[0] + v12;
    saved[0] = gates_h[1];
    saved[1] = v7;
    saved[2] = v10;
    states[0] = v13;
  }

  // What it reads is kept, whatever becomes of the states.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V*, const V*, V*) {}

  // Never called: nothing projects its output.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V*, const V*, const V* states) {
    return states[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math&, const V* saved, const V* states_prev,
                                        const V* states, const V* w_unit, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dw_unit) {
    V given[1];
    given[0] = dstates[0];
    const V v11 = saved[2] - states_prev[0];
    const V v15 = given[0] * saved[1];
    const V v16 = given[0] * v11;
    const V v17 = -v15;
    const V v18 = given[0] + v17;
    const V v19 = saved[2] * saved[2];
    const V v20 = constant<V>(1.0) - v19;
    const V v21 = v15 * v20;
    const V v22 = saved[1] * v21;
    const V v23 = saved[0] * v21;
    const V v24 = settled(v16) + v23;
    const V v25 = constant<V>(1.0) - saved[1];
    const V v26 = saved[1] * v25;
    const V v27 = v24 * v26;
    dgates_x[0] = v27;
    dgates_x[1] = v21;
    dgates_h[0] = v27;
    dgates_h[1] = v22;
    dstates[0] = v18;
    (void)states_prev, (void)w_unit, (void)saved, (void)states, (void)given, (void)dw_unit;
  }
};

}  // namespace bptt
