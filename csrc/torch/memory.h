// What the CPU ops do to memory they have just allocated.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bptt {

constexpr size_t kLargeBytes = 4 << 20;

// A layer's tensors are tens of megabytes and allocated anew at each call. In pages of 4 KB the
// first touch of such a tensor costs more than the arithmetic on it; ask for large ones (a hint:
// the kernel may decline).
inline void advise_large_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kPage = 4096;
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

// glibc gives the end of its heap back to the system when more of it is free than twice the
// largest block that was freed so far, up to 64 MB. The gradients of a layer's weights, freed
// together, are more than twice the largest of them: each call would get new pages. A block that
// nothing is written to tells it once that there are large ones.
inline void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr size_t kLargest = 31 << 20;
  static const bool told = [] {
    void* volatile block = std::malloc(kLargest);  // volatile, or a compiler leaves out both calls
    std::free(block);
    return true;
  }();
  (void)told;
#endif
}

inline void prepare_memory(void* memory, size_t bytes) {
  if (bytes >= kLargeBytes) {
    keep_freed_memory();
    advise_large_pages(memory, bytes);
  }
  poison_memory(memory, bytes);
}

}  // namespace bptt
