// Runs a kernel of csrc/cuda in the simulator, on arrays from standard input:
//
//   kernels TIER CELL NUMBER T B D H PATTERN UNITS ROWS PARTS TEAM FLAGS SEED
//
// TIER is block, cluster or grid, NUMBER fp32, tf32, bf16 or fp16; for the numbers see ForwardArgs.
// FLAGS is made of "b" (b_hh), "l" (lengths), "r" (resets) and "s" (what backward needs), or "-".
// In come gates_x, w_hh, b_hh, peephole, h0, c0 (float32), lengths (int64) and resets (bytes), as
// far as there are any; out go y, h_n, c_n, saved and cells (float32). A fault goes to standard
// error.
#include <cstdio>
#include <iterator>
#include <string>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "../cuda/forward.cuh"

namespace bptt {
namespace {

using gpu::ForwardArgs;
using gpu::ForwardLayout;
using gpu::View;

constexpr unsigned kThreads = 64;

struct Request {
  std::string tier, cell, number, flags;
  int steps, batch, directions, hidden;
  uint32_t pattern;
  int units, rows, parts, team;

  bool has(char flag) const { return flags.find(flag) != std::string::npos; }
};

template <class T>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != count)
    throw std::runtime_error("short");
  return values;
}

template <class Number>
std::vector<typename Number::Storage> read_stored(size_t count) {
  std::vector<typename Number::Storage> values;
  for (const float x : read<float>(count)) values.push_back(Number::narrow(x));
  return values;
}

template <class Number>
void write_stored(const std::vector<typename Number::Storage>& values) {
  for (const auto x : values) {
    const float wide = Number::widen(x);
    std::fwrite(&wide, sizeof(wide), 1, stdout);
  }
}

template <class T>
View<T> view(std::vector<T>& values) {
  return {values.empty() ? nullptr : values.data(), static_cast<int64_t>(values.size())};
}
template <class T>
View<const T> constant(const std::vector<T>& values) {
  return {values.empty() ? nullptr : values.data(), static_cast<int64_t>(values.size())};
}

// Memory that nobody has written: NaN.
template <class T>
std::vector<T> poisoned(size_t count) {
  std::vector<T> values(count);
  if (count > 0) std::memset(values.data(), 0xFF, count * sizeof(T));
  return values;
}

template <class Cell, class Number, class Team>
void forward(const Request& r) {
  using S = typename Number::Storage;
  const size_t T = r.steps, B = r.batch, D = r.directions, H = r.hidden, G = Cell::kGates;
  const bool has_c = Cell::kStates == 2, save = r.has('s');
  const auto gates_x = read_stored<Number>(T * B * D * G * H);
  const auto w_hh = read_stored<Number>(D * G * H * H);
  const auto b_hh = read_stored<Number>(r.has('b') ? D * G * H : 0);
  const auto peephole = read_stored<Number>(D * Cell::kPeep * H);
  const auto h0 = read_stored<Number>(D * B * H);
  auto c = read<float>(has_c ? D * B * H : 0);
  const auto lengths = read<int64_t>(r.has('l') ? B : 0);
  const auto resets = read<uint8_t>(r.has('r') ? T * B : 0);
  auto y = poisoned<S>(T * B * D * H), h_n = poisoned<S>(D * B * H);
  auto saved = poisoned<S>(save ? T * B * D * Cell::kSaved * H : 0);
  auto cells = poisoned<float>(save && has_c ? T * B * D * H : 0);
  const unsigned slices = (r.batch + r.rows - 1) / r.rows;
  const size_t words = 2 * r.rows * r.units * r.team * sizeof(S) / 4;
  auto exchange = poisoned<uint32_t>(D * slices * words);
  std::vector<uint32_t> counters(D * slices, 0);

  const ForwardArgs<S> args{
      r.steps,           r.batch,           r.directions,     r.hidden,
      r.pattern,         r.units,           r.rows,           r.parts,
      constant(gates_x), constant(w_hh),    constant(b_hh),   constant(peephole),
      constant(h0),      constant(lengths), constant(resets), view(y),
      view(h_n),         view(c),           view(saved),      view(cells),
      view(exchange),    view(counters)};
  const ForwardLayout<Cell, Number, Team> layout(r.units, r.rows, r.parts, r.team);
  gpu::LaunchConfig config;
  config.grid = {static_cast<unsigned>(r.team), slices, static_cast<unsigned>(r.directions)};
  config.block = {kThreads};
  config.shared_bytes = layout.bytes;
  config.cluster = r.tier == "cluster" ? r.team : 1;
  config.cooperative = r.tier == "grid";
  gpu::launch("recurrence_forward", gpu::recurrence_forward<Cell, Number, Team>, config, args);

  write_stored<Number>(y);
  write_stored<Number>(h_n);
  std::fwrite(c.data(), sizeof(float), c.size(), stdout);
  write_stored<Number>(saved);
  std::fwrite(cells.data(), sizeof(float), cells.size(), stdout);
}

template <class Cell, class Number>
void with_team(const Request& r) {
  using S = typename Number::Storage;
  if (r.tier == "block") return forward<Cell, Number, gpu::BlockTeam<S>>(r);
  if (r.tier == "cluster") return forward<Cell, Number, gpu::ClusterTeam<S>>(r);
  if (r.tier == "grid") return forward<Cell, Number, gpu::GridTeam<S>>(r);
  throw std::runtime_error("no tier " + r.tier);
}

template <class Cell>
void with_number(const Request& r) {
  if (r.number == "fp32") return with_team<Cell, gpu::Float32>(r);
  if (r.number == "tf32") return with_team<Cell, gpu::Tf32>(r);
  if (r.number == "bf16") return with_team<Cell, gpu::HalfNumber<gpu::Bf16>>(r);
  if (r.number == "fp16") return with_team<Cell, gpu::HalfNumber<gpu::Fp16>>(r);
  throw std::runtime_error("no number " + r.number);
}

void run(const Request& r) {
  if (r.cell == "lstm") return with_number<Lstm<false>>(r);
#if !defined(BPTT_FEW_KERNELS)  // they all share the loop that a sanitizer is to look at
  if (r.cell == "rnn_tanh") return with_number<Rnn<Tanh>>(r);
  if (r.cell == "rnn_relu") return with_number<Rnn<Relu>>(r);
  if (r.cell == "rnn_sigmoid") return with_number<Rnn<Sigmoid>>(r);
  if (r.cell == "gru") return with_number<Gru>(r);
  if (r.cell == "lstm_peephole") return with_number<Lstm<true>>(r);
#endif
  throw std::runtime_error("no cell " + r.cell);
}

}  // namespace
}  // namespace bptt

int main(int count, char** arguments) {
  if (count != 15) {
    std::fprintf(stderr, "kernels: see the head of csrc/simulator/kernels.cpp\n");
    return 2;
  }
  int numbers[9];
  for (int k = 0; k < 9; ++k) numbers[k] = std::stoi(arguments[4 + k]);
  bptt::simulator::options.seed = std::stoull(arguments[14]);
  try {
    bptt::run({arguments[1], arguments[2], arguments[3], arguments[13], numbers[0], numbers[1],
               numbers[2], numbers[3], static_cast<uint32_t>(numbers[4]), numbers[5], numbers[6],
               numbers[7], numbers[8]});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
