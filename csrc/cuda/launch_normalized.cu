#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<LayerNorm<Rnn<Tanh>>>;
template struct CellLaunch<LayerNorm<Gru>>;
template struct CellLaunch<LayerNorm<Lstm<false>>>;

}  // namespace bptt
