// The cells that the CUDA kernels are compiled for: those of every engine, and the library's, of
// which a CPU makes loops where it needs them (csrc/engine/custom.h).
#pragma once

#include "../cells/library.h"
#include "../engine/cells_table.h"

namespace bptt {

constexpr CellTraits kLibraryCells[] = {
    traits_of<MinGru>(MinGru::kName, CellKind::kMinGru),
    traits_of<MinLstm>(MinLstm::kName, CellKind::kMinLstm),
    traits_of<Sru>(Sru::kName, CellKind::kSru),
    traits_of<DiagonalGru>(DiagonalGru::kName, CellKind::kDiagonalGru),
    traits_of<DiagonalLstm>(DiagonalLstm::kName, CellKind::kDiagonalLstm),
    traits_of<LightGru>(LightGru::kName, CellKind::kLightGru),
    traits_of<MinimalGatedUnit>(MinimalGatedUnit::kName, CellKind::kMinimalGatedUnit),
};

// Calls f.operator()<Cell>() for the struct of a cell.
template <class F>
auto with_gpu_cell(CellKind kind, F f) {
  switch (kind) {
    case CellKind::kMinGru: return f.template operator()<MinGru>();
    case CellKind::kMinLstm: return f.template operator()<MinLstm>();
    case CellKind::kSru: return f.template operator()<Sru>();
    case CellKind::kDiagonalGru: return f.template operator()<DiagonalGru>();
    case CellKind::kDiagonalLstm: return f.template operator()<DiagonalLstm>();
    case CellKind::kLightGru: return f.template operator()<LightGru>();
    case CellKind::kMinimalGatedUnit: return f.template operator()<MinimalGatedUnit>();
    default: return with_cell(kind, f);
  }
}

// Null when no kernel knows a cell of that name.
inline const CellTraits* find_gpu_cell(const char* name) {
  for (const CellTraits& cell : kLibraryCells) {
    if (std::strcmp(cell.name, name) == 0) return &cell;
  }
  return find_cell(name);
}

}  // namespace bptt
