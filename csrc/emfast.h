// What every op of the CPU backend shares. Kernels take addresses and sizes: nothing here knows torch.
#pragma once

#include <cstdint>

namespace emfast {

enum class Dtype : int64_t { float32 = 0, bfloat16 = 1, float16 = 2 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class Isa { portable, avx2, avx512, avx512_bf16 };

Isa isa();  // the instruction set in use: the best the machine has, or the one chosen with use_isa

bool has_amx();  // whether bfloat16 tiles are multiplied too: the best instruction set is in use, and Linux permits it

// Memory of this thread that later calls use again, aligned to 64 bytes.
char* thread_memory(int64_t bytes);

// Calls f with a value of the C++ type that a dtype stands for.
template <typename F>
void with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::float32: return f(float());
    case Dtype::bfloat16: return f(bf16());
    case Dtype::float16: return f(f16());
  }
}

}  // namespace emfast

// Picks a function among the copies of it that every_isa.h compiled.
#if defined(__x86_64__)
#define EMFAST_DISPATCH(function)                                                     \
  (::emfast::isa() == ::emfast::Isa::avx512_bf16 ? &::emfast::avx512_bf16::function   \
   : ::emfast::isa() == ::emfast::Isa::avx512    ? &::emfast::avx512::function        \
   : ::emfast::isa() == ::emfast::Isa::avx2      ? &::emfast::avx2::function          \
                                                 : &::emfast::portable::function)
#else
#define EMFAST_DISPATCH(function) (&::emfast::portable::function)
#endif
