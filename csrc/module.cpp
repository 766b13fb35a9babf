// The Python module emfast._C: the CPU backend. Import torch before it, so that both share one OpenMP runtime.

#include "module.h"

#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The files that bind functions, each of which has a define_<name>.
#define EMFAST_FILES(each)          \
  each(attention)                   \
  each(blur)                        \
  each(checksum)                    \
  each(convolution)                 \
  each(convolution_weight_gradient) \
  each(group_norm_silu)             \
  each(mask_misfit)                 \
  each(random)                      \
  each(sampler_update)              \
  each(separable_blur)              \
  each(winograd_convolution)        \
  each(winograd_weight_gradient)
#define EMFAST_DECLARE(name) void define_##name(py::module_& module);
#define EMFAST_DEFINE(name) emfast::define_##name(module);

namespace emfast {

EMFAST_FILES(EMFAST_DECLARE)

namespace {

const char* const names[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa current = best_isa();

std::vector<std::string> instruction_sets() {
  return {names, names + static_cast<int>(best_isa()) + 1};
}

void use_instruction_set(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i)
    if (name == names[i]) return void(current = static_cast<Isa>(i));
  throw std::invalid_argument("use_instruction_set: expected name to be in instruction_sets(), got " + name + ".");
}

// Whether the machine multiplies bfloat16 tiles, and the kernel lets this process do so.
bool machine_has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned tile = 1u << 24, bfloat16 = 1u << 22;  // of CPUID 7, EDX
  constexpr long request_permission = 0x1023, tile_data = 18;
  unsigned a, b, c, d;
  asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return (d & tile) && (d & bfloat16) && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace

Isa isa() { return current; }

bool has_amx() {
  static const bool amx = machine_has_amx();
  return amx && current == Isa::avx512_bf16;
}

char* thread_memory(int64_t bytes) {
  static thread_local std::vector<char> memory;
  if (static_cast<int64_t>(memory.size()) < bytes + 64) memory.resize(bytes + 64);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

}  // namespace emfast

PYBIND11_MODULE(_C, module) {
  module.doc() = "The CPU backend of emfast: functions of addresses and sizes.";
  module.def("instruction_set", [] { return emfast::names[static_cast<int>(emfast::isa())]; });
  module.def("instruction_sets", &emfast::instruction_sets, "What this machine can run, the best last.");
  module.def("has_amx", &emfast::has_amx, "Whether bfloat16 tiles are multiplied.");
  module.def("use_instruction_set", &emfast::use_instruction_set);
  EMFAST_FILES(EMFAST_DEFINE)
}
