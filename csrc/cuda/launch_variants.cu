#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "../cells/slstm.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<Cifg>;
template struct CellLaunch<Slstm>;
template struct CellLaunch<Diagonal<Rnn<Relu>>>;

}  // namespace bptt
