// Which instruction sets there are kernels for, and which of them this processor has.

#include "variants.h"

#include "boe_kernels.h"

namespace boe {

#if defined(BOE_HAS_X86_VARIANTS)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace baseline {
extern const Kernels kernels;
}

namespace {

bool always() { return true; }

#if defined(BOE_HAS_X86_VARIANTS)
// Each asks for just what its files are compiled with (see CMakeLists.txt). The built-in
// also asks whether the operating system saves the wider registers.
bool has_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

struct Variant {
    const char* name;
    bool (*runs)();
    const Kernels* kernels;
};

const Variant kVariants[] = {
#if defined(BOE_HAS_X86_VARIANTS)
    {"AVX-512", has_avx512, &avx512::kernels},
    {"AVX2", has_avx2, &avx2::kernels},
#endif
#if defined(__x86_64__)
    {"SSE2", always, &baseline::kernels},
#elif defined(__aarch64__)
    {"NEON", always, &baseline::kernels},
#else
    {"portable", always, &baseline::kernels},
#endif
};

}  // namespace

const Kernels& kernels_of(int32_t variant) { return *kVariants[variant].kernels; }

}  // namespace boe

int32_t boe_abi_version(void) { return BOE_ABI_VERSION; }

int32_t boe_variant_count(void) { return sizeof boe::kVariants / sizeof boe::kVariants[0]; }

const char* boe_variant_name(int32_t variant) { return boe::kVariants[variant].name; }

int32_t boe_variant_runs(int32_t variant) { return boe::kVariants[variant].runs(); }

int32_t boe_has_threads(void) {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}
