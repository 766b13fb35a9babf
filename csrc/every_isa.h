// Compiles the file EMFAST_KERNELS once per instruction set, in namespaces named after them. No include guard.
// That is a header beside the including file, which defines what the kernels read of the standard library before.
#include <cstring>

#include "emfast.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EMFAST_NAMESPACE portable
#define EMFAST_LANES 4
#include "simd.h"
#include EMFAST_KERNELS
#undef EMFAST_NAMESPACE
#undef EMFAST_LANES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define EMFAST_NAMESPACE avx2
#define EMFAST_LANES 8
#include "simd.h"
#include EMFAST_KERNELS
#undef EMFAST_NAMESPACE
#undef EMFAST_LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#define EMFAST_NAMESPACE avx512
#define EMFAST_LANES 16
#include "simd.h"
#include EMFAST_KERNELS
#undef EMFAST_NAMESPACE
#undef EMFAST_LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#endif
#define EMFAST_NAMESPACE avx512_bf16
#define EMFAST_LANES 16
#define EMFAST_BF16
#include "simd.h"
#include "amx.h"
#include EMFAST_KERNELS
#undef EMFAST_NAMESPACE
#undef EMFAST_LANES
#undef EMFAST_BF16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
