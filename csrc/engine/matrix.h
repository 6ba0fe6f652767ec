// The matrix products after a backward loop: input and weight gradients, over all steps at once.
//
// The same tiles as the recurrent product, in blocks that fit the caches. The sum over the depth is
// cut at fixed places, so that neither threads nor tiles change a bit of the result.
#pragma once

#include "worker.h"

namespace bptt {
namespace {

template <class T>
class MatrixTask {
 public:
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int64_t kDepth = 384;   // of a block; a panel of B and a tile of A stay near
  static constexpr int64_t kHeight = 256;  // rows of A in a block
  static constexpr int64_t kFewRows = 8;   // too few to pack B for
  static constexpr int64_t kStreamedBytes = 8 << 20;
  static constexpr int64_t kShallow = 8;  // a depth that is no work for tiles
  // A block of A that comes transposed is copied, as its columns may lie on a page each. An odd
  // number of cache lines between them spreads them over all sets of the cache.
  static int64_t copy_stride(int64_t height) {
    return height + 64 / static_cast<int64_t>(sizeof(T));
  }

  // Half as high where there are few rows: what the copy takes is much beside a small product.
  static int64_t height_of(Range rows) {
    return rows.end - rows.begin > kHeight ? kHeight : kHeight / 2;
  }

  struct Scratch {
    T* a;  // [depth of a block, copy_stride], where A comes transposed
    T* b;  // a block of B in panels

    Scratch(Arena& arena, const MatrixParams& p, Range rows, int64_t columns) {
      const int64_t depth = p.depth < kDepth ? p.depth : kDepth;
      a = arena.take<T>(transposed(p) ? depth * copy_stride(height_of(rows)) : 0);
      b = arena.take<T>(packed_units(p, columns) * depth);
    }
  };

  // Task `index` of `grid` computes one rectangle of the result.
  MatrixTask(const MatrixParams& params, const MatrixGrid& grid, int index, void* scratch)
      : p_(params),
        rows_(cut(p_.rows, grid.rows, index / grid.columns)),
        columns_(cut_panels(p_.columns, grid.columns, index % grid.columns)),
        height_(height_of(rows_)),
        streams_(streams(params)),
        m_(task_scratch(params, grid, index, scratch)) {}

  void run() const {
    if (columns_.begin == columns_.end) return;
    if (p_.depth <= kShallow && p_.mask == nullptr) {
      run_shallow();
    } else {
      run_blocks();
    }
    if (streams_) streamed();
  }

  static int64_t scratch_bytes(const MatrixParams& params, const MatrixGrid& grid) {
    Arena arena(nullptr);
    for (int k = 0; k < grid.tasks(); ++k) take_scratch(arena, params, grid, k);
    return arena.used();
  }

 private:
  void run_blocks() const {
    // At least once: a product of no depth is zero.
    for (int64_t k = 0; k == 0 || k < p_.depth; k += kDepth) {
      const int64_t depth = k + kDepth < p_.depth ? kDepth : p_.depth - k;
      const int64_t units = columns_.end - columns_.begin;
      Packed<T> b{m_.b, depth, units, 1, panel_blocks<T>(units, 1, 1)};
      const T* from = static_cast<const T*>(p_.b) + k * p_.b_stride + columns_.begin;
      if (by_panel(p_)) {
        b.lie(from, 0);
        b.lying_stride = p_.b_stride;
        if (lies(p_)) {
          b.multiply = columns_tile<T, T>;
        } else {
          b.pack = pack_lying_columns<T, T>;
        }
      } else {
        for (int64_t p = 0; p < b.panels(); ++p) {
          pack_columns(b, from, p_.b_stride, p);
          if (p_.mask != nullptr) mask_panel(b, k, p);
        }
      }
      for (int64_t r = rows_.begin; r < rows_.end; r += height_) {
        const int64_t end = r + height_ < rows_.end ? r + height_ : rows_.end;
        multiply_block(b, k, {r, end});
      }
    }
  }

  static bool transposed(const MatrixParams& p) { return p.a_depth_stride != 1; }
  // Whether B is packed a panel at a time, as one block of A's rows is all there is.
  static bool by_panel(const MatrixParams& p) { return p.rows <= kHeight / 2 && p.mask == nullptr; }
  // Whether B is read as it lies.
  static bool lies(const MatrixParams& p) {
    return by_panel(p) && p.rows <= kFewRows && !transposed(p);
  }
  // Whether the result is written past the caches: it is large, and written once. A strip of it for
  // each panel would have every line read before.
  static bool streams(const MatrixParams& p) {
    const int64_t row = p.columns * static_cast<int64_t>(sizeof(T));
    return p.depth <= kLongestChain && p.start == nullptr && p.rows * row >= kStreamedBytes &&
           row % kVectorBytes == 0 && reinterpret_cast<uintptr_t>(p.out) % kVectorBytes == 0;
  }
  // Of how many of the columns there is a copy at a time.
  static int64_t packed_units(const MatrixParams& p, int64_t columns) {
    if (lies(p)) return 0;
    return round_up(by_panel(p) ? panel_blocks<T>(columns, 1, 1) * kLanes : columns, kLanes);
  }

  // Sums of a few products: what a tile would do, but with no tile between them and the result.
  template <int kDepthOf = kShallow>
  void run_shallow() const {
    if (p_.depth == kDepthOf) return sums_of<kDepthOf>();
    if constexpr (kDepthOf > 0) run_shallow<kDepthOf - 1>();
  }

  template <int kDepthOf>
  void sums_of() const {
    const T* const b = static_cast<const T*>(p_.b);
    const int64_t whole = columns_.begin + (columns_.end - columns_.begin) / kLanes * kLanes;
    for (int64_t r = rows_.begin; r < rows_.end; ++r) {
      const T* const a = static_cast<const T*>(p_.a) + r * p_.a_row_stride;
      const int64_t row = r * p_.columns;
      T* const out = static_cast<T*>(p_.out) + row;
      const T* const start = p_.start == nullptr ? nullptr : static_cast<const T*>(p_.start) + row;
      V values[kDepthOf + 1];
#pragma GCC unroll 8
      for (int k = 0; k < kDepthOf; ++k) values[k] = V(a[k * p_.a_depth_stride]);
      const auto sum_at = [&](int64_t c, auto... count) {
        V sum(T(0));
#pragma GCC unroll 8
        for (int k = 0; k < kDepthOf; ++k) {
          sum = sum + values[k] * load(b + k * p_.b_stride + c, count...);
        }
        return start == nullptr ? sum : load(start + c, count...) + sum;
      };
      if (streams_) {
        for (int64_t c = columns_.begin; c < whole; c += kLanes) stream(out + c, sum_at(c));
      } else {
        for (int64_t c = columns_.begin; c < whole; c += kLanes) store(out + c, sum_at(c));
      }
      const int rest = static_cast<int>(columns_.end - whole);
      if (rest > 0) store(out + whole, sum_at(whole, rest), rest);
    }
  }

  // Cut between panels: a panel cut in two would be two narrow ones.
  static Range cut_panels(int64_t columns, int parts, int index) {
    constexpr int64_t width = kPanelVectors * kLanes;
    const Range panels = cut((columns + width - 1) / width, parts, index);
    const int64_t end = panels.end * width;
    return {panels.begin * width < columns ? panels.begin * width : columns,
            end < columns ? end : columns};
  }

  static Scratch take_scratch(Arena& arena, const MatrixParams& params, const MatrixGrid& grid,
                              int index) {
    const Range rows = cut(params.rows, grid.rows, index / grid.columns);
    const Range columns = cut_panels(params.columns, grid.columns, index % grid.columns);
    return Scratch(arena, params, rows, columns.end - columns.begin);
  }

  static Scratch task_scratch(const MatrixParams& params, const MatrixGrid& grid, int index,
                              void* base) {
    Arena arena(base);
    for (int k = 0; k < index; ++k) take_scratch(arena, params, grid, k);
    return take_scratch(arena, params, grid, index);
  }

  void multiply_block(const Packed<T>& b, int64_t k, Range rows) const {
    const T* a = static_cast<const T*>(p_.a) + rows.begin * p_.a_row_stride + k * p_.a_depth_stride;
    if (transposed(p_)) {
      copy_block(a, b.depth, rows.end - rows.begin);
      multiply_panels<Layout::kSideBySide>(b, k, rows, m_.a, copy_stride(height_));
    } else {
      multiply_panels<Layout::kDenseRows>(b, k, rows, a, p_.a_row_stride);
    }
  }

  void mask_panel(const Packed<T>& b, int64_t k0, int64_t p) const {
    T* panel = b.panel(p);
    const int64_t first = columns_.begin + p * b.panel_units();
    for (int64_t k = 0; k < b.depth; ++k) {
      const T* mask = static_cast<const T*>(p_.mask) + (k0 + k) % p_.mask_rows * p_.columns;
      for (int v = 0; v < b.blocks_in(p); ++v, panel += kLanes) {
        const int64_t left = p_.columns - first - v * kLanes;
        const int n = static_cast<int>(left < kLanes ? left : kLanes);
        store(panel, load(panel) * load(mask + first + v * kLanes, n));
      }
    }
  }

  void copy_block(const T* from, int64_t depth, int64_t height) const {
    for (int64_t k = 0; k < depth; ++k) {
      const T* ahead = from + (k + kAhead < depth ? k + kAhead : k) * p_.a_depth_stride;
      for (int64_t r = 0; r < height; r += kLanes) {
        __builtin_prefetch(ahead + r);  // the processor itself does not see such short runs coming
        const int n = static_cast<int>(height - r < kLanes ? height - r : kLanes);
        store(m_.a + k * copy_stride(height_) + r, load(from + k * p_.a_depth_stride + r, n));
      }
    }
  }

  template <Layout kLayout>
  void multiply_panels(const Packed<T>& b, int64_t k, Range rows, const T* a,
                       int64_t stride) const {
    for (int64_t p = 0; p < b.panels(); ++p) {
      const int64_t column = p * b.panel_units();
      if (goes_to_result(b, p)) {
        multiply_whole<kLayout>(b, p, k, rows, a, stride);
        continue;
      }
      multiply_panel<kLayout>(b, p, a, stride, 0, rows.end - rows.begin,
                              [&](int64_t first, int height, const T* tile, int vectors) {
                                for (int r = 0; r < height; ++r) {
                                  leave(k, rows.begin + first + r, column,
                                        tile + r * vectors * kLanes, vectors);
                                }
                              });
    }
  }

  // Whether the tiles of a panel are rectangles of the result: all its columns exist, and one chain
  // is all there is. More would be added to it one by one, and not as their sum.
  static bool goes_to_result(const Packed<T>& b, int64_t p) {
    return b.multiply == nullptr && b.depth <= kLongestChain &&
           p * b.panel_units() + b.blocks_in(p) * kLanes <= b.units;
  }

  template <Layout kLayout>
  void multiply_whole(const Packed<T>& b, int64_t p, int64_t k, Range rows, const T* a,
                      int64_t stride) const {
    if (b.pack != nullptr) b.pack(b, p);
    const int64_t column = columns_.begin + p * b.panel_units();
    multiply_tiles<kLayout>(
        b, p, a, stride, rows.end - rows.begin,
        [&](int64_t, int64_t row) {
          const int64_t at = (rows.begin + row) * p_.columns + column;
          return Target<T>{before(k, at), static_cast<T*>(p_.out) + at, p_.columns, streams_};
        },
        [](int64_t, int64_t, int) {});
  }

  // What a block of the depth adds its sums to, at a place of the result; null where to nothing.
  const T* before(int64_t k, int64_t at) const {
    if (k > 0) return static_cast<const T*>(p_.out) + at;
    return p_.start == nullptr ? nullptr : static_cast<const T*>(p_.start) + at;
  }

  // Adds one row of a tile to the result; the first block of the depth begins it.
  void leave(int64_t k, int64_t row, int64_t column, const T* sums, int vectors) const {
    const int64_t at = row * p_.columns + columns_.begin + column;
    T* out = static_cast<T*>(p_.out) + at;
    const T* base = before(k, at);
    const int64_t left = columns_.end - columns_.begin - column;
    const int64_t count = left < vectors * kLanes ? left : vectors * kLanes;
    int64_t c = 0;
    if (base == nullptr) {
      for (; c + kLanes <= count; c += kLanes) store(out + c, load(sums + c));
    } else {
      for (; c + kLanes <= count; c += kLanes) store(out + c, load(base + c) + load(sums + c));
    }
    if (c == count) return;
    const int n = static_cast<int>(count - c);
    const V sum = load(sums + c);
    store(out + c, base == nullptr ? sum : load(base + c, n) + sum, n);
  }

  const MatrixParams p_;
  const Range rows_, columns_;
  const int64_t height_;
  const bool streams_;
  const Scratch m_;
};

template <class T>
void run_matrix_tasks(const MatrixParams& params, const ThreadPool& pool, void* scratch) {
  struct Job {
    const MatrixParams* params;
    MatrixGrid grid;
    void* scratch;
  } job{&params, plan_matrix(params, pool.count), scratch};
  pool.parallel_for(
      job.grid.tasks(),
      [](int64_t begin, int64_t end, void* context) {
        const Job& job = *static_cast<Job*>(context);
        for (int64_t k = begin; k < end; ++k) {
          MatrixTask<T>(*job.params, job.grid, static_cast<int>(k), job.scratch).run();
        }
      },
      &job);
}

}  // namespace
}  // namespace bptt
