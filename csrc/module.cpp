// The Python module emfast._C: the CPU backend. Import torch before it, so that both share one OpenMP runtime.

#include "module.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace emfast {
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

}  // namespace

Isa isa() { return current; }

}  // namespace emfast

PYBIND11_MODULE(_C, module) {
  module.doc() = "The CPU backend of emfast: functions of addresses and sizes.";
  module.def("instruction_set", [] { return emfast::names[static_cast<int>(emfast::isa())]; });
  module.def("instruction_sets", &emfast::instruction_sets, "What this machine can run, the best last.");
  module.def("use_instruction_set", &emfast::use_instruction_set);
  emfast::define_attention(module);
  emfast::define_blur(module);
  emfast::define_group_norm_silu(module);
  emfast::define_mask_misfit(module);
  emfast::define_random(module);
  emfast::define_sampler_update(module);
  emfast::define_separable_blur(module);
}
