// bptt._dev: what the tests want to see of the C++ below the ops. Not part of the library.
//
// Vectors here are those of the plainest instruction set; the others are tested through the ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../cuda/planner.h"
#include "../engine/cells_table.h"
#include "../engine/cpu.h"
#include "../engine/dots.h"
#include "../engine/plan.h"
#include "../engine/random.h"
#include "../engine/simd.h"
#include "../engine/team.h"

namespace py = pybind11;

namespace bptt {
namespace {

using Values = std::vector<double>;

// --- cells --------------------------------------------------------------------------------------

// The struct of the cell of that name. One that is normalised has no step of a unit alone.
CellKind kind_of(const std::string& name) {
  const CellTraits* traits = find_cell(name.c_str());
  if (traits == nullptr) throw std::invalid_argument("unknown cell " + name);
  if (traits->normalized) throw std::invalid_argument(name + " has no step of a unit alone");
  return traits->kind;
}

void check_size(const char* name, const Values& values, int expected) {
  if (static_cast<int>(values.size()) == expected) return;
  throw std::invalid_argument(std::string(name) + " must hold " + std::to_string(expected) +
                              " values, got " + std::to_string(values.size()));
}

// One time step of a layer of one unit, whose recurrent product is weights[g] * h + bias[g].
// Returns the new states and what the cell saves.
std::pair<Values, Values> step_forward(const std::string& name, const Values& gates_x,
                                       const Values& weights, const Values& bias,
                                       const Values& states, const Values& w_unit,
                                       const ChosenMath<double>& math) {
  return with_cell(kind_of(name), [&]<class Cell>() {
    constexpr int last = Cell::kGates - 1;
    check_size("gates_x", gates_x, Cell::kGates);
    check_size("weights", weights, Cell::kGates);
    check_size("bias", bias, Cell::kGates);
    check_size("states", states, Cell::kStates);
    check_size("w_unit", w_unit, Cell::kUnitWeights);
    Values gates_h(Cell::kGates), next(Cell::kStates), saved(Cell::kSaved);
    const Values& own = Cell::kStages == 0 ? w_unit : weights;
    for (int g = 0; g < Cell::kGates; ++g) gates_h[g] = own[g] * states[0] + bias[g];
    if constexpr (Cell::kStages == 2) {
      const double operand =
          Cell::first(math, gates_x.data(), gates_h.data(), states.data(), saved.data());
      gates_h[last] = weights[last] * operand + bias[last];
    }
    Cell::forward(math, gates_x.data(), gates_h.data(), states.data(), w_unit.data(), next.data(),
                  saved.data());
    return std::pair(next, saved);
  });
}

// The gradient of that step: of gates_x, of bias, of the states before it, and of w_unit.
std::tuple<Values, Values, Values, Values> step_backward(
    const std::string& name, const Values& weights, const Values& saved, const Values& states_prev,
    const Values& states, const Values& w_unit, Values dstates, const ChosenMath<double>& math) {
  return with_cell(kind_of(name), [&]<class Cell>() {
    constexpr int last = Cell::kGates - 1;
    check_size("weights", weights, Cell::kGates);
    check_size("saved", saved, Cell::kSaved);
    check_size("states_prev", states_prev, Cell::kStates);
    check_size("states", states, Cell::kStates);
    check_size("w_unit", w_unit, Cell::kUnitWeights);
    check_size("dstates", dstates, Cell::kStates);
    Values dgates_x(Cell::kGates), dgates_h(Cell::kGates), dw_unit(Cell::kUnitWeights, 0.0);
    Cell::backward(math, saved.data(), states_prev.data(), states.data(), w_unit.data(),
                   dstates.data(), dgates_x.data(), dgates_h.data(), dw_unit.data());
    int first_gates = Cell::kGates;
    if constexpr (Cell::kStages == 2) {
      first_gates = last;
      Cell::backward_first(math, saved.data(), states_prev.data(), weights[last] * dgates_h[last],
                           dstates.data(), dgates_x.data(), dgates_h.data());
    }
    const Values& own = Cell::kStages == 0 ? w_unit : weights;
    for (int g = 0; g < first_gates; ++g) {
      dstates[0] += own[g] * dgates_h[g];
      if (Cell::kStages == 0) dw_unit[g] += states_prev[0] * dgates_h[g];
    }
    return std::tuple(dgates_x, dgates_h, dstates, dw_unit);
  });
}

py::list cells() {
  py::list rows;
  for (const CellTraits& cell : kCells) {
    py::dict row;
    row["name"] = cell.name;
    row["gates"] = cell.gates;
    row["states"] = cell.states;
    row["saved"] = cell.saved;
    row["unit_weights"] = cell.unit_weights;
    row["stages"] = cell.stages;
    row["shared_gates"] = cell.shared_gates;
    row["normalized"] = cell.normalized;
    rows.append(row);
  }
  return rows;
}

// --- activations on vectors ---------------------------------------------------------------------

template <class T>
Vec<T> activate(const std::string& name, Vec<T> x) {
  if (name == "exponential") return exponential(x);
  if (name == "sigmoid") return Sigmoid::forward(x);
  if (name == "tanh") return Tanh::forward(x);
  if (name == "relu") return Relu::forward(x);
  throw std::invalid_argument("unknown activation " + name);
}

template <class T>
py::array_t<T> activation(const std::string& name, py::array_t<T, py::array::c_style> x) {
  constexpr int64_t lanes = Vec<T>::kLanes;
  py::array_t<T> y(x.size());
  for (int64_t k = 0; k < x.size(); k += lanes) {
    const int count = static_cast<int>(x.size() - k < lanes ? x.size() - k : lanes);
    store(y.mutable_data() + k, activate(name, load(x.data() + k, count)), count);
  }
  return y;
}

// float32 -> bfloat16 -> float32, as the engine stores and loads it.
py::array_t<float> through_bfloat16(py::array_t<float, py::array::c_style> x) {
  constexpr int64_t lanes = Vec<float>::kLanes;
  py::array_t<float> y(x.size());
  std::vector<BFloat16> stored(x.size());
  for (int64_t k = 0; k < x.size(); k += lanes) {
    const int count = static_cast<int>(x.size() - k < lanes ? x.size() - k : lanes);
    store(stored.data() + k, load(x.data() + k, count), count);
    store(y.mutable_data() + k, load(stored.data() + k, count), count);
  }
  return y;
}

// --- the plan on a CPU --------------------------------------------------------------------------

// Lanes, row slices and unit slices for sizes [T, B, D, H, R].
std::tuple<int, int, int> plan(const std::string& name, bool is_double,
                               const std::vector<int64_t>& sizes, int vector, int threads) {
  const CellTraits* cell = find_cell(name.c_str());
  if (cell == nullptr || sizes.size() != 5) throw std::invalid_argument("cell or sizes");
  Sizes s{};
  s.dtype = is_double ? Dtype::kFloat64 : Dtype::kFloat32;
  s.cell = cell->kind;
  s.steps = sizes[0];
  s.batch = sizes[1];
  s.directions = sizes[2];
  s.hidden = sizes[3];
  s.state = sizes[4];
  const Plan p = plan_cpu(s, static_cast<int>(cell->gates), vector, threads);
  return {p.lanes, p.row_slices, p.unit_slices};
}

// What a call does with `bytes` of weights: "packed", or where they lie "panels" or "rows", for the
// products of a step with the hidden state. Forward, or with `columns` backward.
std::string placement(int64_t bytes, int64_t products, int64_t batch, bool columns, int64_t gates) {
  const Lying plan = columns ? plan_columns(bytes, products, batch)
                             : plan_lying(bytes, products, batch, true, gates);
  return !plan.lies ? "packed" : plan.state_by_panel ? "panels" : "rows";
}

// Bytes of scratch memory of a forward pass with up to `threads` workers; sizes [T, B, D, H, R, I].
int64_t forward_scratch(const std::string& name, const std::vector<int64_t>& sizes, int threads) {
  const CellTraits* cell = find_cell(name.c_str());
  if (cell == nullptr || sizes.size() != 6) throw std::invalid_argument("cell or sizes");
  ForwardParams p{};
  p.sizes = {Dtype::kFloat32, cell->kind, sizes[0], sizes[1],
             sizes[2],        sizes[3],   sizes[4], sizes[5]};
  return cpu_kernels()->forward_scratch(p, threads);
}

// --- the plan on a GPU --------------------------------------------------------------------------

constexpr const char* kTiers[] = {"block", "cluster", "grid", "step"};
constexpr const char* kNumbers[] = {"fp32", "tf32", "fp16", "bf16"};

template <size_t N>
int index_of(const char* const (&names)[N], const std::string& name) {
  for (size_t k = 0; k < N; ++k) {
    if (name == names[k]) return static_cast<int>(k);
  }
  throw std::invalid_argument("unknown name " + name);
}

// Sizes are [T, B, D, H, R], a device [capability, processors, bytes of shared memory, MHz].
struct GpuQuestion {
  GpuProblem problem;
  Device device;

  GpuQuestion(const std::string& name, const std::string& number, const std::vector<int64_t>& s,
              bool projected, bool backward, const std::vector<int>& d) {
    const CellTraits* cell = find_cell(name.c_str());
    if (cell == nullptr || s.size() != 5 || d.size() != 4) {
      throw std::invalid_argument("cell, sizes or device");
    }
    const auto kind = static_cast<NumberKind>(index_of(kNumbers, number));
    problem = {cell->kind, kind, s[0], s[1], s[2], s[3], s[4], projected, backward, false, false};
    device = {d[0], d[1], d[2], d[3], {}};
  }
};

py::dict dict_of(const GpuPlan& plan) {
  py::dict row;
  row["tier"] = kTiers[static_cast<int>(plan.tier)];
  row["team"] = plan.cut.team;
  row["units"] = plan.cut.units;
  row["rows"] = plan.cut.rows;
  row["passes"] = plan.cut.passes;
  row["parts"] = plan.cut.parts;
  row["held"] = plan.cut.held;
  row["threads"] = plan.threads;
  row["blocks"] = plan.blocks;
  row["waves"] = plan.waves;
  row["shared_bytes"] = plan.shared_bytes;
  row["exchanges"] = plan.exchanges;
  row["step_us"] = plan.step_us;
  row["sequence_us"] = plan.sequence_us;
  return row;
}

py::dict gpu_plan(const GpuQuestion& q) { return dict_of(plan_gpu(q.problem, q.device)); }

// None where the tier cannot take the problem.
py::object gpu_plan_of_tier(const GpuQuestion& q, const std::string& tier) {
  GpuPlan plan{};
  if (!plan_tier(static_cast<Tier>(index_of(kTiers, tier)), q.problem, q.device, &plan)) {
    return py::none();
  }
  return dict_of(plan);
}

// What is wrong with a tier and [team, units, rows, passes, parts, held, threads], or None.
py::object gpu_plan_error(const GpuQuestion& q, const std::string& tier,
                          const std::vector<int>& numbers) {
  if (numbers.size() != 7) throw std::invalid_argument("numbers");
  GpuPlan plan{};
  plan.tier = static_cast<Tier>(index_of(kTiers, tier));
  plan.cut = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]};
  plan.threads = numbers[6];
  const char* error = plan_error(plan, q.problem, q.device);
  return error == nullptr ? py::object(py::none()) : py::object(py::str(error));
}

// --- the team -----------------------------------------------------------------------------------

using Piece = void (*)(int64_t, int64_t, void*);

// Pools as torch may have them: a thread for each index, all indices in turn on the caller's
// thread, one piece for everything, or threads of which the second comes long after the team has
// formed.
thread_local int own_index = -1;  // of a thread of the first pool

void pool_of_threads(int64_t n, Piece f, void* context) {
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < n; ++k) {
    threads.emplace_back([=] {
      own_index = static_cast<int>(k);
      f(k, k + 1, context);
    });
  }
  for (std::thread& thread : threads) thread.join();
}
void pool_in_turn(int64_t n, Piece f, void* context) {
  for (int64_t k = 0; k < n; ++k) f(k, k + 1, context);
}
void pool_of_one_piece(int64_t n, Piece f, void* context) { f(0, n, context); }
void pool_with_latecomer(int64_t n, Piece f, void* context) {
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < n; ++k) {
    threads.emplace_back([=] {
      if (k == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      f(k, k + 1, context);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

struct Meeting {
  int rounds;
  Barrier barrier;
  std::vector<std::atomic<int>> round, workers, failures, indices;
  Meeting(int wanted, int rounds)
      : rounds(rounds), round(wanted), workers(wanted), failures(wanted), indices(wanted) {}
};

// Every member writes its round, meets the others, and looks whether all have written theirs.
void meet(int worker, int workers, void* context) {
  Meeting& m = *static_cast<Meeting*>(context);
  m.workers[worker] += workers;
  m.indices[worker] = own_index;
  for (int r = 1; r <= m.rounds; ++r) {
    m.round[worker].store(r, std::memory_order_relaxed);
    m.barrier.wait(workers);
    for (int k = 0; k < workers; ++k) {
      if (m.round[k].load(std::memory_order_relaxed) != r) ++m.failures[worker];
    }
    m.barrier.wait(workers);
  }
}

// Runs a team that meets at a barrier 2 * rounds times. Per worker: the sum of the team sizes that
// its calls saw, how often a member was not in the round of the others, and which index of the
// loop its thread had.
std::array<std::vector<int>, 3> run_meeting(const std::string& pool, int wanted, int rounds) {
  void (*loop)(int64_t, Piece, void*) = nullptr;
  if (pool == "threads") loop = pool_of_threads;
  if (pool == "in_turn") loop = pool_in_turn;
  if (pool == "one_piece") loop = pool_of_one_piece;
  if (pool == "latecomer") loop = pool_with_latecomer;
  if (loop == nullptr) throw std::invalid_argument("unknown pool " + pool);
  Meeting meeting(wanted, rounds);
  {
    const py::gil_scoped_release release;
    run_team({wanted, loop}, wanted, 200, meet, &meeting);
  }
  return {std::vector<int>{meeting.workers.begin(), meeting.workers.end()},
          {meeting.failures.begin(), meeting.failures.end()},
          {meeting.indices.begin(), meeting.indices.end()}};
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (auto list = supported_cpu_kernels(); *list != nullptr; ++list)
    names.push_back((*list)->name);
  return names;
}

std::vector<std::string> dots() {
  std::vector<std::string> names;
  for (auto list = supported_dots(); *list != nullptr; ++list) names.push_back((*list)->name);
  return names;
}

using Words = py::array_t<uint32_t, py::array::c_style>;

// Of rows [up to kDotRows, pairs] and a panel [pairs, width], by what has that name.
py::array_t<float> dot_products(const std::string& name, const Words& rows, const Words& panel) {
  const Dots* found = nullptr;
  for (auto list = supported_dots(); *list != nullptr; ++list) {
    if (name == (*list)->name) found = *list;
  }
  const int64_t height = rows.shape(0), pairs = rows.shape(1), width = panel.shape(1);
  if (found == nullptr || width % found->lanes != 0 || pairs % kDotPairs != 0 ||
      height > kDotRows || panel.shape(0) != pairs) {
    throw std::invalid_argument("name, rows or panel");
  }
  std::vector<uint32_t> padded(kDotRows * pairs, 0xffffffff);  // no number
  std::copy(rows.data(), rows.data() + height * pairs, padded.begin());
  std::vector<float> sums(kDotRows * width);
  found->begin();
  found->multiply({padded.data(), pairs, panel.data(), pairs, static_cast<int>(width),
                   static_cast<int>(height), sums.data()});
  found->end();
  py::array_t<float> out({height, width});
  std::copy(sums.data(), sums.data() + height * width, out.mutable_data());
  return out;
}

}  // namespace
}  // namespace bptt

PYBIND11_MODULE(_dev, m) {
  using namespace bptt;
  m.doc() = "What bptt's tests see of the C++ below the ops.";
  m.def("instruction_sets", &instruction_sets);
  m.def("dots", &dots);
  m.def("dot_products", &dot_products, py::arg("name"), py::arg("rows"), py::arg("panel"));
  m.def("cells", &cells);
  py::enum_<Activation>(m, "Activation")
      .value("own", Activation::kOwn)
      .value("sigmoid", Activation::kSigmoid)
      .value("hard_sigmoid", Activation::kHardSigmoid)
      .value("tanh", Activation::kTanh)
      .value("hard_tanh", Activation::kHardTanh)
      .value("relu", Activation::kRelu)
      .value("softsign", Activation::kSoftsign)
      .value("identity", Activation::kIdentity);
  py::class_<ChosenMath<double>>(m, "Math").def(
      py::init([](Activation gates, Activation states, double bound) {
        return ChosenMath<double>{gates, states, bound};
      }),
      py::arg("gates") = Activation::kOwn, py::arg("states") = Activation::kOwn,
      py::arg("bound") = 0.0);
  const ChosenMath<double> own{Activation::kOwn, Activation::kOwn, 0};
  m.def("step_forward", &step_forward, py::arg("cell"), py::arg("gates_x"), py::arg("weights"),
        py::arg("bias"), py::arg("states"), py::arg("w_unit"), py::arg("math") = own);
  m.def("step_backward", &step_backward, py::arg("cell"), py::arg("weights"), py::arg("saved"),
        py::arg("states_prev"), py::arg("states"), py::arg("w_unit"), py::arg("dstates"),
        py::arg("math") = own);
  m.def(
      "random_words",
      [](uint64_t key, const std::vector<uint32_t>& c) {
        if (c.size() != 4) throw std::invalid_argument("counters");
        const RandomWords words = philox(key, c[0], c[1], c[2], c[3]);
        return std::vector<uint32_t>(words.word, words.word + 4);
      },
      py::arg("key"), py::arg("counters"));
  m.def("activation", &activation<float>, py::arg("name"), py::arg("x").noconvert());
  m.def("activation", &activation<double>, py::arg("name"), py::arg("x").noconvert());
  m.def("through_bfloat16", &through_bfloat16, py::arg("x").noconvert());
  m.def("placement", &placement, py::arg("bytes"), py::arg("products"), py::arg("batch"),
        py::arg("columns"), py::arg("gates") = 0);
  m.def("plan", &plan, py::arg("cell"), py::arg("is_double"), py::arg("sizes"), py::arg("vector"),
        py::arg("threads"));
  py::class_<GpuQuestion>(m, "GpuQuestion")
      .def(py::init<const std::string&, const std::string&, const std::vector<int64_t>&, bool, bool,
                    const std::vector<int>&>(),
           py::arg("cell"), py::arg("number"), py::arg("sizes"), py::arg("projected"),
           py::arg("backward"), py::arg("device"));
  m.def("patience", [](const std::vector<int64_t>& s, int gates) {
    return plan_patience(
        {Dtype::kFloat32, CellKind::kLstm, s.at(0), s.at(1), s.at(2), s.at(3), s.at(3), s.at(4)},
        gates);
  });
  m.def("forward_scratch", &forward_scratch, py::arg("cell"), py::arg("sizes"), py::arg("threads"));
  m.def("plan_gpu", &gpu_plan, py::arg("question"));
  m.def("plan_tier", &gpu_plan_of_tier, py::arg("question"), py::arg("tier"));
  m.def("plan_error", &gpu_plan_error, py::arg("question"), py::arg("tier"), py::arg("numbers"));
  m.def("cut", [](int64_t total, int parts, int index) {
    const Range range = cut(total, parts, index);
    return std::pair(range.begin, range.end);
  });
  m.def("deal", [](int64_t total, int parts, int index) {
    const Range range = deal(total, parts, index);
    return std::pair(range.begin, range.end);
  });
  m.def("order_rows", [](const std::vector<int64_t>& lengths) {
    std::vector<int64_t> order(lengths.size());
    order_rows(lengths.data(), static_cast<int64_t>(lengths.size()), order.data());
    return order;
  });
  m.def("run_meeting", &run_meeting, py::arg("pool"), py::arg("wanted"), py::arg("rounds"));
}
