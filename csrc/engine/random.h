// Random numbers that are a function of their place: what the forward pass drew, the backward pass
// draws again, in any order and on any device. Philox 4x32 with 7 rounds, the fewest that pass
// every test of BigCrush: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", 2011. The same in python/bptt/recurrence/random.py and kernels/random.py.
#pragma once

#include <cstdint>

#include "../cells/activation.h"

namespace bptt {

constexpr int kRounds = 7;

struct RandomWords {
  uint32_t word[4];
};

BPTT_HOST_DEVICE RandomWords philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                    uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// What is drawn where. Counters are (unit, sequence of the batch, time step, 4 * direction + Draw).
//   kZoneout           of the hidden state; at sequence / 8 for eight of them, half a word each:
//                      `half_word`
//   kRecurrentDropout  word 0, at time step 0 for all steps
//   kWeightDrop        word 0, at (column, row) of w_hh
//   kZoneoutCells      as kZoneout, of all cell states together
enum class Draw : uint32_t { kZoneout, kRecurrentDropout, kWeightDrop, kZoneoutCells };
constexpr int64_t kRowsOfDraw = 8;

BPTT_HOST_DEVICE RandomWords draw_at(uint64_t seed, Draw what, int64_t unit, int64_t row,
                                     int64_t time, int64_t direction) {
  return philox(seed, static_cast<uint32_t>(unit), static_cast<uint32_t>(row),
                static_cast<uint32_t>(time),
                static_cast<uint32_t>(4 * direction) + static_cast<uint32_t>(what));
}

// What a row gets of a draw for eight: sixteen bits, as the upper ones of a word. The first row has
// the lower half of word 0, the second the upper one, and so on.
BPTT_HOST_DEVICE uint32_t half_word(const RandomWords& words, int64_t row) {
  const int place = static_cast<int>(row % kRowsOfDraw);
  return place % 2 ? words.word[place / 2] & 0xFFFF0000 : words.word[place / 2] << 16;
}

// Happens with the given probability, in steps of 2^-24; of half a word 2^-16.
BPTT_HOST_DEVICE bool happens(uint32_t word, double probability) {
  return static_cast<double>(word >> 8) < probability * 16777216.0;
}

}  // namespace bptt
