// Statistics and gradient of one block of logits.

#include "blocks.h"
#include "vector_math.h"

namespace boe {
namespace BOE_VARIANT {
namespace {

constexpr float kLowest = -__FLT_MAX__;

// So that -inf * exp(-inf) is 0, not NaN. A NaN is left alone.
inline Floats clamp(Floats exponent) { return larger(splat(kLeastExponent), exponent); }

// The block in float32 with its suppressed ids at -inf: in place where nothing has to change,
// otherwise in the buffer.
const float* in_float32(const Block& block, float* buffer) {
    if (block.dtype == BOE_FLOAT32 && block.suppressed_count == 0) {
        return (const float*)block.data;
    }
    widen(block.dtype, block.data, 0, block.size, buffer);
    for (int64_t i = 0; i < block.suppressed_count; i++) {
        buffer[block.suppressed[i] - block.first] = -kInfinity;
    }
    return buffer;
}

struct TopTwo {
    Floats first[kParts], second[kParts];

    void add(const float* z) {
        for (int k = 0; k < kParts; k++) {
            const Floats x = load(z + k * kLanes);
            second[k] = larger(smaller(x, first[k]), second[k]);
            first[k] = larger(x, first[k]);
        }
    }
};

struct Sums {
    Floats total[kParts], weighted[kParts];

    void add(const float* z, float origin) {
        for (int k = 0; k < kParts; k++) {
            const Floats distance = clamp(load(z + k * kLanes) - origin);
            const Floats weight = exp_nonpositive(distance);
            total[k] += weight;
            weighted[k] += distance * weight;
        }
    }
};

}  // namespace

Partial scan(const Block& block) {
    alignas(64) float buffer[kBlock];
    const float* z = in_float32(block, buffer);
    const int64_t whole = block.size / kStep * kStep;
    // What is left over becomes a whole step: ids at -inf change nothing.
    float rest[kStep];
    for (int i = 0; i < kStep; i++) {
        rest[i] = whole + i < block.size ? z[whole + i] : -kInfinity;
    }

    TopTwo top;
    for (int k = 0; k < kParts; k++) top.first[k] = top.second[k] = splat(-kInfinity);
    for (int64_t i = 0; i < whole; i += kStep) top.add(z + i);
    if (whole < block.size) top.add(rest);

    float first[kStep], second[kStep];
    memcpy(first, top.first, sizeof first);
    memcpy(second, top.second, sizeof second);
    Partial result = {-kInfinity, -kInfinity, block.first, 0.0, 0.0};
    for (int i = 0; i < kStep; i++) {
        const float loser = first[i] < result.peak ? first[i] : result.peak;
        if (first[i] > result.peak) result.peak = first[i];
        if (loser > result.second) result.second = loser;
        if (second[i] > result.second) result.second = second[i];
    }

    const float origin = result.peak > kLowest ? result.peak : kLowest;
    // The next block is fetched from memory while this one, which is in the cache, is summed.
    const int64_t bytes = block.dtype == BOE_FLOAT32 ? 4 : 2;
    const char* ahead = (const char*)block.data + block.size * bytes;
    Sums sums = {};
    for (int64_t i = 0; i < whole; i += kStep) {
        __builtin_prefetch(ahead + i * bytes);
        __builtin_prefetch(ahead + i * bytes + 64);
        sums.add(z + i, origin);
    }
    if (whole < block.size) sums.add(rest, origin);

    float total[kStep], weighted[kStep];
    memcpy(total, sums.total, sizeof total);
    memcpy(weighted, sums.weighted, sizeof weighted);
    for (int i = 0; i < kStep; i++) {
        result.total += total[i];
        result.weighted += weighted[i];
    }
    return result;
}

int64_t find(const Block& block, float value) {
    alignas(64) float buffer[kBlock];
    const float* z = in_float32(block, buffer);
    for (int64_t i = 0; i < block.size; i++) {
        if (z[i] == value) return i;
    }
    return 0;
}

void gradient(const Block& block, const Slope& slope, void* gradient) {
    alignas(64) float buffer[kBlock];
    const float* z = in_float32(block, buffer);
    float* out = block.dtype == BOE_FLOAT32 ? (float*)gradient : buffer;
    const auto slopes = [&slope](const float* from) {
        const Floats log_p = clamp(load(from) - slope.peak - slope.log_total);
        return (log_p + slope.entropy) * (exp_nonpositive(log_p) * -slope.scale);
    };
    int64_t i = 0;
    for (; i + kLanes <= block.size; i += kLanes) store(out + i, slopes(z + i));
    if (i < block.size) {
        float rest[kLanes] = {};
        memcpy(rest, z + i, (block.size - i) * sizeof(float));
        store(rest, slopes(rest));
        memcpy(out + i, rest, (block.size - i) * sizeof(float));
    }
    if (block.dtype != BOE_FLOAT32) narrow(block.dtype, buffer, gradient, 0, block.size);
}

}  // namespace BOE_VARIANT
}  // namespace boe
