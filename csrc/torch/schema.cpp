// Schemas of torch.ops.bptt. Backends implement them per device; `backend` records which one a
// forward pass ran, so that its backward pass runs the same. Shapes: csrc/engine/params.h.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(bptt, m) {
  // The input comes projected, as gates_x [T, B, D, G, H], or as x [T, B, I] with w_ih [D, G*H, I].
  // keep: what the backward pass will want, "nothing", "states" (cells) or "gates" (saved as well).
  // control: what the loop does besides, python/bptt/recurrence/control.py; with a seed [1] where
  // it draws.
  m.def(
      "recurrence_forward(str backend, str cell, Tensor? gates_x, Tensor? x, Tensor? w_ih, "
      "Tensor? b_ih, Tensor w_hh, Tensor? b_hh, Tensor? w_hr, Tensor? w_unit, Tensor h0, "
      "Tensor? c0, Tensor? lengths, Tensor? resets, int[] reverse, str keep, float[] control=[], "
      "Tensor? seed=None) "
      "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor cells)");
  // Layers of D directions without gradients, on a CPU: x [T, B, I], states [L*D, B, H]; y [T, B,
  // D*H]. weights, of each direction of each layer: w_ih [G*H, I], w_hh [G*H, H] and, with
  // has_bias, b_ih and b_hh [G*H]. Of one layer of one direction x may be [B, I], a step: then
  // states and y are [B, H], and y is the hidden state, too. What a call has not, h_n then and c_n
  // of most cells, is None. For eager mode alone: it has no rules for autograd, tracing or
  // transforms.
  m.def(
      "plain_forward(str cell, Tensor x, Tensor[] weights, bool has_bias, Tensor? h0, Tensor? c0, "
      "bool bidirectional=False) -> (Tensor y, Tensor h_n, Tensor c_n)");
  // The same for a backward pass to come, which gets `kept` back.
  m.def(
      "plain_training(str cell, Tensor x, Tensor[] weights, bool has_bias, Tensor? h0, Tensor? c0, "
      "bool bidirectional=False) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor[] kept)");
  // All gradients of a short call, of x, h0, c0 and the weights, as far as `needed`, a flag for
  // each, asks for them; the others are undefined. In float32 or float64, for cells with one
  // product in a step. Without h0 or c0 they were zeros.
  m.def(
      "plain_gradients(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, "
      "Tensor[] weights, bool has_bias, Tensor? h0, Tensor? c0, Tensor y, Tensor[] kept, "
      "int[] needed, bool bidirectional=False) -> Tensor[]");
  // dcells: gradients of all cell states, [T, B, D, C*H] wide.
  // dh, the gradient of every hidden state: if keep_dh asks, or a projection's weights need it.
  m.def(
      "recurrence_backward(str backend, str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, "
      "Tensor y, Tensor saved, Tensor cells, Tensor w_hh, Tensor? w_hr, Tensor? w_unit, "
      "Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, int[] reverse, bool keep_dh=False, "
      "float[] control=[], Tensor? seed=None, Tensor? dcells=None) "
      "-> (Tensor dgates_x, Tensor dgates_h, Tensor dh0, Tensor dc0, Tensor dw_unit, "
      "Tensor operand, Tensor dh)");
  // All gradients of a short call on a CPU at once, of x [T, B, I] and w_ih [D, G*H, I] in float32
  // or float64: for cells with one product, without lengths, resets and other options. Those that
  // `needed`, flags for the seven, does not ask for are empty. For eager mode alone, as
  // plain_forward.
  m.def(
      "short_gradients(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, Tensor saved, "
      "Tensor cells, Tensor x, Tensor w_ih, Tensor w_hh, Tensor h0, Tensor? c0, int[] reverse, "
      "int[] needed) -> (Tensor dx, Tensor dw_ih, Tensor db_ih, Tensor dw_hh, Tensor db_hh, "
      "Tensor dh0, Tensor dc0)");
  // start [M, N] + a [M, K] @ b [K, N], float32 or float64: gradients that are one product over all
  // steps. The result is dense, and the same to the bit for any number of threads.
  m.def("matrix_product(Tensor a, Tensor b, Tensor? start) -> Tensor");
  // The same with row k of b multiplied elementwise with row k % P of mask [P, N]; has no
  // gradients.
  m.def("masked_product(Tensor a, Tensor b, Tensor? start, Tensor mask) -> Tensor");
  // Masks of a dropout on a CPU, [D, N, M]: 0 or 1 / (1 - probability), float64 if wide, else
  // float32. draw: `Draw` of csrc/engine/random.h.
  m.def("kept(Tensor seed, float probability, int[] shape, int draw, bool wide) -> Tensor");
  m.def("cpu_instruction_set() -> str");
  // What multiplies bfloat16: csrc/engine/dots.h.
  m.def("cpu_bfloat16_products() -> str");
  // Makes the cell of a library known to the cpu backend: csrc/engine/custom.h.
  m.def("load_cell(str path) -> ()");
  // How the cpu backend would share sizes [T, B, D, H, R] among torch's threads: lanes, row slices,
  // unit slices, elements of a vector register.
  m.def("cpu_plan(str cell, int element_size, int[] sizes) -> int[]");

  // The cuda backend, below recurrence_forward and recurrence_backward: they write into tensors
  // that they are given; `refused` says that the device had no room for the plan and the step tier
  // ran. gpu_device: capability, processors, bytes of shared memory of a block, MHz, and how many
  // clusters of 1 to 16 blocks it holds at a time, 0 where that is not known; an error where no
  // kernel of this build can start there.
  m.def("gpu_device(int index) -> int[]");
  // For benchmarks: a launch of out.numel() blocks that exchange a few words `rounds` times in a
  // tier; out, int32, gets how many rounds went right in each.
  m.def("gpu_exchange(str tier, int rounds, Tensor(a!) out) -> ()");
  m.def(
      "gpu_plan(str cell, str number, int[] sizes, bool projected, bool backward, int[] device, "
      "str tier, bool controlled=False, bool norms=False) -> int[]");
  m.def(
      "gpu_forward(str cell, str number, int[] plan, Tensor gates_x, Tensor? b_ih, Tensor w_hh, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? w_unit, Tensor h0, Tensor? c0, Tensor? lengths, "
      "Tensor? resets, int[] reverse, float[] control, Tensor? seed, "
      "Tensor(a!) y, Tensor(b!) h_n, Tensor(c!)? c_n, Tensor(d!)? saved, Tensor(e!)? cells) "
      "-> bool refused");
  m.def(
      "gpu_backward(str cell, str number, int[] plan, Tensor? dy, Tensor? dh_n, Tensor? dc_n, "
      "Tensor? dcells, Tensor y, Tensor? saved, Tensor? cells, Tensor w_hh, Tensor? w_hr, Tensor? "
      "w_unit, "
      "Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, int[] reverse, float[] control, "
      "Tensor? seed, Tensor(a!) dgates_x, Tensor(b!)? dgates_h, Tensor(c!) dh0, Tensor(d!)? dc0, "
      "Tensor(e!)? dw_unit, Tensor(f!)? operand, Tensor(g!)? dh) -> bool refused");
}
