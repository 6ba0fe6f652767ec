// Checks of an op's arguments. Every message names the op, the argument, what was expected and what
// came. The Python layers check the same earlier and in their users' words; these guard the ops
// themselves, which anyone may call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace bptt {

// A string argument. torch's own conversion to std::string leaves its copy on the heap at every
// call (torch 2.11 to 2.13), and these ops are called in loops.
struct Text {
  std::string value;
};

}  // namespace bptt

namespace torch::stable::detail {
template <>
struct ToImpl<bptt::Text> {
  static bptt::Text call(StableIValue from, uint64_t, bool) {
    StringHandle handle = to<StringHandle>(from);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    bptt::Text text{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
}  // namespace torch::stable::detail

namespace bptt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t k = 0; k < shape.size(); ++k) text << (k ? ", " : "") << shape[k];
  text << ']';
  return text.str();
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t k = 0; k < tensor.dim(); ++k) shape.push_back(tensor.size(k));
  return shape;
}

// None for a required tensor reaches an op as an undefined one.
inline void check_given(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.defined(), op, ": ", name, " must be a tensor, got None");
}

inline void check_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank) {
  check_given(op, name, tensor);
  STD_TORCH_CHECK(tensor.dim() == rank, op, ": ", name, " must have ", rank,
                  " dimensions, got shape ", shape_text(shape_of(tensor)));
}

inline void check_tensor(const char* op, const char* name, const Tensor& tensor,
                         const char* formula, const std::vector<int64_t>& shape, ScalarType dtype) {
  check_given(op, name, tensor);
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be a CPU tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " must have dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(shape_of(tensor) == shape, op, ": ", name, " must be ", formula, " = ",
                  shape_text(shape), ", got ", shape_text(shape_of(tensor)));
}

}  // namespace bptt
