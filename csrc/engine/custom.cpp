#include "custom.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

namespace bptt {
namespace {

constexpr int kMost = 1024;
constexpr int kFirst = static_cast<int>(CellKind::kCustom);

constexpr int kDtypes = 3;

// Written under a lock, read without one: traits never change, and the count comes after them.
struct Entry {
  CellTraits traits;
  std::atomic<const CpuLoops*> loops[kDtypes][2];
};
Entry entries[kMost];
std::atomic<int> count{0};
std::mutex entering;

Entry* find_loaded(const char* name) {
  for (int k = 0; k < count.load(std::memory_order_acquire); ++k) {
    if (std::strcmp(entries[k].traits.name, name) == 0) return &entries[k];
  }
  return nullptr;
}

std::string enter(const CustomCell& cell) {
  const std::lock_guard<std::mutex> lock(entering);
  Entry* entry = find_loaded(cell.traits.name);
  const int k = count.load(std::memory_order_relaxed);
  if (entry == nullptr) {
    if (k == kMost) return "no more than " + std::to_string(kMost) + " cells can be loaded";
    entry = &entries[k];
    entry->traits = cell.traits;
    entry->traits.kind = static_cast<CellKind>(kFirst + k);
    count.store(k + 1, std::memory_order_release);
  }
  const CpuLoops* none = nullptr;
  entry->loops[static_cast<int>(cell.dtype)][cell.controlled].compare_exchange_strong(none,
                                                                                      cell.loops);
  return "";
}

}  // namespace

std::string load_custom_cell(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  using Make = const CustomCell* (*)();
  const Make make = reinterpret_cast<Make>(dlsym(library, "bptt_custom_cell"));
  if (make == nullptr) return std::string(path) + " holds no cell";
  const CustomCell* cell = make();
  if (cell->abi != kCustomAbi) return std::string(path) + " was made by another version of bptt";
  return enter(*cell);
}

const CellTraits* find_any_cell(const char* name) {
  const CellTraits* built_in = find_cell(name);
  if (built_in != nullptr) return built_in;
  const Entry* loaded = find_loaded(name);
  return loaded == nullptr ? nullptr : &loaded->traits;
}

const CpuLoops* custom_loops(CellKind kind, Dtype dtype, bool controlled) {
  const Entry& entry = entries[static_cast<int>(kind) - kFirst];
  return entry.loops[static_cast<int>(dtype)][controlled].load(std::memory_order_acquire);
}

}  // namespace bptt
