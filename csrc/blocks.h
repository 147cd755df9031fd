// The kernels of one variant; variants.h describes them.

#pragma once

#include "variants.h"

namespace boe {
namespace BOE_VARIANT {

Partial scan(const Block& block);
int64_t find(const Block& block, float value);
void gradient(const Block& block, const Slope& slope, void* gradient);
int64_t collect(const Block& block, float above, Candidate* found);
void soft_write(const SoftWrite& write, const Candidate* kept, int64_t count, void* canvas_row,
                void* delta_row);
void pack_rows(const RowSource& from, float* packed, float* transposed);
void unpack_row(int32_t dtype, const float* row, void* to, int64_t first, int64_t width);
void attend(const AttentionTask& task, float* room);
void attend_gradient(const AttentionTask& task, float* room);

}  // namespace BOE_VARIANT
}  // namespace boe
