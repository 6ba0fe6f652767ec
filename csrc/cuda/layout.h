// How a recurrence is cut among the blocks of a persistent launch, and a block's shared memory:
// plain arithmetic, for kernels, the planner and tests alike.
#pragma once

#include "../cells/activation.h"

namespace bptt {

// Block (rank, slice, direction) owns `units` hidden units, with all their gates, of `rows` x
// `passes` sequences. The `team` blocks of a slice own all units; they exchange what each has made
// after every step.
struct Cut {
  int team;
  int units;   // a multiple of the elements of 4 bytes
  int rows;    // of one pass; a multiple of kColumnTile
  int passes;  // more than one only where blocks exchange through global memory
  int parts;   // that the depth of the product is cut into, among the warps of a block
  int held;    // 1 where weights stay in the registers of the warps that multiply them, else 0
};

// Of the step tier: rows of a tile; blocks that share one, at most; shared memory of a block, at
// most what smaller devices have.
constexpr int kStepRows = 64, kLargestSplit = 4, kStepSharedBytes = 96 * 1024;

constexpr int kRowTile = 16, kColumnTile = 8;  // of a matrix instruction
constexpr int kStepBytes = 32;                 // of a row, that one takes of the depth
constexpr int kPartUnit = 64;                  // the depth of a part is a multiple of this
// Of weights that a warp holds: instructions' depths of kRowTile rows, in 4 registers of a thread
// each, and how many of them come through shared memory at a time.
constexpr int kHeldSteps = 32, kLoadedSteps = 4;

BPTT_HOST_DEVICE constexpr int rounded_up(int count, int unit) {
  return (count + unit - 1) / unit * unit;
}

BPTT_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Elements from row to row of a matrix in shared memory. Rows start at 16 bytes, and eight of them
// at different banks; the columns past `columns`, up to a chunk before the end, must hold zeros.
// Without that chunk a row is a multiple of four instructions' depths.
BPTT_HOST_DEVICE constexpr int pitch_of(int columns, int element_bytes) {
  const int chunk = 16 / element_bytes;
  return rounded_up(columns, 4 * kStepBytes / element_bytes) + chunk;
}

// What a cell and a number's storage have to do with the size of things.
struct Shape {
  int gates, states, saved, unit_weights, element_bytes;
  bool backward, grid;  // grid: blocks exchange through global memory
};

// Of a block: places in bytes, then sizes.
struct Layout {
  int weights, operand, sums, states, biases, stage, team, bytes;
  int gate_rows;   // of the weights: the rows of the product
  int columns;     // that a team exchanges for a sequence of the batch
  int pitch;       // of weights and operand
  int depth;       // of the product
  int part_depth;  // of a part of it, at most
  int loaded;      // of that, what goes to registers at a time
  int sums_pitch;  // sums are [parts, rows, sums_pitch]
  int items;       // of a pass: words of 4 bytes that hold neighbouring units
};

// Words per item that a thread fetches ahead.
BPTT_HOST_DEVICE constexpr int staged_planes(const Shape& s) {
  if (!s.backward) return s.gates;
  return s.saved + 1 + (s.states == 2 ? 2 * (4 / s.element_bytes) : 2);
}

// Rows of weights that a warp holds: where there are no more than 8, twice the depth.
BPTT_HOST_DEVICE constexpr int held_rows(int gate_rows) {
  return gate_rows > kColumnTile ? kRowTile : kColumnTile;
}
// Elements of a row that a warp can hold, and those that come through shared memory at a time.
BPTT_HOST_DEVICE constexpr int held_depth(int gate_rows, int element_bytes, int steps) {
  return steps * (kStepBytes / element_bytes) * (kRowTile / held_rows(gate_rows));
}

BPTT_HOST_DEVICE constexpr Layout layout_of(const Shape& s, const Cut& cut) {
  Layout l{};
  const int all_units = cut.units * cut.team;
  const int gate_rows = s.backward ? cut.units : s.gates * cut.units;
  l.gate_rows = rounded_up(gate_rows, cut.held ? held_rows(gate_rows) : kRowTile);
  l.columns = s.backward ? s.gates * all_units : all_units;
  l.pitch = pitch_of(l.columns, s.element_bytes);
  l.depth = l.pitch - 16 / s.element_bytes;
  l.part_depth = rounded_up((l.depth + cut.parts - 1) / cut.parts, kPartUnit);
  l.sums_pitch = l.gate_rows + 4;
  l.items = cut.rows * cut.units * s.element_bytes / 4;
  const int buffers = s.grid ? 1 : 2;
  const int planes = s.states + (s.backward ? s.unit_weights : 0);
  l.operand = cut.held ? 0 : l.gate_rows * l.pitch * s.element_bytes;
  l.sums = l.operand + buffers * cut.rows * l.pitch * s.element_bytes;
  const int sums = cut.parts * cut.rows * l.sums_pitch * 4;
  l.loaded = held_depth(l.gate_rows, s.element_bytes, kLoadedSteps);
  const int loading =
      cut.parts * l.gate_rows * pitch_of(l.loaded, s.element_bytes) * s.element_bytes;
  // Weights that go to registers do so through the place of the sums.
  l.states = l.sums + (cut.held && loading > sums ? loading : sums);
  l.biases = l.states + planes * cut.passes * cut.rows * cut.units * 4;
  l.stage = l.biases + (s.backward ? 0 : 2 * s.gates * cut.units * 4);
  l.team = rounded_up(l.stage + staged_planes(s) * cut.passes * l.items * 4, 8);
  l.bytes = l.team + 16;  // two transaction barriers
  return l;
}

// Words of 4 bytes that one team needs in global memory where its blocks exchange through it.
BPTT_HOST_DEVICE constexpr int exchange_pitch(const Layout& l, int element_bytes) {
  return rounded_up(l.columns * element_bytes, 16) / 4;
}
BPTT_HOST_DEVICE constexpr int exchange_words(const Shape& s, const Cut& cut, const Layout& l) {
  return 2 * cut.passes * cut.rows * exchange_pitch(l, s.element_bytes);
}

}  // namespace bptt
