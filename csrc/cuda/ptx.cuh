// The device's side of primitives.cuh, which says what each of these does. Source: PTX ISA 9.0.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <mutex>
#include <set>
#include <utility>

namespace bptt::gpu {

template <class T>
class View {
 public:
  View() = default;
  __host__ __device__ View(T* data, int64_t) : data_(data) {}

  template <class Index>
  __host__ __device__ T& operator[](Index index) const {
    return data_[index];
  }
  template <class Index>
  __host__ __device__ T* at(Index index, int) const {
    return data_ + index;
  }
  template <class Index>
  __host__ __device__ View slice(Index from, int64_t count) const {
    return {data_ + from, count};
  }
  __host__ __device__ explicit operator bool() const { return data_ != nullptr; }

 private:
  T* data_ = nullptr;
};

__device__ inline char* shared_memory() {
  extern __shared__ __align__(1024) char bptt_shared_memory[];
  return bptt_shared_memory;
}
__device__ inline size_t shared_memory_bytes() {
  unsigned bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
}

__device__ inline void sync_block() { __syncthreads(); }
__device__ inline void sync_warp() { __syncwarp(); }
__device__ inline bool all_of_block(bool mine) { return __syncthreads_and(mine); }
__device__ inline float shuffle_xor(float value, unsigned mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

// The address as instructions on shared memory take it.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- waiting
// --------------------------------------------------------------------------------------

__device__ inline uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// Apart from the kernels, whose registers and stack it must not touch.
static __device__ __noinline__ void give_up(const char* what) {
  printf("bptt: block (%u, %u, %u), thread %u waits for %s, which never comes\n", blockIdx.x,
         blockIdx.y, blockIdx.z, threadIdx.x, what);
  __trap();
}

template <class Ready>
__device__ void wait_until(Ready ready, uint64_t patience_ns, const char* what) {
  for (int k = 0; k < 1024; ++k) {
    if (ready()) return;
  }
  const uint64_t start = nanoseconds();
  while (!ready()) {
    if (patience_ns > 0 && nanoseconds() - start > patience_ns) {
      give_up(what);
      __builtin_unreachable();
    }
  }
}

// --- matrix instructions
// --------------------------------------------------------------------------

__device__ inline float widen(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float widen(Fp16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

template <class Half>
__device__ Half narrow(float x);

template <>
__device__ inline Bf16 narrow<Bf16>(float x) {
  Bf16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
  return half;
}
template <>
__device__ inline Fp16 narrow<Fp16>(float x) {
  Fp16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
  return half;
}

__device__ inline float round_to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}

template <class Half>
__device__ void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void multiply_16x8x16<Bf16>(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void multiply_16x8x16<Fp16>(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void load_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// --- asynchronous copies
// --------------------------------------------------------------------------

__device__ inline void copy_async(void* target, const void* source, unsigned valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)),
               "l"(source), "r"(valid)
               : "memory");
}
__device__ inline void copy_async_word(void* target, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(target)), "l"(source)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- blocks of a cluster
// --------------------------------------------------------------------------

#if defined(BPTT_HAS_CLUSTERS)

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ inline void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void wait_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

class TransactionBarrier {
 public:
  __device__ void init(unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&word_)),
                 "r"(arrivals)
                 : "memory");
  }

  __device__ void arrive_and_expect(unsigned bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&word_)),
        "r"(bytes)
        : "memory");
  }

  __device__ void wait(unsigned parity, uint64_t patience_ns) {
    const uint32_t address = shared_address(&word_);
    wait_until([address, parity] { return ended(address, parity & 1); }, patience_ns,
               "a transaction barrier");
  }

 private:
  __device__ static bool ended(uint32_t address, unsigned parity) {
    uint32_t answer;
    asm volatile(
        "{\n"
        "  .reg .pred p;\n"
        "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(answer)
        : "r"(address), "r"(parity)
        : "memory");
    return answer != 0;
  }

  alignas(8) uint64_t word_;
};

// Other blocks' stores count at barriers, so they must not find one before it is made.
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// An address in the shared memory of another block of the cluster.
__device__ inline uint32_t remote_address(const void* here, unsigned rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(here)), "r"(rank));
  return there;
}

__device__ inline void store_remote(uint32_t* here, uint32_t value, TransactionBarrier* barrier,
                                    unsigned rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   remote_address(here, rank)),
               "r"(value), "r"(remote_address(barrier, rank))
               : "memory");
}

__device__ inline float load_remote(const float* here, unsigned rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];"
               : "=f"(value)
               : "r"(remote_address(here, rank))
               : "memory");
  return value;
}

#else

// Never called: an architecture without clusters has the kernels' names only.
__device__ inline unsigned cluster_rank() { return 0; }
__device__ inline unsigned cluster_size() { return 1; }
__device__ inline void arrive_cluster() { __trap(); }
__device__ inline void wait_cluster() { __trap(); }
struct TransactionBarrier {
  uint64_t word;
  __device__ void init(unsigned) {}
  __device__ void arrive_and_expect(unsigned) {}
  __device__ void wait(unsigned, uint64_t) {}
};
__device__ inline void fence_barriers() {}
__device__ inline void store_remote(uint32_t*, uint32_t, TransactionBarrier*, unsigned) {}
__device__ inline float load_remote(const float* here, unsigned) { return *here; }

#endif

// --- blocks of a grid
// -----------------------------------------------------------------------------

__device__ inline void signal(uint32_t* counter, uint32_t count) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(count) : "memory");
}

__device__ inline void wait_for_signals(uint32_t* counter, uint32_t goal, uint64_t patience_ns) {
  const auto ready = [counter, goal] {
    uint32_t seen;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    return static_cast<int32_t>(seen - goal) >= 0;  // counters may wrap around
  };
  wait_until(ready, patience_ns, "signals of other blocks");
}

// --- the host's side
// -----------------------------------------------------------------------------------

inline const char* error_text(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

inline const char* use_device(int index) { return error_text(cudaSetDevice(index)); }

inline const char* device_limits(int index, int* capability, int* processors, int* shared_bytes,
                                 int* clock_mhz) {
  int major = 0, minor = 0, khz = 0;
  const auto read = [index](int* value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(value, attribute, index);
  };
  cudaError_t status = read(&major, cudaDevAttrComputeCapabilityMajor);
  if (status == cudaSuccess) status = read(&minor, cudaDevAttrComputeCapabilityMinor);
  if (status == cudaSuccess) status = read(processors, cudaDevAttrMultiProcessorCount);
  if (status == cudaSuccess) status = read(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (status == cudaSuccess) status = read(&khz, cudaDevAttrClockRate);
  *capability = 10 * major + minor;
  *clock_mhz = khz / 1000;
  return error_text(status);
}

// Why a kernel of this build cannot start on a device: its driver is too old for the runtime, or
// the build has no code for it. Null where it can.
template <class... Parameters>
const char* kernel_error(int index, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  cudaError_t status = cudaSetDevice(index);
  if (status == cudaSuccess) {
    status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  }
  if (status != cudaSuccess) cudaGetLastError();  // it is told here, and is nobody else's
  return error_text(status);
}

inline cudaError_t zero_memory(void* memory, size_t bytes, void* stream) {
  return cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
}

// Whether a launch failed because its blocks cannot all be on the device, and left no other trace:
// a whole grid, or a cluster where other programs have a part of the device.
inline bool lacks_room(cudaError_t status) {
  if (status != cudaErrorCooperativeLaunchTooLarge && status != cudaErrorLaunchOutOfResources &&
      status != cudaErrorInvalidClusterSize) {
    return false;
  }
  cudaGetLastError();
  return true;
}

// --- launching
// ------------------------------------------------------------------------------------

// Lets a kernel have all the shared memory of the device that is current: whatever the launch at
// hand needs, as another thread may launch the same kernel with another size meanwhile.
inline cudaError_t allow_shared_memory(const void* function) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  cudaError_t status = cudaGetDevice(&device);
  const std::lock_guard lock(mutex);
  if (status != cudaSuccess || allowed.contains({function, device})) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  }
  if (status == cudaSuccess) allowed.insert({function, device});
  return status;
}

// How many clusters of so many blocks the device that is current holds at a time, where each block
// takes as much shared memory; 0 where that cannot be told.
template <class... Parameters>
int resident_clusters(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  cudaError_t status = allow_shared_memory(function);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(blocks), 1, 1};
  config.blockDim = {static_cast<unsigned>(threads), 1, 1};
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
  if (status != cudaSuccess) cudaGetLastError();  // a guess takes its place
  return status == cudaSuccess ? count : 0;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(const char*, void (*kernel)(Parameters...), const LaunchConfig& config,
                   const Arguments&... arguments) {
  constexpr size_t kUnasked = 48 * 1024;  // of shared memory
  const auto* const function = reinterpret_cast<const void*>(kernel);
  cudaError_t status = cudaSuccess;
  if (config.shared_bytes > kUnasked) status = allow_shared_memory(function);
  if (status == cudaSuccess && config.cluster > 8) {
    status = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {config.cluster, 1, 1};
  }
  cudaLaunchConfig_t launched{};
  launched.gridDim = {config.grid.x, config.grid.y, config.grid.z};
  launched.blockDim = {config.block.x, config.block.y, config.block.z};
  launched.dynamicSmemBytes = config.shared_bytes;
  launched.stream = static_cast<cudaStream_t>(config.stream);
  launched.attrs = attributes;
  launched.numAttrs = count;
  return cudaLaunchKernelEx(&launched, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace bptt::gpu
