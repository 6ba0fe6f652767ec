// Runs an LSTM of csrc/cuda, forward and backward, in an engine of the simulator, for the
// sanitizers to watch:
//
//   kernels TIER NUMBER WEIGHTS SEED
//
// TIER is block, cluster, grid or step, NUMBER fp32 or bf16, WEIGHTS shared or held (layout.h). In
// place of a tier: `controlled`, the step tier with all that a loop may do besides; `normalized`,
// the same with layer normalisation; `diagonal`, a cell without a product. It says what is wrong,
// if anything is: a fault, or an output that nobody wrote.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../cells/library.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "../cuda/launch.cuh"

namespace bptt {

// What launch.cu has for the ops.
uint32_t direction_pattern(const bool*, int64_t) { return 2u << 24 | 2u; }

namespace {

using gpu::Bf16;

constexpr int64_t T = 3, B = 5, D = 2, H = 12;
constexpr int64_t kSeed = 5;
constexpr Control kAll = {
    true, Activation::kOwn, Activation::kRelu, 0.8, 0.2, 0.3, true, 0.3, 2, 0.5, 0.6, &kSeed};

template <class S>
class Arrays {
 public:
  explicit Arrays(uint64_t seed) : random_(seed) {}

  // Numbers between -1 and 1.
  void* input(int64_t count) {
    S* const values = static_cast<S*>(memory(count * sizeof(S)));
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t k = 0; k < count; ++k) {
      if constexpr (sizeof(S) == 2) {
        values[k] = gpu::narrow<S>(uniform(random_));
      } else {
        values[k] = uniform(random_);
      }
    }
    return values;
  }
  // Memory that nobody has written: NaN.
  void* output(int64_t count, size_t size = sizeof(S)) {
    void* const values = memory(count * size);
    std::memset(values, 0xFF, count * size);
    outputs_.push_back({static_cast<char*>(values), count * size, size});
    return values;
  }
  void* memory(int64_t bytes) {
    blocks_.emplace_back(bytes / sizeof(uint64_t) + 1);
    return blocks_.back().data();
  }
  bool is_written() const {
    for (const Output& out : outputs_) {
      for (size_t k = 0; k < out.bytes; k += out.size) {
        if (std::string(out.data + k, out.size) == std::string(out.size, '\xFF')) return false;
      }
    }
    return true;
  }

 private:
  struct Output {
    const char* data;
    size_t bytes, size;
  };

  std::mt19937_64 random_;
  std::deque<std::vector<uint64_t>> blocks_;
  std::vector<Output> outputs_;
};

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

template <class Cell, class S>
void run(CellKind cell, const Control& control, Tier tier, NumberKind number, int held,
         uint64_t seed) {
  constexpr int64_t G = Cell::kGates, A = kSavedPlanes<Cell>, P = Cell::kUnitWeights;
  constexpr int64_t C = kCellStates<Cell>;
  Arrays<S> arrays(seed);
  const bool reverse[] = {false, true};
  const int64_t lengths[] = {3, 1, 0, 2, 3};
  const bool resets[T * B] = {false, true, false, false, true, true};
  const Sizes sizes{Dtype::kFloat32, cell, T, B, D, H, H, 0};
  const Inputs in{arrays.input(D * G * H * H),
                  nullptr,
                  P > 0 ? arrays.input(D * P * H) : nullptr,
                  arrays.input(D * B * H),
                  C > 0 ? arrays.input(D * B * C * H) : nullptr,
                  lengths,
                  resets,
                  reverse,
                  control};
  ForwardParams f{};
  f.sizes = sizes;
  f.in = in;
  f.gates_x = arrays.input(T * B * D * G * H);
  f.b_hh = arrays.input(D * G * H);
  f.y = arrays.output(T * B * D * H);
  f.h_n = arrays.output(D * B * H);
  if (C > 0) f.c_n = arrays.output(D * B * C * H);
  f.saved = arrays.memory(T * B * D * A * H * sizeof(S));
  f.cells = arrays.memory(T * B * D * C * H * sizeof(float));
  BackwardParams b{};
  b.sizes = sizes;
  b.in = in;
  b.dy = arrays.input(T * B * D * H);
  b.y = f.y;
  b.saved = f.saved;
  b.cells = f.cells;
  b.dgates_x = arrays.output(T * B * D * G * H);
  if (!Cell::kSharedGates) b.dgates_h = arrays.output(T * B * D * G * H);
  b.dh0 = arrays.output(D * B * H);
  if (C > 0) b.dc0 = arrays.output(D * B * C * H);
  if (P > 0) b.dw_unit = arrays.output(B * D * P * H * sizeof(float) / sizeof(S));
  b.dh = arrays.output(T * B * D * H);

  GpuPlan plan{};
  plan.tier = tier;
  plan.threads = 96;
  plan.cut = tier == Tier::kBlock  ? Cut{1, 12, 8, 1, 1, held}
             : tier == Tier::kGrid ? Cut{3, 4, 8, 1, 2, held}
                                   : Cut{3, 4, 8, 1, 1, held};
  bool refused = false;
  const auto call_of = [&](bool backward) {
    const GpuProblem problem{cell, number, T, B, D, H, H, false, backward, control.on, false};
    return GpuCall{number,  plan,     0, arrays.memory(CellLaunch<Cell>::scratch(problem, plan)),
                   nullptr, &refused, 0};
  };
  check(CellLaunch<Cell>::forward(call_of(false), f));
  check(CellLaunch<Cell>::backward(call_of(true), b));
  if (!arrays.is_written()) throw std::runtime_error("an output that nobody wrote");
}

template <class S>
void run(const std::string& tier, NumberKind number, int held, uint64_t seed) {
  const std::map<std::string, Tier> tiers = {{"block", Tier::kBlock},
                                             {"cluster", Tier::kCluster},
                                             {"grid", Tier::kGrid},
                                             {"step", Tier::kStep}};
  if (tier == "controlled") {
    run<Lstm<false>, S>(CellKind::kLstm, kAll, Tier::kStep, number, held, seed);
  } else if (tier == "normalized") {
    using Cell = LayerNorm<Lstm<false>>;
    run<Cell, S>(CellKind::kLstmLayerNorm, kAll, Tier::kStep, number, held, seed);
  } else if (tier == "diagonal") {
    using Cell = Diagonal<Rnn<Relu>>;
    run<Cell, S>(CellKind::kIndRnn, kAll, Tier::kStep, number, held, seed);
    run<DiagonalLstm, S>(CellKind::kDiagonalLstm, {}, Tier::kStep, number, held, seed);
  } else {
    run<Lstm<false>, S>(CellKind::kLstm, {}, tiers.at(tier), number, held, seed);
  }
}

}  // namespace
}  // namespace bptt

int main(int count, char** arguments) {
  using namespace bptt;
  if (count != 5) {
    std::fprintf(stderr, "kernels TIER NUMBER WEIGHTS SEED\n");
    return 2;
  }
  const uint64_t seed = std::stoull(arguments[4]);
  simulator::options.seed = seed;
  const int held = std::string(arguments[3]) == "held";
  try {
    if (std::string(arguments[2]) == "fp32") {
      run<float>(arguments[1], NumberKind::kFloat32, held, seed);
    } else {
      run<gpu::Bf16>(arguments[1], NumberKind::kBFloat16, held, seed);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
