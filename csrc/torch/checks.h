// Checks of an op's arguments. Every message names the op, the argument, what was expected and what
// came. The Python layers check the same earlier and in their users' words; these guard the ops
// themselves, which anyone may call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
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

// The sizes that a tensor is to have. On the stack: these ops are called in loops.
class TensorShape {
 public:
  TensorShape(std::initializer_list<int64_t> sizes) : TensorShape(sizes.begin(), sizes.size()) {}
  TensorShape(const std::vector<int64_t>& sizes) : TensorShape(sizes.data(), sizes.size()) {}

  size_t size() const { return rank_; }
  int64_t operator[](size_t k) const { return sizes_[k]; }
  int64_t& operator[](size_t k) { return sizes_[k]; }
  const int64_t* data() const { return sizes_; }

  bool of(const Tensor& tensor) const {
    const auto sizes = tensor.sizes();
    if (sizes.size() != rank_) return false;
    for (size_t k = 0; k < rank_; ++k) {
      if (sizes[k] != sizes_[k]) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kMostRank = 8;

  TensorShape(const int64_t* sizes, size_t rank) : rank_(rank) {
    STD_TORCH_CHECK(rank <= kMostRank, "bptt: no shape has more than ", kMostRank, " sizes, got ",
                    rank);
    for (size_t k = 0; k < rank; ++k) sizes_[k] = sizes[k];
  }

  int64_t sizes_[kMostRank];
  size_t rank_;
};

template <class Sizes>
std::string shape_text(const Sizes& shape) {
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
                         const char* formula, const TensorShape& shape, ScalarType dtype) {
  check_given(op, name, tensor);
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be a CPU tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " must have dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(shape.of(tensor), op, ": ", name, " must be ", formula, " = ", shape_text(shape),
                  ", got ", shape_text(shape_of(tensor)));
}

}  // namespace bptt
