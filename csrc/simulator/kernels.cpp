// Runs a persistent LSTM of csrc/cuda, forward and backward, in an engine of the simulator, for the
// sanitizers to watch:
//
//   kernels TIER NUMBER WEIGHTS SEED
//
// TIER is block, cluster, grid or step, NUMBER fp32 or bf16, WEIGHTS shared or held (layout.h). It
// says what is wrong, if anything is: a fault, or an output that nobody wrote.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../cells/lstm.h"
#include "../cuda/launch.cuh"

namespace bptt {

// What launch.cu has for the ops.
uint32_t direction_pattern(const bool*, int64_t) { return 2u << 24 | 2u; }

namespace {

using gpu::Bf16;
using Cell = Lstm<false>;

constexpr int64_t T = 3, B = 5, D = 2, H = 12, G = Cell::kGates, A = Cell::kSaved;

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

template <class S>
void run(Tier tier, NumberKind number, int held, uint64_t seed) {
  Arrays<S> arrays(seed);
  const bool reverse[] = {false, true};
  const int64_t lengths[] = {3, 1, 0, 2, 3};
  const bool resets[T * B] = {false, true, false, false, true, true};
  const Sizes sizes{Dtype::kFloat32, CellKind::kLstm, T, B, D, H, H, 0};
  const Inputs in{arrays.input(D * G * H * H), nullptr, nullptr, arrays.input(D * B * H),
                  arrays.input(D * B * H),     lengths, resets,  reverse};
  ForwardParams f{};
  f.sizes = sizes;
  f.in = in;
  f.gates_x = arrays.input(T * B * D * G * H);
  f.b_hh = arrays.input(D * G * H);
  f.y = arrays.output(T * B * D * H);
  f.h_n = arrays.output(D * B * H);
  f.c_n = arrays.output(D * B * H);
  f.saved = arrays.memory(T * B * D * A * H * sizeof(S));
  f.cells = arrays.memory(T * B * D * H * sizeof(float));
  BackwardParams b{};
  b.sizes = sizes;
  b.in = in;
  b.dy = arrays.input(T * B * D * H);
  b.y = f.y;
  b.saved = f.saved;
  b.cells = f.cells;
  b.dgates_x = arrays.output(T * B * D * G * H);
  b.dh0 = arrays.output(D * B * H);
  b.dc0 = arrays.output(D * B * H);
  b.dh = arrays.output(T * B * D * H);

  GpuPlan plan{};
  plan.tier = tier;
  plan.threads = 96;
  plan.cut = tier == Tier::kBlock  ? Cut{1, 12, 8, 1, 1, held}
             : tier == Tier::kGrid ? Cut{3, 4, 8, 1, 2, held}
                                   : Cut{3, 4, 8, 1, 1, held};
  const auto call_of = [&](bool backward) {
    const GpuProblem problem{CellKind::kLstm, number, T, B, D, H, H, false, backward};
    return GpuCall{number, plan, 0, arrays.memory(CellLaunch<Cell>::scratch(problem, plan)),
                   nullptr};
  };
  check(CellLaunch<Cell>::forward(call_of(false), f));
  check(CellLaunch<Cell>::backward(call_of(true), b));
  if (!arrays.is_written()) throw std::runtime_error("an output that nobody wrote");
}

}  // namespace
}  // namespace bptt

int main(int count, char** arguments) {
  using namespace bptt;
  const std::map<std::string, Tier> tiers = {{"block", Tier::kBlock},
                                             {"cluster", Tier::kCluster},
                                             {"grid", Tier::kGrid},
                                             {"step", Tier::kStep}};
  if (count != 5 || !tiers.contains(arguments[1])) {
    std::fprintf(stderr, "kernels TIER NUMBER WEIGHTS SEED\n");
    return 2;
  }
  const uint64_t seed = std::stoull(arguments[4]);
  simulator::options.seed = seed;
  const int held = std::string(arguments[3]) == "held";
  try {
    if (std::string(arguments[2]) == "fp32") {
      run<float>(tiers.at(arguments[1]), NumberKind::kFloat32, held, seed);
    } else {
      run<gpu::Bf16>(tiers.at(arguments[1]), NumberKind::kBFloat16, held, seed);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
