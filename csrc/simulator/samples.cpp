// Runs one of the samples in the simulator and says what came of it:
//
//   samples NAME FAULT SEED     "seed SEED: ", then "right", "wrong: ..." or "fault: ..."
#include "samples.cuh"

#include <cstdio>
#include <map>
#include <random>
#include <string>

namespace bptt::samples {
namespace {

using gpu::Extent;

template <class T>
View<T> view(std::vector<T>& values) {
  return {values.data(), static_cast<int64_t>(values.size())};
}
template <class T>
View<const T> constant(const std::vector<T>& values) {
  return {values.data(), static_cast<int64_t>(values.size())};
}

std::vector<float> random_values(size_t count) {
  std::mt19937 random(7);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random() % 64) / 16 - 2;
  return values;
}

template <class T>
std::string compared(const std::vector<T>& got, const std::vector<T>& expected) {
  for (size_t k = 0; k < got.size(); ++k) {
    if (!(got[k] == expected[k])) {
      return "wrong: element " + std::to_string(k) + " is " + std::to_string(got[k]) +
             ", expected " + std::to_string(expected[k]);
    }
  }
  return "right";
}

std::string run_reverse(int fault) {
  const int blocks = 3, threads = 64;
  const auto values = random_values(blocks * threads);
  std::vector<float> out(values.size(), NAN), expected;
  for (int b = 0; b < blocks; ++b) {
    for (int k = 0; k < threads; ++k) expected.push_back(values[b * threads + threads - 1 - k]);
  }
  gpu::launch("reverse", reverse, {Extent{blocks}, Extent{threads}, 4 * threads}, constant(values),
              view(out), fault);
  return compared(out, expected);
}

// Of a product whose second operand lies in rows along the depth, or across it.
std::string run_product(int fault, bool across) {
  const auto numbers = random_values(16 * 16 + 8 * 16);  // exact in bfloat16
  std::vector<uint16_t> a, b;
  for (size_t k = 0; k < numbers.size(); ++k) {
    const auto bits = std::bit_cast<uint32_t>(numbers[k]);
    (k < 256 ? a : b).push_back(static_cast<uint16_t>(bits >> 16));
  }
  std::vector<float> c(16 * 8, NAN), expected(16 * 8, 0);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 16; ++k) {
        expected[row * 8 + column] += numbers[row * 16 + k] * numbers[256 + column * 16 + k];
      }
    }
  }
  if (across) {
    const std::vector<uint16_t> rows = b;
    for (int k = 0; k < 8 * 16; ++k) b[k % 16 * 8 + k / 16] = rows[k];
  }
  gpu::launch("product", across ? product<true> : product<false>,
              {Extent{1}, Extent{32}, 2 * (256 + 128)}, constant(a), constant(b), view(c), fault);
  return compared(c, expected);
}

std::string run_product_along(int fault) { return run_product(fault, false); }
std::string run_product_across(int fault) { return run_product(fault, true); }

std::string run_pipeline(int fault) {
  const int threads = 32, tiles = 5;
  const auto values = random_values(4 * threads * tiles);
  std::vector<float> out(threads, NAN), expected(threads, 0);
  for (int tile = 0; tile < tiles; ++tile) {
    for (int k = 0; k < 4 * threads; ++k) expected[k / 4] += values[tile * 4 * threads + k];
  }
  gpu::launch("pipeline", pipeline, {Extent{1}, Extent{threads}, 2 * 16 * threads},
              constant(values), view(out), tiles, fault);
  return compared(out, expected);
}

std::string run_ring(int fault) {
  const int blocks = 4, threads = 32, rounds = 7;
  std::vector<uint32_t> values, out(blocks * threads, ~0u), expected;
  for (int k = 0; k < blocks * threads; ++k) values.push_back(k);
  for (int k = 0; k < blocks * threads; ++k) {
    expected.push_back((k + rounds * threads) % (blocks * threads));
  }
  gpu::launch("ring", ring, {Extent{blocks}, Extent{threads}, 16 + 8 * threads, blocks},
              constant(values), view(out), rounds, fault);
  return compared(out, expected);
}

std::string run_shares(int fault) {
  const int blocks = 4, threads = 32;
  const auto values = random_values(blocks * threads);
  std::vector<float> out(blocks * threads, NAN), expected(blocks * threads, 0);
  for (int k = 0; k < blocks * threads; ++k) {
    for (int rank = 0; rank < blocks; ++rank) expected[k] += values[rank * threads + k % threads];
  }
  gpu::launch("shares", shares, {Extent{blocks}, Extent{threads}, 4 * threads, blocks},
              constant(values), view(out), fault);
  return compared(out, expected);
}

std::string run_hops(int fault) {
  const int blocks = 5, threads = 32, rounds = 6;
  std::vector<float> out(2 * blocks, NAN);
  std::fill_n(out.begin(), blocks, 0.0f);
  std::vector<uint32_t> counter{0};
  gpu::launch("hops", hops, {Extent{blocks}, Extent{threads}, 0, 1, true}, view(out), view(counter),
              rounds, fault);
  std::vector<float> expected(2 * blocks, rounds - 1);
  std::fill_n(expected.begin(), blocks, rounds);
  return compared(out, expected);
}

std::string run_mail(int fault) {
  const int blocks = 5, rounds = 6;
  std::vector<float> letters(2 * blocks, -1), out(blocks, NAN), expected;
  std::vector<uint32_t> counter{0};
  gpu::launch("mail", mail, {Extent{blocks}, Extent{1}, 16, 1, true}, view(letters), view(out),
              view(counter), rounds, fault);
  for (int block = 0; block < blocks; ++block) {
    const int from = (block + blocks - 1) % blocks;
    expected.push_back(static_cast<float>(rounds * from + blocks * rounds * (rounds - 1) / 2));
  }
  return compared(out, expected);
}

// A launch that is not cooperative, of more blocks than run at once; then one that cannot be.
std::string run_too_large(int fault) {
  simulator::options.processors = 3;
  std::vector<float> out(2 * 5, 0);
  std::vector<uint32_t> counter{0};
  const bool cooperative = fault == kNone;
  const auto status = gpu::launch("hops", hops, {Extent{5}, Extent{1}, 0, 1, cooperative},
                                  view(out), view(counter), 3, kNone);
  return status == cudaSuccess ? "right" : gpu::error_text(status);
}

}  // namespace
}  // namespace bptt::samples

int main(int count, char** arguments) {
  using namespace bptt::samples;
  const std::map<std::string, std::string (*)(int)> samples = {
      {"reverse", run_reverse},
      {"product", run_product_along},
      {"product_across", run_product_across},
      {"pipeline", run_pipeline},
      {"ring", run_ring},
      {"shares", run_shares},
      {"hops", run_hops},
      {"mail", run_mail},
      {"too_large", run_too_large}};
  const std::map<std::string, int> faults = {{"none", kNone},
                                             {"missing_barrier", kMissingBarrier},
                                             {"past_the_tile", kPastTheTile},
                                             {"past_the_memory", kPastTheMemory},
                                             {"divergent_barrier", kDivergentBarrier},
                                             {"missing_wait", kMissingWait},
                                             {"stale_buffer", kStaleBuffer},
                                             {"wrong_phase", kWrongPhase},
                                             {"missing_signal", kMissingSignal},
                                             {"uninitialised", kUninitialised},
                                             {"early_copy", kEarlyCopy},
                                             {"missing_fence", kMissingFence},
                                             {"leaves_early", kLeavesEarly}};
  if (count != 4 || !samples.contains(arguments[1]) || !faults.contains(arguments[2])) {
    std::fprintf(stderr, "samples NAME FAULT SEED\n");
    return 2;
  }
  bptt::simulator::options.seed = std::stoull(arguments[3]);
  std::string answer;
  try {
    answer = samples.at(arguments[1])(faults.at(arguments[2]));
  } catch (const bptt::simulator::Fault& fault) {
    answer = std::string("fault: ") + fault.what();
  }
  std::printf("seed %s: %s\n", arguments[3], answer.c_str());
  return 0;
}
