// The cells by name, with the constants of their structs.
#pragma once

#include <cstring>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "../cells/slstm.h"
#include "params.h"

namespace bptt {

struct CellTraits {
  const char* name;
  CellKind kind;
  int64_t gates, states, saved, unit_weights, stages;
  bool shared_gates, normalized;

  int64_t cell_states() const { return states - 1; }
  // Whether its output can be projected to a smaller hidden state.
  bool projects() const { return states == 2 && !normalized && kind < CellKind::kMinGru; }
};

template <class Cell>
constexpr CellTraits traits_of(const char* name, CellKind kind) {
  return {name,
          kind,
          Cell::kGates,
          Cell::kStates,
          kSavedPlanes<Cell>,
          Cell::kUnitWeights,
          Cell::kStages,
          Cell::kSharedGates,
          kNormalized<Cell>};
}

constexpr CellTraits kCells[] = {
    traits_of<Rnn<Tanh>>("rnn_tanh", CellKind::kRnnTanh),
    traits_of<Rnn<Relu>>("rnn_relu", CellKind::kRnnRelu),
    traits_of<Rnn<Sigmoid>>("rnn_sigmoid", CellKind::kRnnSigmoid),
    traits_of<Gru>("gru", CellKind::kGru),
    traits_of<GruResetBefore>("gru_reset_before", CellKind::kGruResetBefore),
    traits_of<Lstm<false>>("lstm", CellKind::kLstm),
    traits_of<Lstm<true>>("lstm_peephole", CellKind::kLstmPeephole),
    traits_of<Cifg>("cifg", CellKind::kCifg),
    traits_of<Slstm>("slstm", CellKind::kSlstm),
    traits_of<Diagonal<Rnn<Relu>>>("indrnn", CellKind::kIndRnn),
    traits_of<LayerNorm<Rnn<Tanh>>>("rnn_layer_norm", CellKind::kRnnLayerNorm),
    traits_of<LayerNorm<Gru>>("gru_layer_norm", CellKind::kGruLayerNorm),
    traits_of<LayerNorm<Lstm<false>>>("lstm_layer_norm", CellKind::kLstmLayerNorm),
};

// Calls f.operator()<Cell>() for the struct of a cell.
template <class F>
auto with_cell(CellKind kind, F f) {
  switch (kind) {
    case CellKind::kRnnTanh: return f.template operator()<Rnn<Tanh>>();
    case CellKind::kRnnRelu: return f.template operator()<Rnn<Relu>>();
    case CellKind::kRnnSigmoid: return f.template operator()<Rnn<Sigmoid>>();
    case CellKind::kGru: return f.template operator()<Gru>();
    case CellKind::kGruResetBefore: return f.template operator()<GruResetBefore>();
    case CellKind::kLstm: return f.template operator()<Lstm<false>>();
    case CellKind::kLstmPeephole: return f.template operator()<Lstm<true>>();
    case CellKind::kCifg: return f.template operator()<Cifg>();
    case CellKind::kSlstm: return f.template operator()<Slstm>();
    case CellKind::kIndRnn: return f.template operator()<Diagonal<Rnn<Relu>>>();
    case CellKind::kRnnLayerNorm: return f.template operator()<LayerNorm<Rnn<Tanh>>>();
    case CellKind::kGruLayerNorm: return f.template operator()<LayerNorm<Gru>>();
    case CellKind::kLstmLayerNorm: break;
    default: break;  // a custom cell has loops of its own, and never comes here
  }
  return f.template operator()<LayerNorm<Lstm<false>>>();
}

// Null when no cell has that name.
inline const CellTraits* find_cell(const char* name) {
  for (const CellTraits& cell : kCells) {
    if (std::strcmp(cell.name, name) == 0) return &cell;
  }
  return nullptr;
}

}  // namespace bptt
