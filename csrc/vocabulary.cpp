// Entropy, log-sum-exp, two largest probabilities and argmax of rows of logits, and the
// gradient of the entropy.
//
// A row is read once, block by block. Each block gives its two largest values and sums
// relative to its own maximum; blocks are merged in order, in float64. So nothing depends on
// how blocks are spread over threads. With S = sum exp(z - m) and T = sum (z - m) exp(z - m),
// m the row's maximum: ln sum exp z = m + ln S and H = ln S - T / S.

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include <algorithm>

#include "boe_kernels.h"
#include "threads.h"
#include "variants.h"

namespace boe {
namespace {

// Rows per thread below which blocks are spread over the threads instead of rows.
constexpr int64_t kFewRows = 4;

struct Logits {
    int32_t dtype;
    const void* data;
    int64_t rows;
    int64_t vocabulary;
    int64_t row_stride;
    const int64_t* suppressed_ids;
    int64_t suppressed_count;

    int64_t blocks() const { return (vocabulary + kBlock - 1) / kBlock; }

    Block block(int64_t row, int64_t number) const {
        const int64_t first = number * kBlock;
        const int64_t size = std::min(kBlock, vocabulary - first);
        const int64_t* end = suppressed_ids + suppressed_count;
        const int64_t* from = std::lower_bound(suppressed_ids, end, first);
        const int64_t* to = std::lower_bound(from, end, first + size);
        return {at(data, row, row_stride, first), dtype, first, size, from, to - from};
    }

    void* at(const void* array, int64_t row, int64_t stride, int64_t column) const {
        const int64_t bytes = dtype == BOE_FLOAT32 ? 4 : 2;
        return (char*)array + (row * stride + column) * bytes;
    }
};

struct Statistics {
    float *entropy, *logsumexp, *top1, *top2;
    int64_t* argmax;
};

struct Gradient {
    void* data;
    int64_t row_stride;
};

// What the sums of a Partial are relative to.
double origin(const Partial& part) { return std::max(part.peak, -FLT_MAX); }

void move_origin(Partial& part, double to) {
    const double step = origin(part) - to;
    if (step == 0.0) return;
    const double factor = exp(step);
    part.weighted = (part.weighted + step * part.total) * factor;
    part.total *= factor;
}

// `right` follows `left`: of two equal peaks the left one has the lower id.
Partial merged(Partial left, Partial right) {
    const double common = std::max(origin(left), origin(right));
    move_origin(left, common);
    move_origin(right, common);
    Partial result = left.peak >= right.peak ? left : right;
    result.second = std::max({std::min(left.peak, right.peak), left.second, right.second});
    result.total = left.total + right.total;
    result.weighted = left.weighted + right.weighted;
    return result;
}

// Writes the statistics of a row; returns what its gradient needs.
Slope finish(const Kernels& kernels, const Logits& logits, int64_t row, const Partial& all,
             const Statistics& out) {
    // A row without any possible id has no distribution.
    const double total = all.peak == -INFINITY ? NAN : all.total;
    const double log_total = log(total);
    const double entropy = log_total - all.weighted / total;
    out.entropy[row] = (float)entropy;
    out.logsumexp[row] = (float)(all.peak + log_total);
    out.top1[row] = (float)(1.0 / total);
    out.top2[row] = (float)(exp((double)all.second - all.peak) / total);
    const Block holder = logits.block(row, all.where / kBlock);
    out.argmax[row] = all.where + kernels.find(holder, all.peak);
    return {all.peak, (float)log_total, (float)entropy, 1.0f};
}

void row_gradient(const Kernels& kernels, const Logits& logits, int64_t row, int64_t number,
                  const Slope& slope, const Gradient& gradient) {
    const Block block = logits.block(row, number);
    kernels.gradient(block, slope, logits.at(gradient.data, row, gradient.row_stride, block.first));
}

void statistics_by_rows(const Kernels& kernels, int team, const Logits& logits,
                        const Statistics& out, const Gradient& gradient) {
    const int64_t blocks = logits.blocks();
    parallel_for(team, logits.rows, [&](int64_t row) {
        Partial all = kernels.scan(logits.block(row, 0));
        for (int64_t b = 1; b < blocks; b++) {
            all = merged(all, kernels.scan(logits.block(row, b)));
        }
        const Slope slope = finish(kernels, logits, row, all, out);
        if (gradient.data == nullptr) return;
        // The row is still in the cache.
        for (int64_t b = 0; b < blocks; b++) {
            row_gradient(kernels, logits, row, b, slope, gradient);
        }
    });
}

int32_t statistics_by_blocks(const Kernels& kernels, int team, const Logits& logits,
                             const Statistics& out, const Gradient& gradient) {
    const int64_t blocks = logits.blocks();
    const int64_t parts = logits.rows * blocks;
    Partial* partials = (Partial*)malloc(parts * sizeof(Partial));
    Slope* slopes = (Slope*)malloc(logits.rows * sizeof(Slope));
    if (partials == nullptr || slopes == nullptr) {
        free(partials);
        free(slopes);
        return BOE_OUT_OF_MEMORY;
    }
    parallel_for(team, parts, [&](int64_t part) {
        partials[part] = kernels.scan(logits.block(part / blocks, part % blocks));
    });
    for (int64_t row = 0; row < logits.rows; row++) {
        Partial all = partials[row * blocks];
        for (int64_t b = 1; b < blocks; b++) all = merged(all, partials[row * blocks + b]);
        slopes[row] = finish(kernels, logits, row, all, out);
    }
    if (gradient.data != nullptr) {
        parallel_for(team, parts, [&](int64_t part) {
            const int64_t row = part / blocks;
            row_gradient(kernels, logits, row, part % blocks, slopes[row], gradient);
        });
    }
    free(partials);
    free(slopes);
    return BOE_DONE;
}

}  // namespace
}  // namespace boe

using namespace boe;

int32_t boe_vocabulary_statistics(
    int32_t variant, int32_t threads, int32_t dtype, const void* data, int64_t rows,
    int64_t vocabulary, int64_t row_stride, const int64_t* suppressed_ids,
    int64_t suppressed_count, float* entropy, float* logsumexp, float* top1, float* top2,
    int64_t* argmax, void* gradient_data, int64_t gradient_row_stride) {
    const Kernels& kernels = kernels_of(variant);
    const Logits logits = {dtype,      data,           rows,            vocabulary,
                           row_stride, suppressed_ids, suppressed_count};
    const Statistics out = {entropy, logsumexp, top1, top2, argmax};
    const Gradient gradient = {gradient_data, gradient_row_stride};
    const int team = team_size(threads, rows * vocabulary);
    if (rows < kFewRows * team && team > 1) {
        return statistics_by_blocks(kernels, team, logits, out, gradient);
    }
    statistics_by_rows(kernels, team, logits, out, gradient);
    return BOE_DONE;
}

int32_t boe_entropy_gradient(
    int32_t variant, int32_t threads, int32_t dtype, const void* data, int64_t rows,
    int64_t vocabulary, int64_t row_stride, const int64_t* suppressed_ids,
    int64_t suppressed_count, const float* grad_entropy, const float* entropy,
    const float* logsumexp, void* gradient_data, int64_t gradient_row_stride) {
    const Kernels& kernels = kernels_of(variant);
    const Logits logits = {dtype,      data,           rows,            vocabulary,
                           row_stride, suppressed_ids, suppressed_count};
    const Gradient gradient = {gradient_data, gradient_row_stride};
    const int64_t blocks = logits.blocks();
    const int team = team_size(threads, rows * vocabulary);
    parallel_for(team, rows * blocks, [&](int64_t part) {
        const int64_t row = part / blocks;
        const Slope slope = {logsumexp[row], 0.0f, entropy[row], grad_entropy[row]};
        row_gradient(kernels, logits, row, part % blocks, slope, gradient);
    });
    return BOE_DONE;
}
