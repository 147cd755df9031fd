// What a variant consists of: kernels for one thread that work on one block of data.
//
// The files *_blocks.cpp and what they include are compiled once per instruction set, each
// time in a namespace of its own. They use no inline function of the standard library: the
// linker keeps one copy of such a function for all files, and that copy could need
// instructions that the processor lacks. Threads and bookkeeping are in the other files,
// compiled once for the oldest processor.

#pragma once

#include <stdint.h>

namespace boe {

// A row is worked on in blocks of this many elements: 16 KiB in float32 stay in the
// processor's first cache, so that a second pass over a block costs no memory traffic.
constexpr int64_t kBlock = 4096;

// Part of a row of logits or probabilities.
struct Block {
    const void* data;
    int32_t dtype;
    int64_t first;  // the id of its first element
    int64_t size;   // 1 to kBlock
    // Ids in this block whose value counts as -inf.
    const int64_t* suppressed;
    int64_t suppressed_count;
};

// Statistics of part of a row. With m = max(peak, -FLT_MAX), which keeps -inf - -inf out of
// the sums: total = sum exp(z - m), weighted = sum (z - m) exp(z - m).
struct Partial {
    float peak;     // the largest value that is not NaN
    float second;   // the second largest, equal to peak in a tie
    int64_t where;  // the first id of the block that holds the peak
    double total;
    double weighted;
};

// What the gradient of one row needs: with ln p = (z - peak) - log_total it is
// -scale * p * (ln p + entropy).
struct Slope {
    float peak;
    float log_total;
    float entropy;
    float scale;
};

struct Candidate {
    float value;
    int64_t id;
};

// The write of one row: sum_j weight_j E[id_j], blended with the mask's embedding.
struct SoftWrite {
    int32_t dtype;
    const void* table;
    int64_t table_row_stride;
    int64_t width;
    const void* mask_embed;
    float alpha;
};

// Attention goes through blocks of this many keys and tiles of this many query rows: their scores
// stay in the processor's first cache.
constexpr int64_t kKeys = 64;
constexpr int64_t kRows = 64;
// Packed rows and widths are padded with zeros to a multiple of the widest register.
constexpr int64_t kRowStep = 16;

inline constexpr int64_t padded_to_step(int64_t count) {
    return (count + kRowStep - 1) / kRowStep * kRowStep;
}

// Rows first ... first + count - 1 of a group of query heads, whose rows follow one another.
struct RowSource {
    int32_t dtype;
    const void* data;
    int64_t head_stride;
    int64_t row_stride;
    int64_t width;
    int64_t rows_per_head;
    const int64_t* positions;  // of the rows of a head, -1 for padding, which is zeros; or null
    bool at_positions;         // whether they lie there
    int64_t first;
    int64_t count;
};

// Packed query rows, float32, against keys of one head.
struct AttentionTask {
    int32_t dtype;  // of keys, values and their gradients
    int64_t width;
    float scale;
    const void* k;
    int64_t k_stride;
    const void* v;
    int64_t v_stride;
    int64_t first_key;
    int64_t end_key;
    const int64_t* key_positions;  // -1 for padding; or null: in order
    const float* key_bias;         // by position; or null
    // Per query row, the positions of the first key that it sees and of the key after the last;
    // or null.
    const int32_t* begin;
    const int32_t* end;
    int64_t rows;  // padded
    const float* q_t;  // (width, rows)
    // Forward: (rows, padded width), and what the log-sum-exp is made of.
    float* out;
    float* top;
    float* total;
    // Gradient: dq is this task's share, or null; dk and dv null or at the keys.
    const float* q;
    const float* dout;
    const float* dout_t;
    const float* lse;  // +inf for rows that see no key
    const float* delta;
    float* dq;
    void* dk;
    int64_t dk_stride;
    void* dv;
    int64_t dv_stride;
};

// Floats of working memory that either needs besides.
inline constexpr int64_t attention_room(int64_t width) {
    return 2 * kKeys * kRows + 4 * kKeys * padded_to_step(width);
}

struct Kernels {
    Partial (*scan)(const Block& block);
    // The place in the block of the first element equal to value; 0 where there is none.
    int64_t (*find)(const Block& block, float value);
    // gradient points to the block's first element.
    void (*gradient)(const Block& block, const Slope& slope, void* gradient);
    // Stores the elements that are NaN or larger than above, in order, and returns their
    // number. Takes blocks without suppressed ids.
    int64_t (*collect)(const Block& block, float above, Candidate* found);
    // The candidates' values are their weights.
    void (*soft_write)(const SoftWrite& write, const Candidate* kept, int64_t count,
                       void* canvas_row, void* delta_row);
    // packed (padded count, padded width); transposed (width, padded count) or null.
    void (*pack_rows)(const RowSource& from, float* packed, float* transposed);
    void (*unpack_row)(int32_t dtype, const float* row, void* to, int64_t first, int64_t width);
    void (*attend)(const AttentionTask& task, float* room);
    void (*attend_gradient)(const AttentionTask& task, float* room);
};

const Kernels& kernels_of(int32_t variant);

}  // namespace boe
