// Attention of packed query rows over one head of keys: the forward, and the gradient.
//
// All products are of one form: rows of B as vectors, elements of A broadcast. Scores are kept
// transposed, keys by rows, so that a vector spans rows: maxima and sums over keys go lane by
// lane, in an order that does not depend on the register's width.

#include "blocks.h"
#include "vector_math.h"

namespace boe {
namespace BOE_VARIANT {
namespace {

// A tile of a product, held in registers: its rows, and its vectors per row.
constexpr int kTileRows = 4;
constexpr int kTileVectors = kLanes == 16 ? 4 : 2;

struct Factor {
    const float* data;
    int64_t row_stride;
    int64_t column_stride;
};

template <int kHeight, int kVectors>
inline void multiply_tile(Factor a, const float* b, int64_t b_stride, int64_t inner, float* c,
                          int64_t c_stride, bool add) {
    Floats sum[kHeight][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j++) {
            sum[i][j] = add ? load(c + i * c_stride + j * kLanes) : Floats{};
        }
    }
    for (int64_t n = 0; n < inner; n++) {
        Floats row[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j++) row[j] = load(b + n * b_stride + j * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kHeight; i++) {
            const float element = a.data[i * a.row_stride + n * a.column_stride];
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; j++) sum[i][j] += row[j] * element;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j++) store(c + i * c_stride + j * kLanes, sum[i][j]);
    }
}

template <int kVectors>
inline void multiply_panel(int64_t rows, int64_t inner, Factor a, const float* b, int64_t b_stride,
                           float* c, int64_t c_stride, bool add) {
    // As many sums at once as a wide tile has: fewer wait for one another.
    constexpr int kHeight = kVectors == 1 ? 2 * kTileRows : kTileRows;
    int64_t i = 0;
    for (; i + kHeight <= rows; i += kHeight) {
        const Factor part = {a.data + i * a.row_stride, a.row_stride, a.column_stride};
        multiply_tile<kHeight, kVectors>(part, b, b_stride, inner, c + i * c_stride, c_stride,
                                         add);
    }
    for (; i < rows; i++) {
        const Factor part = {a.data + i * a.row_stride, a.row_stride, a.column_stride};
        multiply_tile<1, kVectors>(part, b, b_stride, inner, c + i * c_stride, c_stride, add);
    }
}

// C (rows, columns) = A (rows, inner) B (inner, columns), or C += A B. columns is a multiple of
// kRowStep.
void multiply(int64_t rows, int64_t columns, int64_t inner, Factor a, const float* b,
              int64_t b_stride, float* c, int64_t c_stride, bool add) {
    int64_t n = 0;
    for (; n + kTileVectors * kLanes <= columns; n += kTileVectors * kLanes) {
        multiply_panel<kTileVectors>(rows, inner, a, b + n, b_stride, c + n, c_stride, add);
    }
    for (; n < columns; n += kLanes) {
        multiply_panel<1>(rows, inner, a, b + n, b_stride, c + n, c_stride, add);
    }
}

// A block of keys or values as float32, with zeros at padding. Also of float32: rows that lie
// far apart are read once here and then from the cache.
void copy_rows(const AttentionTask& task, const void* data, int64_t stride, int64_t first,
               int64_t count, float* to) {
    const int64_t padded = padded_to_step(task.width);
    for (int64_t j = 0; j < count; j++) {
        float* row = to + j * padded;
        const bool padding = task.key_positions != nullptr && task.key_positions[first + j] < 0;
        const int64_t filled = padding ? 0 : task.width;
        widen(task.dtype, data, (first + j) * stride, filled, row);
        for (int64_t i = filled; i < padded; i++) row[i] = 0.0f;
    }
}

// exp(x), x at most 0 but for rounding. NaN stays NaN.
inline Floats weight_of(Floats x) {
    x = x > 0.0f ? Floats{} : x;
    return exp_nonpositive(x < kLeastExponent ? splat(kLeastExponent) : x);
}

// Which rows, from start on, see a key; all of them where nothing is hidden.
inline Ints sees(const AttentionTask& task, int64_t start, int32_t key) {
    if (task.begin == nullptr) return Ints{} == 0;
    Ints begin, end;
    memcpy(&begin, task.begin + start, sizeof begin);
    memcpy(&end, task.end + start, sizeof end);
    return (begin <= key) & (key < end);
}

// Whether any of the rows may see any of the keys.
bool sees_any(const AttentionTask& task, int64_t start, int64_t count, int64_t first,
              int64_t keys) {
    // Keys that are not in the order of their positions may be anywhere.
    if (task.begin == nullptr || task.key_positions != nullptr) return true;
    bool seen = false;
    for (int64_t i = start; i < start + count; i++) {
        seen |= (task.begin[i] < first + keys) & (task.end[i] > first);
    }
    return seen;
}

inline int32_t key_of(const AttentionTask& task, int64_t j) {
    return (int32_t)(task.key_positions == nullptr ? j : task.key_positions[j]);
}

inline float bias_of(const AttentionTask& task, int32_t key) {
    if (key < 0) return -kInfinity;  // Padding.
    return task.key_bias == nullptr ? 0.0f : task.key_bias[key];
}

// Scores of a block of keys and the maximum so far become weights, and the sum so far grows.
// Returns whether what was summed before has to be multiplied by shrink.
bool softmax_block(const AttentionTask& task, int64_t first, int64_t keys, int64_t start,
                   int64_t count, float* scores, float* shrink) {
    bool changed = false;
    for (int64_t i = 0; i < count; i += kLanes) {
        const Floats before = load(task.top + start + i);
        Floats top = before;
        for (int64_t j = 0; j < keys; j++) {
            const int32_t key = key_of(task, first + j);
            float* score = scores + j * kRows + i;
            Floats x = load(score) * task.scale + bias_of(task, key);
            x = sees(task, start + i, key) ? x : splat(-kInfinity);
            store(score, x);
            top = larger(x, top);
        }
        store(task.top + start + i, top);
        // Of a row that has seen no key: -inf - 0 makes weights of 0, -inf - -inf would be NaN.
        const Floats base = top == -kInfinity ? Floats{} : top;
        const Floats factor = weight_of(before - base);
        Floats total = load(task.total + start + i) * factor;
        for (int64_t j = 0; j < keys; j++) {
            float* score = scores + j * kRows + i;
            const Floats p = weight_of(load(score) - base);
            total += p;
            store(score, p);
        }
        store(task.total + start + i, total);
        store(shrink + i, factor);
        changed |= any(factor != 1.0f);
    }
    return changed;
}

}  // namespace

void pack_rows(const RowSource& from, float* packed, float* transposed) {
    const int64_t width = padded_to_step(from.width), padded = padded_to_step(from.count);
    for (int64_t r = 0; r < padded; r++) {
        float* row = packed + r * width;
        int64_t filled = 0;
        if (r < from.count) {
            const int64_t slot = (from.first + r) % from.rows_per_head;
            const int64_t position = from.positions == nullptr ? slot : from.positions[slot];
            if (position >= 0) {
                const int64_t head = (from.first + r) / from.rows_per_head;
                const int64_t place = from.at_positions ? position : slot;
                widen(from.dtype, from.data, head * from.head_stride + place * from.row_stride,
                      from.width, row);
                filled = from.width;
            }
        }
        for (int64_t c = filled; c < width; c++) row[c] = 0.0f;
    }
    if (transposed == nullptr) return;
    for (int64_t r = 0; r < padded; r += kRowStep) {
        for (int64_t c = 0; c < from.width; c++) {
            for (int64_t i = 0; i < kRowStep; i++) {
                transposed[c * padded + r + i] = packed[(r + i) * width + c];
            }
        }
    }
}

void unpack_row(int32_t dtype, const float* row, void* to, int64_t first, int64_t width) {
    narrow(dtype, row, to, first, width);
}

void attend(const AttentionTask& task, float* room) {
    const int64_t width = padded_to_step(task.width), rows = task.rows;
    float* scores = room;
    float* k = scores + kKeys * kRows;
    float* v = k + kKeys * width;
    alignas(64) float shrink[kRows];
    for (int64_t i = 0; i < rows; i++) task.top[i] = -kInfinity, task.total[i] = 0.0f;
    for (int64_t i = 0; i < rows * width; i++) task.out[i] = 0.0f;
    for (int64_t first = task.first_key; first < task.end_key; first += kKeys) {
        const int64_t keys = task.end_key - first < kKeys ? task.end_key - first : kKeys;
        copy_rows(task, task.k, task.k_stride, first, keys, k);
        copy_rows(task, task.v, task.v_stride, first, keys, v);
        for (int64_t start = 0; start < rows; start += kRows) {
            const int64_t count = rows - start < kRows ? rows - start : kRows;
            if (!sees_any(task, start, count, first, keys)) continue;
            multiply(keys, count, task.width, {k, width, 1}, task.q_t + start, rows, scores,
                     kRows, false);
            float* out = task.out + start * width;
            if (softmax_block(task, first, keys, start, count, scores, shrink)) {
                for (int64_t i = 0; i < count; i++) {
                    for (int64_t c = 0; c < width; c++) out[i * width + c] *= shrink[i];
                }
            }
            multiply(count, width, keys, {scores, 1, kRows}, v, width, out, width, true);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        // A row that saw no key gives zeros. Written so that NaN stays.
        const float factor = task.total[i] == 0.0f ? 0.0f : 1.0f / task.total[i];
        for (int64_t c = 0; c < width; c++) task.out[i * width + c] *= factor;
    }
}

void attend_gradient(const AttentionTask& task, float* room) {
    const int64_t width = padded_to_step(task.width), rows = task.rows;
    float* scores = room;
    float* slopes = scores + kKeys * kRows;
    float* k = slopes + kKeys * kRows;
    float* v = k + kKeys * width;
    float* const dk_room = v + kKeys * width;
    float* const dv_room = dk_room + kKeys * width;
    // Sums in float32 are made where they belong: the store of one is under way while the next
    // is computed, which matters where they lie far apart.
    const bool in_place =
        task.dk != nullptr && task.dtype == BOE_FLOAT32 && task.width == width;
    const int64_t dk_stride = in_place ? task.dk_stride : width;
    const int64_t dv_stride = in_place ? task.dv_stride : width;
    if (task.dq != nullptr) {
        for (int64_t i = 0; i < rows * width; i++) task.dq[i] = 0.0f;
    }
    for (int64_t first = task.first_key; first < task.end_key; first += kKeys) {
        const int64_t keys = task.end_key - first < kKeys ? task.end_key - first : kKeys;
        copy_rows(task, task.k, task.k_stride, first, keys, k);
        copy_rows(task, task.v, task.v_stride, first, keys, v);
        float* const dk = in_place ? (float*)task.dk + first * dk_stride : dk_room;
        float* const dv = in_place ? (float*)task.dv + first * dv_stride : dv_room;
        bool add = false;
        for (int64_t start = 0; start < rows; start += kRows) {
            const int64_t count = rows - start < kRows ? rows - start : kRows;
            if (!sees_any(task, start, count, first, keys)) continue;
            multiply(keys, count, task.width, {k, width, 1}, task.q_t + start, rows, scores,
                     kRows, false);
            multiply(keys, count, task.width, {v, width, 1}, task.dout_t + start, rows,
                     slopes, kRows, false);
            for (int64_t j = 0; j < keys; j++) {
                const int32_t key = key_of(task, first + j);
                const float bias = bias_of(task, key);
                for (int64_t i = 0; i < count; i += kLanes) {
                    float* score = scores + j * kRows + i;
                    float* slope = slopes + j * kRows + i;
                    const Floats x = load(score) * task.scale + bias - load(task.lse + start + i);
                    const Floats p =
                        sees(task, start + i, key) ? weight_of(x) : Floats{};
                    store(score, p);
                    store(slope, p * (load(slope) - load(task.delta + start + i)) * task.scale);
                }
            }
            if (task.dk != nullptr) {
                multiply(keys, width, count, {slopes, kRows, 1}, task.q + start * width, width, dk,
                         dk_stride, add);
                multiply(keys, width, count, {scores, kRows, 1}, task.dout + start * width, width,
                         dv, dv_stride, add);
                add = true;
            }
            if (task.dq != nullptr) {
                multiply(count, width, keys, {slopes, 1, kRows}, k, width,
                         task.dq + start * width, width, true);
            }
        }
        if (task.dk == nullptr) continue;
        for (int64_t j = 0; j < keys; j++) {
            float* const dk_row = dk + j * dk_stride;
            float* const dv_row = dv + j * dv_stride;
            if (!add) {  // No row sees these keys.
                for (int64_t c = 0; c < width; c++) dk_row[c] = dv_row[c] = 0.0f;
            }
            if (in_place) continue;
            narrow(task.dtype, dk_row, task.dk, (first + j) * task.dk_stride, task.width);
            narrow(task.dtype, dv_row, task.dv, (first + j) * task.dv_stride, task.width);
        }
    }
}

}  // namespace BOE_VARIANT
}  // namespace boe
