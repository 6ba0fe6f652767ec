// How the workers of a CPU team share one layer: plain arithmetic, tested through bptt._dev.
#pragma once

#include <cstdint>

#include "params.h"

namespace bptt {

// Workers of a direction form a grid: `row_slices` slices of the batch times `unit_slices` slices
// of the hidden units. Row slices never wait for each other; unit slices exchange the hidden state
// at a barrier in every step.
struct Plan {
  int lanes;  // directions that run at the same time
  int row_slices;
  int unit_slices;
  int workers() const { return lanes * row_slices * unit_slices; }
};

// `threads` is the most workers to use; `gates` is G; `vector` the elements of a vector register.
// With `whole_rows` a worker has all units of its rows.
Plan plan_cpu(const Sizes& sizes, int gates, int vector, int threads, bool whole_rows = false);

// A matrix product is cut into rectangles, one for each thread.
struct MatrixGrid {
  int rows, columns;
  int tasks() const { return rows * columns; }
};

MatrixGrid plan_matrix(const MatrixParams& params, int threads);

// [begin, end) of part `index` when `total` is cut into `parts` nearly equal runs.
struct Range {
  int64_t begin, end;
};
inline __attribute__((always_inline)) Range cut(int64_t total, int parts, int index) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace bptt
