// Attention over all keys for given query rows, and its gradient. The query heads that share a
// head of keys are worked on together, as further rows: keys and values are read once for all.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "boe_kernels.h"
#include "threads.h"
#include "variants.h"

namespace boe {
namespace {

// Query rows of one task of the forward: enough to pay for converting the keys, few enough for
// the second cache.
constexpr int64_t kForwardRows = 256;

// The gradient splits the keys of a head over tasks, whose shares of dq are added in order: so
// many tasks to a canvas, if there are keys enough. That is no matter of how many threads or
// canvases there are, so that the sums are not either.
constexpr int64_t kTasksPerCanvas = 16;
constexpr int64_t kLeastKeys = 256;

const char* at(const boe_heads& heads, int64_t element_size, int64_t batch, int64_t head) {
    return (const char*)heads.data +
           (batch * heads.batch_stride + head * heads.head_stride) * element_size;
}

// One batch entry's head of keys and the query heads that it serves.
struct Group {
    const boe_attention& call;
    const Kernels& kernels;
    int64_t batch;
    int64_t kv_head;

    int64_t heads() const { return call.q_heads / call.kv_heads; }
    int64_t rows() const { return heads() * call.rows; }
    int64_t element_size() const { return call.dtype == BOE_FLOAT32 ? 4 : 2; }

    const int64_t* positions() const {
        return call.positions == nullptr ? nullptr
                                         : call.positions + batch * call.positions_stride;
    }
    // Where the canvas holds a row of the group; -1 for padding.
    int64_t position(int64_t row) const {
        const int64_t slot = row % call.rows;
        return positions() == nullptr ? slot : positions()[slot];
    }
    char* first(const boe_heads& heads_of, int64_t size) const {
        return (char*)at(heads_of, size, batch, kv_head * heads());
    }
    int64_t offset(const boe_heads& heads_of, int64_t row) const {
        const int64_t place = heads_of.at_positions ? position(row) : row % call.rows;
        return row / call.rows * heads_of.head_stride + place * heads_of.row_stride;
    }

    void pack(const boe_heads& from, int64_t start, int64_t count, float* packed,
              float* transposed) const {
        kernels.pack_rows({(int32_t)call.dtype, first(from, element_size()), from.head_stride,
                           from.row_stride, call.width, call.rows,
                           positions(), from.at_positions != 0, start, count},
                          packed, transposed);
    }

    AttentionTask task() const {
        AttentionTask task = {};
        task.dtype = (int32_t)call.dtype;
        task.width = call.width;
        task.scale = (float)call.scale;
        task.k = at(call.k, element_size(), batch, kv_head);
        task.k_stride = call.k.row_stride;
        task.v = at(call.v, element_size(), batch, kv_head);
        task.v_stride = call.v.row_stride;
        if (call.key_positions != nullptr) {
            task.key_positions = call.key_positions + batch * call.key_positions_stride;
        }
        if (call.key_bias != nullptr) task.key_bias = call.key_bias + batch * call.key_bias_stride;
        return task;
    }
};

// Which keys each row sees, as far as positions decide it.
struct Sight {
    int32_t* begin;
    int32_t* end;

    void fill(const Group& group, int64_t start, int64_t count, AttentionTask& task) const {
        if (group.call.window < 0 && group.call.block_size == 0) return;
        for (int64_t i = 0; i < padded_to_step(count); i++) {
            const int64_t row = i < count ? group.position(start + i) : -1;
            int64_t from = 0, to = row < 0 ? 0 : INT32_MAX;
            if (row >= 0 && group.call.window >= 0) {
                from = std::max<int64_t>(0, row - group.call.window);
                to = std::min<int64_t>(to, row + group.call.window + 1);
            }
            if (row >= 0 && group.call.block_size > 0) {
                to = std::min(to, (row / group.call.block_size + 1) * group.call.block_size);
            }
            begin[i] = (int32_t)from;
            end[i] = (int32_t)to;
        }
        task.begin = begin;
        task.end = end;
    }
};

// A thread's working memory, handed out piece by piece.
struct Room {
    float* rest;

    float* take(int64_t size) {
        rest += size;
        return rest - size;
    }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }

int team_of(int32_t threads, const boe_attention& call, int64_t tasks) {
    const int64_t work = call.batch * call.q_heads * call.rows * call.keys * call.width / kRows;
    return (int)at_least_one(std::min<int64_t>(team_size(threads, work), tasks));
}

}  // namespace
}  // namespace boe

using namespace boe;

int32_t boe_attention_forward(int32_t variant, int32_t threads, const boe_attention* call) {
    const Kernels& kernels = kernels_of(variant);
    const int64_t rows = call->q_heads / call->kv_heads * call->rows;
    const int64_t parts = ceil_div(rows, kForwardRows);
    const int64_t most = padded_to_step(std::min(rows, kForwardRows));
    const int64_t width = padded_to_step(call->width);
    const int64_t tasks = call->batch * call->kv_heads * parts;
    const int team = team_of(threads, *call, tasks);
    // Packed rows become the sums of the output once they have been transposed.
    const int64_t room = attention_room(call->width) + 2 * most * width + 4 * most;
    float* rooms = (float*)malloc(team * room * sizeof(float));
    if (rooms == nullptr) return BOE_OUT_OF_MEMORY;
    parallel_for(team, tasks, [&](int64_t i) {
        const int64_t head = i / parts, start = i % parts * kForwardRows;
        const Group group = {*call, kernels, head / call->kv_heads, head % call->kv_heads};
        const int64_t count = std::min(rows - start, kForwardRows);
        Room memory = {rooms + thread_number() * room};
        AttentionTask task = group.task();
        float* packed = memory.take(most * width);
        float* transposed = memory.take(most * width);
        task.top = memory.take(most);
        task.total = memory.take(most);
        const Sight sight = {(int32_t*)memory.take(most), (int32_t*)memory.take(most)};
        group.pack(call->q, start, count, packed, transposed);
        sight.fill(group, start, count, task);
        task.first_key = 0;
        task.end_key = call->keys;
        task.rows = padded_to_step(count);
        task.q_t = transposed;
        task.out = packed;
        kernels.attend(task, memory.rest);
        for (int64_t r = 0; r < count; r++) {
            const int64_t row = start + r;
            const bool padding = group.position(row) < 0;
            if (padding) std::fill_n(packed + r * width, width, 0.0f);
            kernels.unpack_row(task.dtype, packed + r * width,
                               group.first(call->out, group.element_size()),
                               group.offset(call->out, row), call->width);
            ((float*)group.first(call->lse, 4))[group.offset(call->lse, row)] =
                padding ? -INFINITY : task.top[r] + logf(task.total[r]);
        }
    });
    free(rooms);
    return BOE_DONE;
}

int32_t boe_attention_backward(int32_t variant, int32_t threads, const boe_attention* call) {
    const Kernels& kernels = kernels_of(variant);
    const int64_t rows = call->q_heads / call->kv_heads * call->rows;
    const int64_t padded = padded_to_step(rows), width = padded_to_step(call->width);
    const int64_t heads = call->batch * call->kv_heads;
    const int64_t wanted = at_least_one(
        std::min(ceil_div(kTasksPerCanvas, call->kv_heads), call->keys / kLeastKeys));
    const int64_t blocks = ceil_div(ceil_div(call->keys, wanted), kKeys);
    const int64_t part = at_least_one(blocks) * kKeys;
    const int64_t parts = at_least_one(ceil_div(call->keys, part));
    const int64_t tasks = heads * parts;
    const int team = team_of(threads, *call, tasks);
    const int64_t room = attention_room(call->width) + 4 * padded * width + 4 * padded;
    const int64_t share = call->dq.data == nullptr ? 0 : padded * width;
    float* rooms = (float*)malloc((team * room + tasks * share) * sizeof(float));
    if (rooms == nullptr) return BOE_OUT_OF_MEMORY;
    float* shares = rooms + team * room;
    parallel_for(team, tasks, [&](int64_t i) {
        const int64_t head = i / parts, from = i % parts * part;
        const Group group = {*call, kernels, head / call->kv_heads, head % call->kv_heads};
        Room memory = {rooms + thread_number() * room};
        AttentionTask task = group.task();
        float* q = memory.take(padded * width);
        float* q_t = memory.take(padded * width);
        float* dout = memory.take(padded * width);
        float* dout_t = memory.take(padded * width);
        float* lse = memory.take(padded);
        float* delta = memory.take(padded);
        const Sight sight = {(int32_t*)memory.take(padded), (int32_t*)memory.take(padded)};
        // The transposed rows' place holds the output first: delta is its product with dout.
        group.pack(call->out, 0, rows, q_t, nullptr);
        group.pack(call->dout, 0, rows, dout, dout_t);
        for (int64_t r = 0; r < padded; r++) {
            float sum = 0.0f;
            for (int64_t c = 0; c < width; c++) sum += q_t[r * width + c] * dout[r * width + c];
            delta[r] = sum;
            lse[r] = INFINITY;
            if (r >= rows || group.position(r) < 0) continue;
            const float given =
                ((const float*)group.first(call->lse, 4))[group.offset(call->lse, r)];
            lse[r] = given == -INFINITY ? INFINITY : given;
        }
        group.pack(call->q, 0, rows, q, q_t);
        sight.fill(group, 0, rows, task);
        task.first_key = from;
        task.end_key = std::min(from + part, call->keys);
        task.rows = padded;
        task.q = q;
        task.q_t = q_t;
        task.dout = dout;
        task.dout_t = dout_t;
        task.lse = lse;
        task.delta = delta;
        task.dq = share == 0 ? nullptr : shares + i * share;
        if (call->dk.data != nullptr) {
            task.dk = (void*)at(call->dk, group.element_size(), group.batch, group.kv_head);
            task.dk_stride = call->dk.row_stride;
            task.dv = (void*)at(call->dv, group.element_size(), group.batch, group.kv_head);
            task.dv_stride = call->dv.row_stride;
        }
        kernels.attend_gradient(task, memory.rest);
    });
    if (call->dq.data != nullptr) {
        parallel_for(std::min<int64_t>(team, heads), heads, [&](int64_t head) {
            const Group group = {*call, kernels, head / call->kv_heads, head % call->kv_heads};
            float* sum = shares + head * parts * share;
            for (int64_t p = 1; p < parts; p++) {
                for (int64_t e = 0; e < share; e++) sum[e] += sum[p * share + e];
            }
            char* dq = group.first(call->dq, group.element_size());
            for (int64_t h = 0; h < group.heads(); h++) {
                for (int64_t r = 0; r < call->dq_rows; r++) {
                    const int64_t start = h * call->dq.head_stride + r * call->dq.row_stride;
                    memset(dq + start * group.element_size(), 0,
                           call->width * group.element_size());
                }
            }
            for (int64_t r = 0; r < rows; r++) {
                if (group.position(r) < 0) continue;
                kernels.unpack_row((int32_t)call->dtype, sum + r * width, dq,
                                   group.offset(call->dq, r), call->width);
            }
        });
    }
    free(rooms);
    return BOE_DONE;
}
