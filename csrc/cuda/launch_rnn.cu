#include "../cells/rnn.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<Rnn<Tanh>>;
#ifndef BPTT_FEW_NUMBERS  // launch.cu refuses these
template struct CellLaunch<Rnn<Relu>>;
template struct CellLaunch<Rnn<Sigmoid>>;
#endif

}  // namespace bptt
