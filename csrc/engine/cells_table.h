// The cells by name, with the constants of their structs.
#pragma once

#include <cstring>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "params.h"

namespace bptt {

struct CellTraits {
  const char* name;
  CellKind kind;
  int64_t gates, states, saved, peepholes, stages;
  bool shared_gates;
};

template <class Cell>
constexpr CellTraits traits_of(const char* name, CellKind kind) {
  return {name,         kind,        Cell::kGates,  Cell::kStates,
          Cell::kSaved, Cell::kPeep, Cell::kStages, Cell::kSharedGates};
}

constexpr CellTraits kCells[] = {
    traits_of<Rnn<Tanh>>("rnn_tanh", CellKind::kRnnTanh),
    traits_of<Rnn<Relu>>("rnn_relu", CellKind::kRnnRelu),
    traits_of<Rnn<Sigmoid>>("rnn_sigmoid", CellKind::kRnnSigmoid),
    traits_of<Gru>("gru", CellKind::kGru),
    traits_of<GruResetBefore>("gru_reset_before", CellKind::kGruResetBefore),
    traits_of<Lstm<false>>("lstm", CellKind::kLstm),
    traits_of<Lstm<true>>("lstm_peephole", CellKind::kLstmPeephole),
};

// Null when no cell has that name.
inline const CellTraits* find_cell(const char* name) {
  for (const CellTraits& cell : kCells) {
    if (std::strcmp(cell.name, name) == 0) return &cell;
  }
  return nullptr;
}

}  // namespace bptt
