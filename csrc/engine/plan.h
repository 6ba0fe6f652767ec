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

// For how many microseconds a call waits for the other workers of its team: half the time it would
// take alone. A thread that sleeps takes longer to come than a short call takes.
int64_t plan_patience(const Sizes& sizes, int gates);

// What a call does with its weights: pack them all beforehand, or leave them as they lie, and then
// pack a panel for each product of a step, or take dot products.
struct Lying {
  bool lies;
  bool input_by_panel, state_by_panel;  // where they lie
};

// `bytes` of weights, of which half meet the input once, if there `has_input`, and the rest, or
// all, `batch` rows in each of `steps`. `gates`: bytes of projected inputs that would be written
// and read, but not with packed weights.
Lying plan_lying(int64_t bytes, int64_t steps, int64_t batch, bool has_input, int64_t gates);

// The same of columns, which the backward loop multiplies `batch` rows with, `products` times.
Lying plan_columns(int64_t bytes, int64_t products, int64_t batch);

// Puts the numbers of `batch` rows into `order`, the longest first, those of a length as they come.
void order_rows(const int64_t* lengths, int64_t batch, int64_t* order);

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
// The same where the first parts are the longer ones: as many as `total` cards dealt in turn.
inline __attribute__((always_inline)) Range deal(int64_t total, int parts, int index) {
  const int64_t least = total / parts, more = total % parts;
  const int64_t begin = index * least + (index < more ? index : more);
  return {begin, begin + least + (index < more ? 1 : 0)};
}

}  // namespace bptt
