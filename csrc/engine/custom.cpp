#include "custom.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

namespace bptt {
namespace {

constexpr int kMost = 1024;
constexpr int kFirst = static_cast<int>(CellKind::kCustom);

// Written under a lock, read without one: entries never change, and the count comes last.
CustomCell cells[kMost];
std::atomic<int> count{0};
std::mutex entering;

const CellTraits* find_loaded(const char* name) {
  for (int k = 0; k < count.load(std::memory_order_acquire); ++k) {
    if (std::strcmp(cells[k].traits.name, name) == 0) return &cells[k].traits;
  }
  return nullptr;
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
  const std::lock_guard<std::mutex> lock(entering);
  if (find_loaded(cell->traits.name) != nullptr) return "";
  const int k = count.load(std::memory_order_relaxed);
  if (k == kMost) return "no more than " + std::to_string(kMost) + " cells can be loaded";
  cells[k] = *cell;
  cells[k].traits.kind = static_cast<CellKind>(kFirst + k);
  count.store(k + 1, std::memory_order_release);
  return "";
}

const CellTraits* find_any_cell(const char* name) {
  const CellTraits* built_in = find_cell(name);
  return built_in != nullptr ? built_in : find_loaded(name);
}

const CpuLoops& custom_loops(CellKind kind, bool controlled) {
  const CustomCell& cell = cells[static_cast<int>(kind) - kFirst];
  return controlled ? *cell.controlled : *cell.plain;
}

}  // namespace bptt
