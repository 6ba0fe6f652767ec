// bfloat16 products by the tile registers of Intel's processors (AMX).
//
// A tile holds 16 rows of 64 bytes: 16 sums of 16 rows, 16 pairs of 16 rows, or 16 columns of a
// panel over 16 pairs. Two tiles of rows times two of columns share what they load, and take all
// eight registers.
#include "dots_here.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define BPTT_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace bptt {
namespace {

constexpr int kTileRows = 16;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

BPTT_AMX void begin() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}

BPTT_AMX void end() { _tile_release(); }

// Sums are in tiles 0 to 3, rows in 4 and 5, columns in 6 and 7: numbers of registers are part of
// an instruction.
template <bool kTwoRows, bool kTwoColumns>
BPTT_AMX void multiply_tiles(const DotOperands& p, int column) {
  const char* rows = static_cast<const char*>(p.rows);
  const char* panel = static_cast<const char*>(p.panel) + column * 4;
  const int64_t row_bytes = p.stride * 4, panel_bytes = p.width * 4;
  _tile_zero(0);
  if (kTwoColumns) _tile_zero(1);
  if (kTwoRows) _tile_zero(2);
  if (kTwoRows && kTwoColumns) _tile_zero(3);
  for (int64_t k = 0; k < p.pairs; k += kDotPairs) {
    _tile_loadd(4, rows + k * 4, row_bytes);
    if (kTwoRows) _tile_loadd(5, rows + kTileRows * row_bytes + k * 4, row_bytes);
    _tile_loadd(6, panel + k * panel_bytes, panel_bytes);
    if (kTwoColumns) _tile_loadd(7, panel + k * panel_bytes + 64, panel_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
    if (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
  char* sums = reinterpret_cast<char*>(p.sums + column);
  _tile_stored(0, sums, panel_bytes);
  if (kTwoColumns) _tile_stored(1, sums + 64, panel_bytes);
  if (kTwoRows) _tile_stored(2, sums + kTileRows * panel_bytes, panel_bytes);
  if (kTwoRows && kTwoColumns) _tile_stored(3, sums + kTileRows * panel_bytes + 64, panel_bytes);
}

void multiply(const DotOperands& p) {
  constexpr int kLanes = 16;
  const bool two_rows = p.height > kTileRows;
  for (int column = 0; column < p.width; column += 2 * kLanes) {
    const bool two_columns = column + kLanes < p.width;
    if (two_rows) {
      two_columns ? multiply_tiles<true, true>(p, column) : multiply_tiles<true, false>(p, column);
    } else {
      two_columns ? multiply_tiles<false, true>(p, column)
                  : multiply_tiles<false, false>(p, column);
    }
  }
}

}  // namespace

const Dots amx_dots{"amx", 16, begin, end, multiply};

}  // namespace bptt
#endif
