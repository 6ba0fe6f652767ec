#include "../cells/library.h"
#include "launch.cuh"

namespace bptt {

template struct CellLaunch<MinGru>;
template struct CellLaunch<MinLstm>;
template struct CellLaunch<Sru>;
template struct CellLaunch<DiagonalGru>;
template struct CellLaunch<DiagonalLstm>;
template struct CellLaunch<LightGru>;
template struct CellLaunch<MinimalGatedUnit>;

}  // namespace bptt
