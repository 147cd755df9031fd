// The top-k soft write: the k largest of each row of values are found in one pass, and k rows
// of the embedding table are summed and blended into the canvas.

#include <math.h>
#include <stdlib.h>

#include <algorithm>

#include "boe_kernels.h"
#include "threads.h"
#include "variants.h"

namespace boe {
namespace {

// Larger first; of equal values the lower id first.
bool precedes(const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
}

struct Values {
    int32_t dtype;
    const void* data;
    int64_t vocabulary;
    int64_t top_k;
    bool is_logits;

    // Room for two times k candidates and a block.
    int64_t capacity() const { return 2 * top_k + kBlock; }
};

// The top_k largest, or fewer where the others are -inf; -1 where there is a NaN.
int64_t select(const Kernels& kernels, const Values& values, const void* row, Candidate* kept) {
    const int64_t bytes = values.dtype == BOE_FLOAT32 ? 4 : 2;
    float above = -INFINITY;
    int64_t count = 0;
    const auto cut = [&] {
        if (count <= values.top_k) return;
        std::nth_element(kept, kept + values.top_k - 1, kept + count, precedes);
        count = values.top_k;
        // Later ids must be larger than this: they lose a tie.
        above = kept[count - 1].value;
    };
    // Each piece is as long as all before it, so that most of them meet a threshold that lets
    // few pass: about k ln(V / k) candidates in all if the values come in no order.
    for (int64_t first = 0, size; first < values.vocabulary; first += size) {
        const int64_t wanted = std::max({first, values.top_k, int64_t{64}});
        size = std::min({wanted, kBlock, values.vocabulary - first});
        const Block block = {(const char*)row + first * bytes, values.dtype, first, size, nullptr,
                             0};
        const int64_t found = kernels.collect(block, above, kept + count);
        for (int64_t i = count; i < count + found; i++) {
            if (isnan(kept[i].value)) return -1;
        }
        count += found;
        if (count >= 2 * values.top_k) cut();
    }
    cut();
    // In the order of the table, and the same however they were found.
    std::sort(kept, kept + count,
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    return count;
}

// Turns values into weights that sum to 1.
void normalise(const Values& values, Candidate* kept, int64_t count) {
    double total = 0.0;
    if (values.is_logits) {
        float peak = -INFINITY;
        for (int64_t i = 0; i < count; i++) peak = std::max(peak, kept[i].value);
        for (int64_t i = 0; i < count; i++) total += exp((double)kept[i].value - peak);
        for (int64_t i = 0; i < count; i++) {
            kept[i].value = (float)(exp((double)kept[i].value - peak) / total);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++) total += kept[i].value;
    for (int64_t i = 0; i < count; i++) kept[i].value = (float)(kept[i].value / total);
}

}  // namespace
}  // namespace boe

using namespace boe;

int32_t boe_soft_write_top_k(
    int32_t variant, int32_t threads, int32_t values_dtype, const void* values_data, int64_t batch,
    int64_t count, int64_t vocabulary, int64_t values_batch_stride, int64_t values_row_stride,
    int32_t is_logits, int64_t top_k, const int64_t* rows, int64_t rows_batch_stride,
    int32_t dtype, const void* table, int64_t table_row_stride, int64_t width,
    const void* mask_embed, float alpha, void* canvas, int64_t length, void* delta) {
    const Kernels& kernels = kernels_of(variant);
    const Values values = {values_dtype, values_data, vocabulary, top_k, is_logits != 0};
    const SoftWrite write = {dtype, table, table_row_stride, width, mask_embed, alpha};
    const int64_t values_bytes = values_dtype == BOE_FLOAT32 ? 4 : 2;
    const int64_t row_bytes = width * (dtype == BOE_FLOAT32 ? 4 : 2);
    const int64_t writes = batch * count;
    const int team = (int)std::min<int64_t>(
        team_size(threads, writes * (vocabulary + top_k * width)), std::max<int64_t>(writes, 1));
    Candidate* room = (Candidate*)malloc(team * values.capacity() * sizeof(Candidate));
    if (room == nullptr) return BOE_OUT_OF_MEMORY;
    parallel_for(team, writes, [&](int64_t i) {
        const int64_t b = i / count, r = i % count;
        const int64_t target = rows[b * rows_batch_stride + r];
        char* delta_row = (char*)delta + i * row_bytes;
        if (target < 0) {
            std::fill_n(delta_row, row_bytes, 0);
            return;
        }
        Candidate* kept = room + thread_number() * values.capacity();
        const int64_t offset = b * values_batch_stride + r * values_row_stride;
        int64_t found =
            select(kernels, values, (const char*)values_data + offset * values_bytes, kept);
        if (found > 0) {
            normalise(values, kept, found);
        } else {
            // A NaN, or no possible id: there is no expectation.
            kept[0] = {NAN, 0};
            found = 1;
        }
        char* canvas_row = (char*)canvas + (b * length + target) * row_bytes;
        kernels.soft_write(write, kept, found, canvas_row, delta_row);
    });
    free(room);
    return BOE_DONE;
}
