#include "../cells/gru.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<Gru>;
template struct CellLaunch<GruResetBefore>;

}  // namespace bptt
