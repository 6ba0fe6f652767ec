// Cells that a program brings along: compiled apart, loaded and entered here by name.
#pragma once

#include <string>

#include "cells_table.h"
#include "cpu.h"

namespace bptt {

// What a library of `python/bptt/custom` exports as `bptt_custom_cell`.
struct CustomCell {
  int64_t abi;  // kCustomAbi
  CellTraits traits;
  const CpuLoops* plain;
  const CpuLoops* controlled;
};
// Changes with anything that a library and the engine share.
constexpr int64_t kCustomAbi = 1;

// Loads a library and enters its cell; returns an error in words, or nothing. A cell whose name is
// known already is left as it is. Libraries stay loaded.
std::string load_custom_cell(const char* path);

// Null when no cell has that name, built in or loaded.
const CellTraits* find_any_cell(const char* name);

// The loops of a kind from CellKind::kCustom on.
const CpuLoops& custom_loops(CellKind kind, bool controlled);

}  // namespace bptt
