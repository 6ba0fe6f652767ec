// Products of bfloat16 numbers with sums in float32, by what a processor has for them.
//
// Two numbers that are neighbours along the depth are a pair, one word, the first in its lower
// half. A panel of weights is words [pairs][width], rows that it multiplies are words [pairs] each.
#pragma once

#include <cstdint>

namespace bptt {

constexpr int kDotPairs = 16;  // a depth is a multiple of so many pairs, filled up with zeros
constexpr int kDotRows = 32;   // the most rows of a product

struct DotOperands {
  const void* rows;  // words, with memory for kDotRows of them
  int64_t stride;    // words from one row to the next
  const void* panel;
  int64_t pairs;
  int width;
  int height;   // rows
  float* sums;  // [kDotRows][width], of which the first `height` are meant
};

struct Dots {
  const char* name;
  int lanes;  // a panel's width is a multiple of them
  // What a thread calls before and after its products.
  void (*begin)();
  void (*end)();
  void (*multiply)(const DotOperands&);
};

// What products of bfloat16 are made by: the best here, or what BPTT_CPU_BF16 names ("amx",
// "avx512_bf16", "plain"); null for products in float32, and after "float32". False when it names
// what this machine lacks, or nothing.
bool find_dots(const Dots** found);

// All of this machine, best first; ends with null. The last one, "plain", needs no instruction of
// its own: it makes what "amx" does, to the bit where no number is subnormal, so that tests
// run anywhere.
const Dots* const* supported_dots();

}  // namespace bptt
