// The masks of a dropout as an array; see KeptParams.
#pragma once

#include "params.h"
#include "random_lanes.h"
#include "team.h"

namespace bptt {
namespace {

constexpr int64_t kDrawsPerTask = 1 << 12;

template <class T>
void draw_kept_row(const KeptParams& p, int64_t row) {
  constexpr int kLanes = Vec<T>::kLanes;
  const double q = p.probability;
  const T scale = static_cast<T>(q < 1 ? 1 / (1 - q) : 0);
  T* const out = static_cast<T*>(p.out) + row * p.columns;
  for (int64_t column = 0; column < p.columns; column += kLanes) {
    WordRaw words[4];
    draw_lanes(p.seed, static_cast<Draw>(p.draw), column, row % p.rows, 0, row / p.rows, words);
    const int64_t left = p.columns - column;
    store(out + column, choose(words[0], q, T(0), scale),
          static_cast<int>(left < kLanes ? left : kLanes));
  }
}

template <class T>
void draw_kept(const KeptParams& params, const ThreadPool& pool) {
  struct Job {
    const KeptParams* params;
    int64_t rows, rows_per_task;
  } job{&params, params.directions * params.rows, kDrawsPerTask / params.columns + 1};
  if (params.columns == 0) return;
  pool.parallel_for((job.rows + job.rows_per_task - 1) / job.rows_per_task,
                    [](int64_t begin, int64_t end, void* context) {
                      const Job& job = *static_cast<Job*>(context);
                      const int64_t last = end * job.rows_per_task;
                      for (int64_t k = begin * job.rows_per_task; k < job.rows && k < last; ++k) {
                        draw_kept_row<T>(*job.params, k);
                      }
                    },
                    &job);
}

}  // namespace
}  // namespace bptt
