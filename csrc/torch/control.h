// What a loop does besides running its cell, as the ops take it: python/bptt/recurrence/control.py.
#pragma once

#include <cmath>

#include "../engine/cells_table.h"
#include "checks.h"

namespace bptt {

// Of numbers in the order of `Control` in python/bptt/recurrence/control.py, or of none. `seed`
// points to the memory of the op's argument, if there is one.
inline Control control_of(const char* op, const CellTraits& cell, const std::vector<double>& n,
                          const void* seed) {
  Control c{};
  if (n.empty()) return c;
  STD_TORCH_CHECK(n.size() == 10, op, ": control must hold 10 numbers or none, got ", n.size());
  for (const double value : n) {
    STD_TORCH_CHECK(std::isfinite(value) && value >= 0, op,
                    ": control must hold finite numbers of zero or more, got ", value);
  }
  STD_TORCH_CHECK(n[0] < kActivations && n[1] < kActivations, op,
                  ": control names no activation, got ", n[0], " and ", n[1]);
  STD_TORCH_CHECK(n[3] <= 1 && n[4] <= 1 && n[6] <= 1, op,
                  ": probabilities of control must lie in [0, 1], got ", n[3], ", ", n[4], ", ",
                  n[6]);
  STD_TORCH_CHECK(cell.states > 1 || (n[2] == 0 && n[4] == 0), op, ": cell ", cell.name,
                  " has no cell state to bound or to zone out");
  c.on = true;
  c.gates = static_cast<Activation>(static_cast<int>(n[0]));
  c.states = static_cast<Activation>(static_cast<int>(n[1]));
  c.cell_bound = n[2];
  c.zoneout_h = n[3];
  c.zoneout_c = n[4];
  c.sampled = n[5] > 0;
  c.recurrent_dropout = n[6];
  c.truncate = static_cast<int64_t>(n[7]);
  c.gradient_bound = n[8];
  c.gradient_norm = n[9];
  c.seed = static_cast<const int64_t*>(seed);
  const bool draws = c.recurrent_dropout > 0 || (c.sampled && (c.zoneout_h > 0 || c.zoneout_c > 0));
  STD_TORCH_CHECK(!draws || c.seed != nullptr, op, ": control draws and needs a seed, got None");
  return c;
}

}  // namespace bptt
