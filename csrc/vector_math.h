// Vectors of float32, exp, and the conversions between float32 and the half precisions.
//
// Written with the vector extensions of GCC and Clang: one text for all instruction sets.
// BOE_VARIANT names the namespace and BOE_LANES the floats in a register.

#pragma once

#include <stdint.h>
#include <string.h>

#include "boe_kernels.h"

namespace boe {
namespace BOE_VARIANT {

typedef float Floats __attribute__((vector_size(4 * BOE_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * BOE_LANES)));

constexpr int kLanes = BOE_LANES;
// Reductions keep one sum for each of this many places, whatever the register's width: the
// order of additions is the same for all variants, and there are chains enough to hide the
// latency of an addition.
constexpr int kStep = 32;
constexpr int kParts = kStep / kLanes;

constexpr float kInfinity = __builtin_inff();

inline Floats splat(float x) { return Floats{} + x; }

// memcpy is how an unaligned load or store is written without breaking aliasing rules.
inline Floats load(const float* from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, Floats x) { memcpy(to, &x, sizeof x); }

inline Floats as_floats(Ints bits) {
    Floats x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline Ints as_ints(Floats x) {
    Ints bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Of a NaN and a number: larger gives b, smaller gives b, in the manner of x86's instructions.
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline bool any(Ints mask) {
    int64_t words[sizeof mask / 8];
    memcpy(words, &mask, sizeof mask);
    int64_t all = 0;
    for (int64_t word : words) all |= word;
    return all != 0;
}

// Exponents are kept at or above this, where exp_nonpositive is exactly 0.
constexpr float kLeastExponent = -88.0f;

// exp(x) for kLeastExponent <= x <= 0, and NaN for NaN. Within 1.02 units in the last place
// wherever the result is a normal number (every float32 was tried); exp(0) is exactly 1.
//
// With n = round(x / ln 2) and r = x - n ln 2: exp x = 2^n exp r, |r| <= ln 2 / 2. exp r is
// 1 + r + r^2 q(r), q the polynomial of degree 4 with the least relative error (3.1e-9).
inline Floats exp_nonpositive(Floats x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
    const float rounder = 12582912.0f;
    const Floats shifted = x * 1.44269504088896341f + rounder;
    const Floats n = shifted - rounder;
    // ln 2 in two parts, the first so short that its product with n is exact.
    const Floats r = x - n * 0.693359375f - n * -2.12194440054690583e-4f;
    Floats q = splat(0.00138145401768f);
    q = q * r + 0.00836874510894f;
    q = q * r + 0.0416683907835f;
    q = q * r + 0.16666520399f;
    q = q * r + 0.499999934321f;
    const Floats exp_r = q * (r * r) + r + 1.0f;
    // The bits of 2^n; for n = -127 they are those of 0.
    const Floats power = as_floats((as_ints(shifted) + 127) << 23);
    return exp_r * power;
}

// Half precisions, an element at a time: the compiler makes vectors of the loops over them.

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float from_bfloat16(uint16_t half) { return float_of((uint32_t)half << 16); }

inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    // To nearest, ties to even; a NaN must not be rounded up to an infinity.
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

inline float from_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    // The exponents' biases differ by 112. Multiplying also makes subnormals right.
    const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
    const uint32_t special = magnitude | 0x7f800000;
    return float_of(sign | (magnitude >= 0x0f800000 ? special : finite));
}

inline uint16_t to_float16(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t magnitude = bits & 0x7fffffff;
    // To nearest, ties to even. Adding 0.5 to a number too small to be normal leaves its
    // multiple of 2^-24, rounded by the addition, in the low bits of the sum.
    const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t half = magnitude < 0x38800000 ? small : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return half | (bits >> 16 & 0x8000);
}

// Elements first ... first + size - 1 of an array of dtype, as float32.
inline void widen(int32_t dtype, const void* array, int64_t first, int64_t size, float* to) {
    if (dtype == BOE_FLOAT32) {
        memcpy(to, (const float*)array + first, size * sizeof(float));
        return;
    }
    const uint16_t* from = (const uint16_t*)array + first;
    if (dtype == BOE_BFLOAT16) {
        for (int64_t i = 0; i < size; i++) to[i] = from_bfloat16(from[i]);
    } else {
        for (int64_t i = 0; i < size; i++) to[i] = from_float16(from[i]);
    }
}

inline void narrow(int32_t dtype, const float* from, void* array, int64_t first, int64_t size) {
    if (dtype == BOE_FLOAT32) {
        memcpy((float*)array + first, from, size * sizeof(float));
        return;
    }
    uint16_t* to = (uint16_t*)array + first;
    if (dtype == BOE_BFLOAT16) {
        for (int64_t i = 0; i < size; i++) to[i] = to_bfloat16(from[i]);
    } else {
        for (int64_t i = 0; i < size; i++) to[i] = to_float16(from[i]);
    }
}

}  // namespace BOE_VARIANT
}  // namespace boe
