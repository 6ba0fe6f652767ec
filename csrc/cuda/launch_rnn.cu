#include "../cells/rnn.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<Rnn<Tanh>>;
template struct CellLaunch<Rnn<Relu>>;
template struct CellLaunch<Rnn<Sigmoid>>;

}  // namespace bptt
