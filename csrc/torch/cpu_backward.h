// The backward pass on a CPU, for the ops that go on with what it makes.
#pragma once

#include <tuple>

#include "cpu_call.h"

namespace bptt {

// dgates_x, dgates_h, dh0, dc0, dw_unit, operand, dh; empty where a cell or a call has none.
using BackwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// bptt::recurrence_backward for dtypes but float16. `stored_error` is what rounding may have taken
// from a value of y, as a share of it.
BackwardOutputs run_backward(Text backend, Text cell_name, MaybeTensor dy, MaybeTensor dh_n,
                             MaybeTensor dc_n, Tensor y, Tensor saved, Tensor cells, Tensor w_hh,
                             MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0, MaybeTensor c0,
                             MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
                             bool keep_dh, std::vector<double> control, MaybeTensor seed,
                             MaybeTensor dcells, double stored_error);

}  // namespace bptt
