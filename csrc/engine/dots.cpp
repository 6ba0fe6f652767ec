#include "dots.h"

#include <cstdlib>
#include <cstring>

#include "dots_here.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bptt {
namespace {

float low(uint32_t pair) {
  const uint32_t bits = pair << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
float high(uint32_t pair) { return low(pair >> 16); }

// As a tile register does it: sums over kDotPairs pairs of the first numbers and of the second
// ones, then both. A product of two bfloat16 is exact in float32.
void multiply(const DotOperands& p) {
  const uint32_t* const panel = static_cast<const uint32_t*>(p.panel);
  for (int r = 0; r < p.height; ++r) {
    const uint32_t* const row = static_cast<const uint32_t*>(p.rows) + r * p.stride;
    for (int c = 0; c < p.width; ++c) {
      float sum = 0;
      for (int64_t first = 0; first < p.pairs; first += kDotPairs) {
        float lows = 0, highs = 0;
        for (int64_t k = first; k < first + kDotPairs; ++k) {
          const uint32_t weights = panel[k * p.width + c];
          lows += low(row[k]) * low(weights);
          highs += high(row[k]) * high(weights);
        }
        sum += lows + highs;
      }
      p.sums[r * p.width + c] = sum;
    }
  }
}

void nothing() {}

const Dots plain_dots{"plain", 1, nothing, nothing, multiply};

#if defined(__x86_64__)

// Whether there are tile registers, and this process may use them: Linux keeps the memory for them
// back until it is asked.
bool has_tiles() {
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return false;
#if defined(__linux__)
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#else
  return false;
#endif
}

#endif

struct Supported {
  const Dots* list[4] = {};
  const Dots* best = nullptr;

  Supported() {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_tiles()) best = list[count++] = &amx_dots;
    if (__builtin_cpu_supports("avx512bf16")) {
      list[count++] = &avx512_bf16_dots;
      // Intel's processors make fewer of its products than float32 ones, see benchmarks/NOTES.md.
      if (best == nullptr && __builtin_cpu_is("amd")) best = &avx512_bf16_dots;
    }
#endif
    list[count] = &plain_dots;
  }
};

const Supported& supported() {
  static const Supported found;
  return found;
}

}  // namespace

const Dots* const* supported_dots() { return supported().list; }

bool find_dots(const Dots** found) {
  const char* const wanted = std::getenv("BPTT_CPU_BF16");
  *found = nullptr;
  if (wanted == nullptr || *wanted == 0) {
    *found = supported().best;
    return true;
  }
  if (std::strcmp(wanted, "float32") == 0) return true;
  for (const Dots* const* list = supported_dots(); *list != nullptr; ++list) {
    if (std::strcmp((*list)->name, wanted) == 0) *found = *list;
  }
  return *found != nullptr;
}

}  // namespace bptt
