// What the kernels need of the machine and C++ does not have. With BPTT_SIMULATOR it comes from
// csrc/simulator, for any host compiler; else from ptx.cuh, the only file with PTX.
//
//   View<T>            a pointer that the simulator also knows the end of
//   shared_memory()    the block's dynamic shared memory, aligned to 1024 bytes
//   sync_block(), sync_warp()
//   all_of_block(true or false)   whether it is true for all threads; a barrier for the block
//   shuffle_xor(value, mask)
//
// Matrix instructions; every lane of the warp calls them:
//   multiply_16x8x16<Bf16 or Fp16>(d, a, b)     d [16, 8] float32 += a [16, 16] * b [16, 8]
//   multiply_16x8x8(d, a, b)                    the same in TF32, depth 8
//   load_matrices(words, row)                   four 8 x 8 matrices of 16-bit values (ldmatrix);
//                                               lane k gives the address of row k % 8 of matrix k /
//                                               8
//   load_transposed(words, row)                 the same, each matrix transposed (ldmatrix.trans)
//   The fragments are laid out as the PTX manual draws them for mma.m16n8k16 and m16n8k8.
//
// Numbers of 16 bits are Bf16 and Fp16:
//   widen(x), narrow<Bf16 or Fp16>(x)           to and from float, to the nearest, ties to even
//   round_to_tf32(x)                            what multiply_16x8x8 should be given
//
// Asynchronous copies, global to shared:
//   copy_async(target, source, valid)           16 bytes, those from `valid` on become zeros
//   copy_async_word(target, source)             4 bytes
//   commit_copies()
//   wait_for_copies<N>()     until at most N committed groups of this thread are on their way
//
// Blocks of a cluster (compute capability 9.0):
//   cluster_rank(), cluster_size(), arrive_cluster(), wait_cluster()
//   TransactionBarrier       in shared memory: a phase ends when it has seen its arrivals and bytes
//     init(arrivals)         by one thread, which then calls fence_barriers(), and
//                            arrive_cluster/wait_cluster before anybody uses it
//     arrive_and_expect(bytes)
//     wait(parity, patience_ns)
//                            until the phase of that parity has ended
//   store_remote(here, value, barrier, rank)
//                            to the same place in another block's shared memory; then counts four
//                            bytes at the same barrier there
//   load_remote(here, rank)  what lies at the same place in another block's shared memory, which
//                            arrive_cluster/wait_cluster made visible, and keep there meanwhile
//
// Blocks of a grid (a cooperative launch); counters lie in global memory and only grow:
//   signal(counter, count)   by one thread, after a sync_block: what the block has stored ...
//   wait_for_signals(counter, goal, patience_ns)
//                            ... is there for whoever saw the count, and a sync_block after it
//
// Waiting is bounded: after patience_ns, if that is not 0, a kernel prints what it waits for and
// traps, which ends the process's use of the device. BPTT_PATIENCE_SECONDS sets it (launch.cuh).
//
// The host's side; a status is a cudaError_t:
//   launch(name, kernel, config, arguments...)
//   zero_memory(memory, bytes, stream)
//   lacks_room(status)       whether a launch failed for want of room on the device
//   error_text(status)       null where there is none
//   use_device(index), device_limits(index, ...)       null, or what went wrong
//   kernel_error(index, kernel)                        why a kernel cannot start there, or null
//   resident_clusters(kernel, blocks, threads, bytes)  how many find room at a time, or 0
#pragma once

#include <cstddef>
#include <cstdint>

namespace bptt::gpu {

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Extent grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x
  bool cooperative = false;
  void* stream = nullptr;
};

// Numbers by their bits.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

}  // namespace bptt::gpu

#if defined(BPTT_SIMULATOR) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define BPTT_HAS_CLUSTERS
#endif

// Before a loop over what has to stay in registers: an index that is not a constant puts an array
// in memory.
// And of functions that look at what has to stay there: one that is called puts it in memory.
#if defined(BPTT_SIMULATOR)
#define BPTT_UNROLL
#define BPTT_ROLLED
#define BPTT_UNROLL_BY_FOUR
#define BPTT_INLINED inline
#else
#define BPTT_UNROLL _Pragma("unroll")
#define BPTT_ROLLED _Pragma("unroll 1")
#define BPTT_UNROLL_BY_FOUR _Pragma("unroll 4")
#define BPTT_INLINED __forceinline__
#endif

#if defined(BPTT_SIMULATOR)
#include "../simulator/primitives.h"
#else
#include "ptx.cuh"
#endif
