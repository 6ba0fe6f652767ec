// What the forward and the backward loop share: a worker's part of a layer, and its scratch memory.
#pragma once

#include <new>

#include "lying.h"
#include "params.h"
#include "plan.h"
#include "product.h"
#include "team.h"

namespace bptt {
namespace {

BPTT_INLINE int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Elements from one row of `width` to the next where a product reads many of them: at some
// distances they would all lie in the same few sets of a cache.
template <class T>
int64_t row_distance(int64_t width) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t lines = (width + line - 1) / line;
  return (lines % 8 == 0 ? lines + 1 : lines) * line;
}

// Hands out pieces of one block of memory; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Which rows take part in a step, and which start it from a zero state.
struct Masks {
  const int64_t* lengths;
  const bool* resets;
  int64_t steps, batch;

  BPTT_INLINE bool none() const { return lengths == nullptr && resets == nullptr; }
  BPTT_INLINE int64_t length(int64_t b) const { return lengths == nullptr ? steps : lengths[b]; }
  BPTT_INLINE bool active(int64_t t, int64_t b) const { return t < length(b); }
  BPTT_INLINE bool clears(int64_t t, int64_t b) const {
    return resets != nullptr && t >= 0 && t < steps && resets[t * batch + b] && active(t, b);
  }
};

// What the workers of a team have before anyone comes.
template <class Loop>
struct Shared {
  Barrier* barriers;
  int64_t* longest_first;  // [B], rows; null where they are taken as they come

  template <class Params>
  Shared(Arena& arena, const Params& p, int threads)
      : barriers(arena.take<Barrier>(2 * threads)), longest_first(nullptr) {
    if (Loop::kSorts && p.in.lengths != nullptr) longest_first = arena.take<int64_t>(p.sizes.batch);
  }
};

// One worker's part: rows of the batch, and blocks of units, as the plan cuts them.
struct Part {
  Plan plan;
  int lane;  // the first direction it works on; then every plan.lanes-th
  int row_slice, unit_slice;
  Range rows;  // by their places in scratch memory
  const int64_t* longest_first;
  int64_t first_row;  // where rows of the slice begin, of which `rows` may be a block
  Barrier* lane_barrier;
  Barrier* slice_barrier;

  // The row of the batch that has a place: where the longest come first, they are dealt out.
  BPTT_INLINE int64_t row(int64_t place) const {
    if (longest_first == nullptr) return place;
    return longest_first[(place - first_row) * plan.row_slices + row_slice];
  }

  // Whether no row that takes part in a step needs to be asked.
  bool masks_by_order(const Masks& masks) const {
    return longest_first != nullptr && masks.resets == nullptr;
  }
  int lane_members() const { return plan.row_slices * plan.unit_slices; }
  int lane_index() const { return row_slice * plan.unit_slices + unit_slice; }
  // Waits for everyone who packs weights for this direction.
  void meet_lane() const { lane_barrier->wait(lane_members()); }
  // Waits for everyone who shares rows with this worker.
  void meet_slice() const { slice_barrier->wait(plan.unit_slices); }
};

template <class Loop>
Part make_part(const Sizes& s, const Plan& plan, const Shared<Loop>& shared, int worker) {
  Part part;
  part.plan = plan;
  const int members = plan.row_slices * plan.unit_slices;
  part.lane = worker / members;
  part.row_slice = worker % members / plan.unit_slices;
  part.unit_slice = worker % plan.unit_slices;
  part.rows = deal(s.batch, plan.row_slices, part.row_slice);
  part.longest_first = shared.longest_first;
  part.first_row = part.rows.begin;
  part.lane_barrier = shared.barriers + part.lane;
  part.slice_barrier = shared.barriers + plan.lanes + part.lane * plan.row_slices + part.row_slice;
  return part;
}

// Blocks per panel: four vectors wide where that leaves a panel for every slice of the units.
template <class T>
int panel_blocks(int64_t units, int gates, int slices) {
  const int64_t blocks = (units + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
  const int64_t share = (blocks + slices - 1) / slices;
  const int64_t widest = kPanelVectors / gates > 1 ? kPanelVectors / gates : 1;
  return static_cast<int>(share < widest ? (share < 1 ? 1 : share) : widest);
}

// How a loop's weights are multiplied, and by how many workers.
struct Handling {
  int slices, workers;  // of the units; of all
  bool lies, by_panel;
  const Dots* dots;  // or null
};

// What multiplies numbers of type S, or null where they become float32.
template <class S>
const Dots* dots_of(const Sizes& sizes) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const Dots* const dots = sizes.dots;
    if (dots != nullptr && Vec<float>::kLanes % dots->lanes == 0) return dots;
  }
  return nullptr;
}

// Packed weights, or those that lie without memory of their own but for a panel of each worker.
template <class S, class T>
Packed<T> make_weights(Arena& arena, int64_t units, int gates, int64_t depth, const Handling& by) {
  Packed<T> weights{nullptr, depth, units, gates, panel_blocks<T>(units, gates, by.slices)};
  if (by.lies && !by.by_panel) {
    weights.multiply = lying_tile<S, T>;
    return weights;
  }
  if (by.dots != nullptr && depth > 0) {
    weights.dots = by.dots;
    weights.numbers = depth;
    weights.depth = round_up((depth + 1) / 2, kDotPairs);
    weights.pairs = arena.take<T>(by.workers * kPairRows * weights.depth);
  }
  if (by.lies) weights.pack = pack_lying<S, T>;
  weights.data = arena.take<T>(by.lies ? by.workers * weights.panel_elements()  //
                                       : weights.elements());
  return weights;
}

// The same of a matrix [depth, units].
template <class S, class T>
Packed<T> make_columns(Arena& arena, int64_t units, int64_t depth, const Handling& by) {
  Packed<T> columns = make_weights<S, T>(arena, units, 1, depth, by);
  columns.lying_stride = units;
  if (columns.multiply != nullptr) columns.multiply = columns_tile<S, T>;
  if (columns.pack != nullptr) columns.pack = pack_lying_columns<S, T>;
  return columns;
}

// Calls body(panel) for the panels that fall to part `index` of `parts`.
template <class T, class Body>
BPTT_INLINE void for_panels(const Packed<T>& packed, int parts, int index, Body body) {
  const Range range = cut(packed.panels(), parts, index);
  for (int64_t p = range.begin; p < range.end; ++p) body(p);
}

// The units that a worker has.
template <class T>
Range units_of(const Packed<T>& packed, int parts, int index) {
  const Range panels = cut(packed.panels(), parts, index);
  const auto unit = [&](int64_t p) {
    return p < packed.panels() ? p * packed.panel_units() : packed.units;
  };
  return {unit(panels.begin), unit(panels.end)};
}

// Calls body(first_unit, count) for each vector of units in the panels of a worker.
template <class T, class Body>
BPTT_INLINE void for_blocks(const Packed<T>& packed, int parts, int index, Body body) {
  const Range range = cut(packed.panels(), parts, index);
  const int64_t end_block = range.end * packed.panel_blocks;
  const int64_t last = end_block < packed.blocks() ? end_block : packed.blocks();
  for (int64_t k = range.begin * packed.panel_blocks; k < last; ++k) {
    const int64_t first = k * Packed<T>::kLanes;
    const int64_t left = packed.units - first;
    body(first, static_cast<int>(left < Packed<T>::kLanes ? left : Packed<T>::kLanes));
  }
}

template <int N>
struct RowCount {
  static constexpr int value = N;
};

// A place in scratch memory, and the row of the batch that has it.
struct At {
  int64_t place;
  int64_t row;
  int64_t apart;  // from it to the row of the next place
  BPTT_INLINE operator int64_t() const { return place; }
};
// Of N places from this one on.
template <int N>
BPTT_INLINE At at(const Part& part, int64_t place) {
  const int64_t row = part.row(place);
  return {place, row, N == 1 ? 0 : part.row(place + N - 1) - row};
}

// Of a worker's rows, those that take part in step t: the first ones, where the longest come first.
inline Range rows_at(const Part& part, const Masks& masks, int64_t t) {
  Range rows = part.rows;
  if (part.longest_first == nullptr) return rows;
  for (int64_t least = rows.begin; least < rows.end;) {
    const int64_t middle = least + (rows.end - least) / 2;
    if (masks.active(t, part.row(middle))) {
      least = middle + 1;
    } else {
      rows.end = middle;
    }
  }
  return rows;
}

// Calls body(RowCount<N>, row) for every row of the range, two rows at a time where `pairs` allows;
// code for that is only made with kPairs.
template <bool kPairs, class Body>
BPTT_INLINE void for_row_groups(Range range, bool pairs, Body body) {
  int64_t b = range.begin;
  if constexpr (kPairs) {
    for (; pairs && b + 2 <= range.end; b += 2) body(RowCount<2>(), b);
  }
  for (; b < range.end; ++b) body(RowCount<1>(), b);
}

// The product of some rows and one block of units: a vector per gate, rows `stride` elements apart.
template <class T>
struct Block {
  int64_t row, unit;
  int count;  // units that exist
  const T* product;
  int64_t stride;
};

// As `multiply`, of rows that are what a product takes.
template <bool kPairs, class T, class Consume>
BPTT_INLINE void multiply_rows(const Packed<T>& weights, const Part& part, Range range,
                               const T* rows, int64_t row_stride, bool pairs, Consume consume) {
  constexpr int lanes = Packed<T>::kLanes;
  for_panels(weights, part.plan.unit_slices, part.unit_slice, [&](int64_t p) {
    multiply_panel<Layout::kDenseRows>(
        weights, p, rows, row_stride, range.begin, range.end,
        [&](int64_t first_row, int height, const T* tile, int vectors) {
          for (int v = 0; v < vectors; v += weights.gates) {
            const int64_t unit = p * weights.panel_units() + v / weights.gates * lanes;
            const int64_t left = weights.units - unit;
            const int count = static_cast<int>(left < lanes ? left : lanes);
            const int64_t stride = vectors * lanes;
            for_row_groups<kPairs>({0, height}, pairs, [&](auto rows, int64_t r) {
              consume(rows,
                      Block<T>{first_row + r, unit, count, tile + r * stride + v * lanes, stride});
            });
          }
        });
  });
}

// Calls body(range, rows, stride) for `range` of the rows or, where pairs are multiplied, some of
// them at a time, which have become pairs.
template <class T, class Body>
BPTT_INLINE void for_operands(const Packed<T>& weights, const Part& part, Range range,
                              const T* rows, int64_t stride, Body body) {
  const bool by_dots = weights.by_dots();
  const int64_t most = by_dots ? kPairRows : range.end - range.begin;
  if (by_dots) weights.dots->begin();
  for (Range some{range.begin, range.begin}; some.begin < range.end; some.begin = some.end) {
    some.end = some.begin + most < range.end ? some.begin + most : range.end;
    const T* from = rows;
    int64_t by = stride;
    if constexpr (std::is_same_v<T, float>) {
      if (by_dots) {
        by = weights.depth;
        float* const pairs = weights.pairs + part.lane_index() * kPairRows * by;
        make_pairs(rows + some.begin * stride, stride, some.end - some.begin, weights.numbers, by,
                   pairs);
        from = pairs - some.begin * by;
      }
    }
    body(some, from, by);
  }
  if (by_dots) weights.dots->end();
}

// Multiplies `range` of the rows by a worker's panels; consume(RowCount, Block) gets one or, with
// `pairs`, two rows.
template <bool kPairs, class T, class Consume>
BPTT_INLINE void multiply(const Packed<T>& weights, const Part& part, Range range, const T* rows,
                          int64_t row_stride, bool pairs, Consume consume) {
  for_operands(weights, part, range, rows, row_stride, [&](Range some, const T* from, int64_t by) {
    multiply_rows<kPairs>(weights, part, some, from, by, pairs, consume);
  });
}

// A worker takes its rows through all steps some at a time, so few that a near cache holds their
// states; but enough of them for each weight that comes from afar.
constexpr int64_t kBlockBytes = 512 << 10;
constexpr int64_t kBlockRows = 256;

// Of `count` rows, each of which takes `bytes` in a product, the most in a block.
inline int64_t rows_of_block(int64_t count, int64_t bytes) {
  const int64_t near = kBlockBytes / bytes, most = near > kBlockRows ? near : kBlockRows;
  return count < most ? count : most;
}
// Of all rows of a batch, the most that a worker of `slices` has in a block.
inline int64_t rows_of_slice(int64_t batch, int slices, int64_t bytes) {
  return rows_of_block((batch + slices - 1) / slices, bytes);
}

// Makes each block of a worker's rows the part it has, in the same scratch memory, and calls
// start() and, once all who share it have started, run(); at least once.
template <class Scratch, class Start, class Run>
void for_row_blocks(Part& part, Scratch& scratch, int64_t bytes, Start start, Run run) {
  const Range rows = part.rows;
  const Scratch whole = scratch;
  const int64_t count = rows.end - rows.begin, most = rows_of_block(count, bytes);
  const int blocks = static_cast<int>(count > most ? (count + most - 1) / most : 1);
  for (int k = 0; k < blocks; ++k) {
    const Range block = cut(count, blocks, k);
    part.rows = {rows.begin + block.begin, rows.begin + block.end};
    scratch.begin_at(part.rows.begin, part.row_slice);
    start();
    k == 0 ? part.meet_lane() : part.meet_slice();
    run();
    scratch = whole;
  }
  part.rows = rows;
}

template <class Loop, class Params>
Plan plan_of(const Params& params, int threads) {
  const bool whole_rows = Loop::needs_whole_rows(params.in.control);
  return plan_cpu(params.sizes, Loop::kGates, Loop::V::kLanes, threads, whole_rows);
}

// Runs Loop::direction for every direction on a team; Loop is constructed once per worker.
template <class Loop, class Params>
void run_on_team(const Params& params, const ThreadPool& pool, void* scratch) {
  Arena arena(scratch);
  const Shared<Loop> shared(arena, params, pool.count);
  struct Job {
    const Params* params;
    Shared<Loop> shared;
    void* scratch;
    int threads;
  } job{&params, shared, scratch, pool.count};
  const Plan most = plan_of<Loop>(params, pool.count);
  for (int k = 0; k < 2 * pool.count; ++k) new (shared.barriers + k) Barrier;
  if (shared.longest_first != nullptr) {
    order_rows(params.in.lengths, params.sizes.batch, shared.longest_first);
  }
  run_team(
      pool, most.workers(), plan_patience(params.sizes, Loop::kGates),
      [](int worker, int workers, void* context) {
        const Job& job = *static_cast<Job*>(context);
        const Sizes& sizes = job.params->sizes;
        const Plan plan = plan_of<Loop>(*job.params, workers);
        if (worker >= plan.workers()) return;
        const Part part = make_part(sizes, plan, job.shared, worker);
        Loop loop(*job.params, part,
                  lane_scratch<Loop>(*job.params, part, job.scratch, job.threads));
        for (int64_t d = part.lane; d < sizes.directions; d += plan.lanes) {
          loop.direction(d);
          part.meet_lane();  // the next direction packs its weights over these
        }
      },
      &job);
}

// Bytes of scratch memory that `run_on_team` needs with up to `threads` workers: the most that any
// team takes which may form, as a smaller one may cut the work otherwise.
template <class Loop, class Params>
int64_t scratch_bytes(const Params& params, int threads) {
  int64_t most = 0;
  for (int workers = plan_of<Loop>(params, threads).workers(); workers >= 1; --workers) {
    Arena arena(nullptr);
    const Shared<Loop> shared(arena, params, threads);
    const Plan plan = plan_of<Loop>(params, workers);
    for (int lane = 0; lane < plan.lanes; ++lane) {
      typename Loop::Scratch scratch(arena, params, plan.unit_slices, plan.row_slices);
    }
    if (arena.used() > most) most = arena.used();
  }
  return most;
}

template <class Loop, class Params>
typename Loop::Scratch lane_scratch(const Params& params, const Part& part, void* base,
                                    int threads) {
  Arena arena(base);
  const Shared<Loop> shared(arena, params, threads);
  for (int lane = 0; lane < part.lane; ++lane) {
    typename Loop::Scratch skipped(arena, params, part.plan.unit_slices, part.plan.row_slices);
  }
  return typename Loop::Scratch(arena, params, part.plan.unit_slices, part.plan.row_slices);
}

}  // namespace
}  // namespace bptt
