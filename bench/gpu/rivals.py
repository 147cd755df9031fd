"""The contestants in attention through active rows on a GPU.

All but the dense ones compute the same: every output row, and the gradient that the active
rows send. The dense ones send the gradient of every row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.attention_providers import Inputs, Provider, dense, partition, two_call
from bench.gathered_attention import gathered_aten
from boe_kernels import active_query_attention, active_query_backward, active_query_forward

Gradients = tuple[Tensor, Tensor, Tensor]


def by_autograd(x: Inputs, out: Tensor, dout: Tensor) -> Gradients:
    """dq, dk and dv by a backward that may be run again."""
    return torch.autograd.grad(out, x.leaves, dout, retain_graph=True)  # type: ignore[return-value]


@dataclass(frozen=True)
class Rival:
    """A way to compute attention and its gradients.

    Attributes:
        forward: from the inputs to what the backward needs.
        backward: from the inputs, what the forward gave and the gradient of the output to
            dq, dk and dv.
        output: of what the forward gave.
        setting: what the forward is to be run under; not part of its time.
        is_dense: sends the gradient of all rows, whichever are active.
        compiles: its first call takes long, so it is measured at few shapes only.
    """

    name: str
    forward: Callable[[Inputs], Any]
    backward: Callable[[Inputs, Any, Tensor], Gradients] = by_autograd
    output: Callable[[Any], Tensor] = lambda saved: saved
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    is_dense: bool = False
    compiles: bool = False


def _ours(x: Inputs) -> Tensor:
    # Named, so that nothing else can be timed in its place.
    return active_query_attention(x.q, x.k, x.v, x.active, backend="triton")


def _by_hand_forward(x: Inputs) -> Any:
    return active_query_forward(x.q, x.k, x.v, backend="triton")


def _by_hand_backward(x: Inputs, saved: Any, dout: Tensor) -> Gradients:
    out, lse = saved
    return active_query_backward(
        dout, x.q, x.k, x.v, out, lse, x.active, compact_dq=True, backend="triton"
    )


def _backend(*backends: SDPBackend) -> Callable[[], AbstractContextManager[object]]:
    return partial(sdpa_kernel, list(backends))


def flex(x: Inputs) -> Tensor:
    """FlexAttention whose mask hides every key from the inactive rows.

    The outputs of those rows come from a dense forward that records no graph. Which rows
    are active is known in advance, so the block mask costs nothing here.
    """
    if x.q.device.type != "cuda":
        raise NotImplementedError("its compiled form is for GPUs")
    with torch.no_grad():
        out = dense(x)
    grouped = x.q.shape[1] != x.k.shape[1]
    mask = _row_mask(x.active, x.q.shape[2])
    rows = _compiled_flex()(x.q, x.k, x.v, block_mask=mask.blocks, enable_gqa=grouped)
    return torch.where(mask.is_active[:, None], rows, out)


@dataclass(frozen=True)
class _RowMask:
    is_active: Tensor
    """bool (L,)."""
    blocks: Any


_ROW_MASKS: dict[tuple[int, int, int], _RowMask] = {}


def _row_mask(active: Tensor, length: int) -> _RowMask:
    from torch.nn.attention.flex_attention import create_block_mask

    key = (active.data_ptr(), active.numel(), length)
    if key not in _ROW_MASKS:
        is_active = torch.zeros(length, dtype=torch.bool, device=active.device)
        is_active[active] = True

        def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return is_active[query]

        blocks = create_block_mask(sees, None, None, length, length, device=str(active.device))
        _ROW_MASKS.clear()
        _ROW_MASKS[key] = _RowMask(is_active, blocks)
    return _ROW_MASKS[key]


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # fullgraph: were the compiler to give up, its uncompiled form would be timed unseen.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _default(name: str, attend: Provider) -> Rival:
    # As users call it: PyTorch chooses the kernel.
    return Rival(name, attend)


OURS = Rival("ours", _ours)
BY_HAND = Rival("ours_by_hand", _by_hand_forward, _by_hand_backward, output=lambda saved: saved.out)
FLASH = Rival("flash", dense, setting=_backend(SDPBackend.FLASH_ATTENTION), is_dense=True)
CUDNN = Rival("cudnn", dense, setting=_backend(SDPBackend.CUDNN_ATTENTION), is_dense=True)
EFFICIENT = Rival(
    "efficient", dense, setting=_backend(SDPBackend.EFFICIENT_ATTENTION), is_dense=True
)
TWO_CALL = _default("two_call", two_call)
PARTITION = _default("partition", partition)
GATHERED = _default("gathered_aten", gathered_aten)
FLEX = Rival("flex", flex, compiles=True)

DENSE = (FLASH, CUDNN, EFFICIENT)
LIBRARY_ASSEMBLED = (TWO_CALL, PARTITION, GATHERED, FLEX)
"""What a user could put together without a kernel of their own."""
