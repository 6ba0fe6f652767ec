// What the CPU ops do to memory they have just allocated.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bptt {

// A layer's tensors are tens of megabytes and allocated anew at each call. In pages of 4 KB the
// first touch of such a tensor costs more than the arithmetic on it; ask for large ones (a hint:
// the kernel may decline).
inline void advise_large_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kWorthwhile = 4 << 20, kPage = 4096;
  if (bytes < kWorthwhile) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

// With BPTT_POISON=1 every output and scratch buffer starts as NaN, so that a test sees what a
// kernel forgot to write.
inline void poison_memory(void* memory, size_t bytes) {
  static const bool poison = [] {
    const char* value = std::getenv("BPTT_POISON");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  if (poison && bytes > 0) std::memset(memory, 0xff, bytes);
}

inline void prepare_memory(void* memory, size_t bytes) {
  advise_large_pages(memory, bytes);
  poison_memory(memory, bytes);
}

}  // namespace bptt
