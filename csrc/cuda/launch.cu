// The kernels of csrc/cuda by cell, and what the host asks of the CUDA runtime.
#include <map>
#include <mutex>
#include <type_traits>

#include "cells.h"
#include "exchange.cuh"
#include "launch.h"

namespace bptt {

// Instantiated in launch_*.cu.
template <class Cell>
struct CellLaunch {
  static int64_t scratch(const GpuProblem& problem, const GpuPlan& plan);
  static const char* forward(const GpuCall& call, const ForwardParams& params);
  static const char* backward(const GpuCall& call, const BackwardParams& params);
};

namespace {

#ifdef BPTT_FEW_NUMBERS
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif

// Calls f.operator()<Cell>() for a cell that this build has kernels for. Where it has few, RNNs,
// which differ by an activation alone, have those of one.
template <class F>
auto with_built_cell(CellKind kind, F f) {
  return with_gpu_cell(kind, [&]<class Cell>() {
    constexpr bool kOther = std::is_same_v<Cell, Rnn<Relu>> || std::is_same_v<Cell, Rnn<Sigmoid>>;
    return f.template operator()<std::conditional_t<kFew && kOther, Rnn<Tanh>, Cell>>();
  });
}

// Why a call cannot run in this build, or null.
const char* build_error(NumberKind number, CellKind cell) {
  const bool other = cell == CellKind::kRnnRelu || cell == CellKind::kRnnSigmoid;
  if (!kFew || (number == NumberKind::kBFloat16 && !other)) return nullptr;
  return "bptt was built in place on a machine without a GPU, with few of its kernels; build it "
         "again here, or install a wheel";
}

// Asked once of each device, as the driver takes its time: of blocks that have a processor's shared
// memory to themselves.
std::array<int, kLargestCluster + 1> clusters_of(int index, const Device& device) {
  static std::mutex mutex;
  static std::map<int, std::array<int, kLargestCluster + 1>> known;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace(index);
  if (is_new && device.capability >= 90 && gpu::use_device(index) == nullptr) {
    constexpr int kThreads = 256;
    for (int blocks = 2; blocks <= kLargestCluster; ++blocks) {
      entry->second[blocks] = gpu::resident_clusters(gpu::exchange_rounds<gpu::ClusterTeam>, blocks,
                                                     kThreads, device.shared_bytes);
    }
  }
  return entry->second;
}

}  // namespace

const char* gpu_device(int index, Device* device) {
  const char* error = gpu::device_limits(index, &device->capability, &device->processors,
                                         &device->shared_bytes, &device->clock_mhz);
  if (error == nullptr) device->clusters = clusters_of(index, *device);
  return error;
}

const char* gpu_start_error(int index) {
  // What the driver and the build let one kernel do, they let all.
  return gpu::kernel_error(index, gpu::exchange_rounds<gpu::BlockTeam>);
}

int64_t gpu_scratch(const GpuProblem& problem, const GpuPlan& plan) {
  return with_built_cell(problem.cell,
                         [&]<class Cell>() { return CellLaunch<Cell>::scratch(problem, plan); });
}

const char* gpu_forward(const GpuCall& call, const ForwardParams& params) {
  if (const char* error = build_error(call.number, params.sizes.cell)) return error;
  if (const char* error = gpu::use_device(call.device)) return error;
  return with_built_cell(params.sizes.cell,
                         [&]<class Cell>() { return CellLaunch<Cell>::forward(call, params); });
}

const char* gpu_backward(const GpuCall& call, const BackwardParams& params) {
  if (const char* error = build_error(call.number, params.sizes.cell)) return error;
  if (const char* error = gpu::use_device(call.device)) return error;
  return with_built_cell(params.sizes.cell,
                         [&]<class Cell>() { return CellLaunch<Cell>::backward(call, params); });
}

const char* gpu_exchange(Tier tier, int device, int blocks, int rounds, uint32_t* out,
                         void* scratch, void* stream) {
  if (const char* error = gpu::use_device(device)) return error;
  const bool grid = tier == Tier::kGrid;
  const Cut cut = {tier == Tier::kBlock ? 1 : blocks, 8, 8, 1, 1, 0};
  const Layout layout = layout_of(gpu::exchange_shape(grid), cut);
  gpu::LaunchConfig config;
  config.grid.x = cut.team;
  config.block.x = 64;
  config.shared_bytes = layout.bytes;
  config.cluster = tier == Tier::kCluster ? blocks : 1;
  config.cooperative = grid;
  config.stream = stream;
  constexpr int kCounterBytes = 16;
  auto* const counter = static_cast<uint32_t*>(scratch);
  gpu::ExchangeArgs exchange;
  exchange.counters = {counter, 1};
  exchange.patience_ns = 20'000'000'000;
  exchange.words = {counter + kCounterBytes / 4,
                    exchange_words(gpu::exchange_shape(grid), cut, layout)};
  cudaError_t status = gpu::zero_memory(scratch, kCounterBytes, stream);
  const auto kernel = tier == Tier::kBlock     ? gpu::exchange_rounds<gpu::BlockTeam>
                      : tier == Tier::kCluster ? gpu::exchange_rounds<gpu::ClusterTeam>
                                               : gpu::exchange_rounds<gpu::GridTeam>;
  if (status == cudaSuccess) {
    const gpu::View<uint32_t> right(out, cut.team);
    status = gpu::launch("exchange_rounds", kernel, config, rounds, cut, exchange, right);
  }
  return gpu::error_text(status);
}

uint32_t direction_pattern(const bool* reverse, int64_t directions) {
  constexpr int64_t kFlags = 24;
  for (int64_t period = 1; period <= directions && period <= kFlags; ++period) {
    uint32_t flags = 0;
    bool repeats = true;
    for (int64_t d = 0; d < directions && repeats; ++d) {
      repeats = reverse[d] == reverse[d % period];
      if (d < period) flags |= static_cast<uint32_t>(reverse[d]) << d;
    }
    if (repeats) return static_cast<uint32_t>(period) << kFlags | flags;
  }
  return 0;
}

}  // namespace bptt
