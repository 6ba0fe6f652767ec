// Cells that a program brings along: compiled apart, loaded and entered here by name.
#pragma once

#include <string>

#include "cells_table.h"
#include "cpu.h"

namespace bptt {

// What a library of `python/bptt/custom` exports as `bptt_custom_cell`: the loops of a cell for one
// storage type, with a `Control` or without.
struct CustomCell {
  int64_t abi;  // kCustomAbi
  CellTraits traits;
  Dtype dtype;
  bool controlled;
  const CpuLoops* loops;
};
// Changes with anything that a library and the engine share.
constexpr int64_t kCustomAbi = 3;

// Loads a library and enters its loops; returns an error in words, or nothing. Libraries stay
// loaded, and loops that are there already stay.
std::string load_custom_cell(const char* path);

// Null when no cell has that name, built in or loaded.
const CellTraits* find_any_cell(const char* name);

// The loops of a kind from CellKind::kCustom on; null where nobody loaded them.
const CpuLoops* custom_loops(CellKind kind, Dtype dtype, bool controlled);

}  // namespace bptt
