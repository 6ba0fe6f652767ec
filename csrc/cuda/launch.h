// Launches of a recurrence's kernels: raw pointers and a stream in, an error out. No torch and, for
// whoever includes this, no CUDA.
#pragma once

#include "planner.h"

namespace bptt {

struct GpuCall {
  NumberKind number;  // in place of Sizes::dtype
  GpuPlan plan;
  int device;
  void* scratch;  // of gpu_scratch bytes, whatever they hold
  void* stream;   // cudaStream_t
  bool* refused;  // becomes true where the step tier ran for want of room
  // How long a block waits for others before it ends the process's use of the device; 0: for ever.
  uint64_t patience_ns;
};

// The limits of a device; null, or why they could not be read.
const char* gpu_device(int index, Device* device);

// Why no kernel of this build can start on a device; null where all can.
const char* gpu_start_error(int index);

// Bytes of scratch memory that a call takes.
int64_t gpu_scratch(const GpuProblem& problem, const GpuPlan& plan);

// Enqueue a pass; null, or what went wrong. Arrays are dense: strides are not looked at. T, B and D
// are above zero. A persistent launch for which the device has no room at the moment becomes one of
// the step tier.
const char* gpu_forward(const GpuCall& call, const ForwardParams& params);
const char* gpu_backward(const GpuCall& call, const BackwardParams& params);

// Enqueues one launch of a team of blocks that exchange a few words `rounds` times, the step tier
// excepted; out [blocks] gets how many rounds went right. Scratch memory: 1 MB.
const char* gpu_exchange(Tier tier, int device, int blocks, int rounds, uint32_t* out,
                         void* scratch, void* stream);

// Directions as one number: a period in the bits from 24 on, a flag for each direction of it below.
// Zero where no pattern of at most 24 directions repeats.
uint32_t direction_pattern(const bool* reverse, int64_t directions);

}  // namespace bptt
