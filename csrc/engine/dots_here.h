// The kinds of bfloat16 products that dots.cpp chooses from.
#pragma once

#include "dots.h"

namespace bptt {

#if defined(__x86_64__)
extern const Dots amx_dots;
extern const Dots avx512_bf16_dots;
#endif

}  // namespace bptt
