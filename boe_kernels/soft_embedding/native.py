"""The top-k soft write by the native CPU kernel (``csrc/soft_embedding.cpp``).

One pass over each distribution finds its k largest ids (of equal ones the lowest), and
their rows of the table are summed in float32 and blended into the canvas in one go. There
is no native dense form: that is one matrix product, which PyTorch does well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._native import DTYPES
from boe_kernels._native_library import library


def forward(
    embeds: Tensor,
    rows: Tensor,
    probs_or_logits: Tensor,
    table: Tensor,
    mask_embed: Tensor,
    alpha: float,
    top_k: int | None,
    is_logits: bool,
) -> tuple[Tensor, Tensor]:
    """The injected canvas and Δe, both contiguous."""
    if top_k is None:
        raise ValueError("the native soft write needs top_k")
    batch, length, width = embeds.shape
    values = probs_or_logits
    values = values if values.dtype in DTYPES else values.to(torch.float32)
    # Copied only if they have to be: their last dimension must be contiguous.
    values, table = (x if x.stride(-1) == 1 else x.contiguous() for x in (values, table))
    rows, mask_embed = rows.contiguous(), mask_embed.contiguous()
    canvas = embeds.clone(memory_format=torch.contiguous_format)
    count, vocabulary = values.shape[1:]
    delta = embeds.new_empty(batch, count, width)
    library().run(
        "boe_soft_write_top_k",
        DTYPES[values.dtype],
        values.data_ptr(),
        *(batch, count, vocabulary, values.stride(0), values.stride(1)),
        int(is_logits),
        top_k,
        rows.data_ptr(),
        0 if rows.shape[0] == 1 else count,
        DTYPES[embeds.dtype],
        table.data_ptr(),
        table.stride(0),
        width,
        mask_embed.data_ptr(),
        alpha,
        canvas.data_ptr(),
        length,
        delta.data_ptr(),
    )
    return canvas, delta
