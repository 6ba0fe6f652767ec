#include "../cells/lstm.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<Lstm<false>>;
template struct CellLaunch<Lstm<true>>;

}  // namespace bptt
