// The C interface of the native CPU kernels, which boe_kernels/_native_library.py calls.
//
// Plain C on raw pointers: the library depends on no version of Python or PyTorch.
// Callers have checked every argument; nothing is checked again here. Strides count
// elements, the last dimension is contiguous. Functions may be called from several threads
// at once. Results are the same bits for every number of threads.

#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define BOE_API __declspec(dllexport)
#else
#define BOE_API __attribute__((visibility("default")))
#endif

// To be raised with every change below; boe_kernels/_native_library.py holds its twin.
#define BOE_ABI_VERSION 2

#define BOE_FLOAT32 0
#define BOE_BFLOAT16 1
#define BOE_FLOAT16 2

#define BOE_DONE 0
#define BOE_OUT_OF_MEMORY 1

#ifdef __cplusplus
extern "C" {
#endif

BOE_API int32_t boe_abi_version(void);

// Variants are the same kernels compiled for different instruction sets, fastest first.
// Every kernel takes the variant to run: one for which boe_variant_runs is true.
BOE_API int32_t boe_variant_count(void);
BOE_API const char* boe_variant_name(int32_t variant);
BOE_API int32_t boe_variant_runs(int32_t variant);

// Whether the library was compiled with OpenMP; otherwise `threads` changes nothing.
BOE_API int32_t boe_has_threads(void);

// Statistics of one categorical distribution per row of logits (rows, vocabulary).
//
// suppressed_ids: ascending, possibly repeated; their logits count as -inf.
// gradient: null, or (rows, vocabulary) of the logits' dtype for dH/dz. It may be the logits
// themselves. Rows with NaN or +inf, or with -inf only, give NaN and an id in range.
BOE_API int32_t boe_vocabulary_statistics(
    int32_t variant, int32_t threads, int32_t dtype, const void* logits, int64_t rows,
    int64_t vocabulary, int64_t row_stride, const int64_t* suppressed_ids,
    int64_t suppressed_count, float* entropy, float* logsumexp, float* top1, float* top2,
    int64_t* argmax, void* gradient, int64_t gradient_row_stride);

// grad_entropy * dH/dz, given the entropy and log-sum-exp of each row.
BOE_API int32_t boe_entropy_gradient(
    int32_t variant, int32_t threads, int32_t dtype, const void* logits, int64_t rows,
    int64_t vocabulary, int64_t row_stride, const int64_t* suppressed_ids,
    int64_t suppressed_count, const float* grad_entropy, const float* entropy,
    const float* logsumexp, void* gradient, int64_t gradient_row_stride);

// Write mask_embed + alpha * delta at rows of a canvas (batch, length, width), and delta
// (batch, count, width): the expected row of table (vocabulary, width) under the top_k
// largest of values (batch, count, vocabulary), renormalised, less mask_embed.
//
// rows: (batch, count), row stride 1, batch stride 0 where the batch shares them; -1 pads.
// Of equal values the lowest ids are kept. dtype is that of table, mask_embed, canvas, delta.
BOE_API int32_t boe_soft_write_top_k(
    int32_t variant, int32_t threads, int32_t values_dtype, const void* values, int64_t batch,
    int64_t count, int64_t vocabulary, int64_t values_batch_stride, int64_t values_row_stride,
    int32_t is_logits, int64_t top_k, const int64_t* rows, int64_t rows_batch_stride,
    int32_t dtype, const void* table, int64_t table_row_stride, int64_t width,
    const void* mask_embed, float alpha, void* canvas, int64_t length, void* delta);

// A tensor (batch, heads, rows, width) and its strides. Rows that lie at their position in the
// canvas are found there; others are in the order of the positions.
typedef struct {
    void* data;
    int64_t batch_stride;
    int64_t head_stride;
    int64_t row_stride;
    int64_t at_positions;
} boe_heads;

// Attention of `rows` query rows over `keys` keys, q_heads a multiple of kv_heads. What is not
// asked for, or not there, is null.
typedef struct {
    int64_t dtype, batch, q_heads, kv_heads, rows, keys, width;
    double scale;
    int64_t window;      // rows and keys farther apart do not see each other; < 0 for none
    int64_t block_size;  // rows see keys up to the end of their block; 0 for none
    // Positions of the rows, (batch, rows), and of the keys, (batch, keys): -1 pads. Null for
    // 0, 1, 2, ... A batch stride of 0 shares them.
    const int64_t* positions;
    int64_t positions_stride;
    const int64_t* key_positions;
    int64_t key_positions_stride;
    // Added to the scaled scores, by the key's position: (batch, length).
    const float* key_bias;
    int64_t key_bias_stride;
    boe_heads q, k, v, out;
    boe_heads lse;  // float32, width 1
    boe_heads dout, dq, dk, dv;
    int64_t dq_rows;  // dq has so many rows per head; those of no query row become zeros
} boe_attention;

// out and lse. Rows that see no key give zeros and -inf.
BOE_API int32_t boe_attention_forward(int32_t variant, int32_t threads, const boe_attention* call);

// dq, and dk and dv at the keys, from dout, out and lse of the rows. Padding gives nothing and
// gets zeros.
BOE_API int32_t boe_attention_backward(int32_t variant, int32_t threads,
                                       const boe_attention* call);

#ifdef __cplusplus
}
#endif
