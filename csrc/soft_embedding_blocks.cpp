// Candidates for the largest of a block, and the write of one soft embedding.

#include "blocks.h"
#include "vector_math.h"

namespace boe {
namespace BOE_VARIANT {

int64_t collect(const Block& block, float above, Candidate* found) {
    alignas(64) float buffer[kBlock];
    const float* values = (const float*)block.data;
    if (block.dtype != BOE_FLOAT32) {
        widen(block.dtype, block.data, 0, block.size, buffer);
        values = buffer;
    }
    int64_t count = 0;
    const auto examine = [&](int64_t i) {
        // Written so that NaN is found too.
        if (!(values[i] <= above)) found[count++] = {values[i], block.first + i};
    };
    int64_t i = 0;
    for (; i + kStep <= block.size; i += kStep) {
        Ints is_larger = {};
        for (int k = 0; k < kParts; k++) is_larger |= ~(load(values + i + k * kLanes) <= above);
        if (!any(is_larger)) continue;
        for (int j = 0; j < kStep; j++) examine(i + j);
    }
    for (; i < block.size; i++) examine(i);
    return count;
}

namespace {

template <class Element>
void add_multiple(float weight, int64_t size, float* sum, const Element& element) {
    for (int64_t i = 0; i < size; i++) sum[i] += weight * element(i);
}

}  // namespace

void soft_write(const SoftWrite& write, const Candidate* kept, int64_t count, void* canvas_row,
                void* delta_row) {
    // Wide embeddings are taken in pieces whose sum stays in the processor's first cache.
    alignas(64) float sum[kBlock], blended[kBlock];
    for (int64_t first = 0; first < write.width; first += kBlock) {
        const int64_t size = write.width - first < kBlock ? write.width - first : kBlock;
        for (int64_t i = 0; i < size; i++) sum[i] = 0.0f;
        for (int64_t j = 0; j < count; j++) {
            const int64_t begin = kept[j].id * write.table_row_stride + first;
            const float weight = kept[j].value;
            const float* row = (const float*)write.table + begin;
            const uint16_t* half = (const uint16_t*)write.table + begin;
            if (write.dtype == BOE_FLOAT32) {
                add_multiple(weight, size, sum, [row](int64_t i) { return row[i]; });
            } else if (write.dtype == BOE_BFLOAT16) {
                add_multiple(weight, size, sum,
                             [half](int64_t i) { return from_bfloat16(half[i]); });
            } else {
                add_multiple(weight, size, sum,
                             [half](int64_t i) { return from_float16(half[i]); });
            }
        }
        widen(write.dtype, write.mask_embed, first, size, blended);
        for (int64_t i = 0; i < size; i++) {
            sum[i] -= blended[i];
            blended[i] += write.alpha * sum[i];
        }
        narrow(write.dtype, sum, delta_row, first, size);
        narrow(write.dtype, blended, canvas_row, first, size);
    }
}

}  // namespace BOE_VARIANT
}  // namespace boe
