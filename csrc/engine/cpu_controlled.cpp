// Compiled once per instruction set, as cpu_kernels.cpp is: its loops with a `Control`.
#include "cpu_loops.h"

namespace bptt::BPTT_ISA {

extern const CpuLoops controlled_loops;
const CpuLoops controlled_loops = Loops<true>::table;

}  // namespace bptt::BPTT_ISA
