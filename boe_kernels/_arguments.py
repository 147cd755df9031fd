"""Argument checks shared by the public functions.

Each raises ``TypeError`` or ``ValueError`` naming the argument, what was expected and
what came. Values (index ranges, duplicates) are checked with an exception on the CPU
and with an asynchronous device assertion elsewhere, so that no call waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from boe_kernels._triton import why_not_triton

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

GradRows = Literal["queries", "keys"]
"""Whose rows get dk and dv: the keys that active queries see, or those of the active rows."""


def require_tensor(name: str, value: object, rank: int | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if rank is not None and value.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, got shape {tuple(value.shape)}")


def require_floating(name: str, value: Tensor) -> None:
    require_floating_dtype(name, value.dtype)


def require_floating_dtype(name: str, dtype: object) -> None:
    if dtype not in FLOATING:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {dtype!r}")


def require_int(name: str, value: object) -> None:
    """Numbers that a compiler traces are no ``int``, but like one."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def require_number(name: str, value: object) -> None:
    """No tensor: reading it would wait for its device, and lose its gradient."""
    if torch.compiler.is_compiling():
        return  # A compiler's number does not say what it has.
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def require_op_names(ops: Sequence[str], known: Sequence[str]) -> None:
    """A plan is for one op or more, each of them a known one."""
    if isinstance(ops, str) or not ops:
        raise ValueError(f"ops must be a tuple of names, got {ops!r}")
    for op in ops:
        if op not in known:
            raise ValueError(f"ops must be among {', '.join(known)}, got {op!r}")


def require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        require_int(name, number)
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def finite_number(name: str, value: float) -> float:
    """``value`` as a float, if it is a finite number."""
    require_number(name, value)
    number = float(value)
    # A compiler's number is not to be looked at.
    if not torch.compiler.is_compiling() and not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def require_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """``value`` must share dtype and device with ``other``."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name} ({other.dtype}), got {value.dtype}"
        )
    require_same_device(name, value, other_name, other)


def require_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {value.device}"
        )


def require_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {meaning} = {expected}, got {tuple(value.shape)}")


def require_constant(op: str, **tensors: Tensor | None) -> None:
    """No tensor may require a gradient while one is being recorded: the op gives none."""
    if not torch.is_grad_enabled():
        return
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient: {op} differentiates with respect to its "
                "first argument only; detach it or use backend='reference'"
            )


def require_indices(
    name: str,
    indices: Tensor,
    members: str,
    end: tuple[str, int],
    *,
    padded: bool = False,
    once: str | None = None,
) -> None:
    """Check the values of int64 (A,) or (B, A).

    Where a GPU runs Triton this is one launch.

    Args:
        members: what the indices name, in the plural.
        end: how the first number that is too high is called, and the number.
        padded: −1 may stand for no index, any number of times.
        once: what none may do, if indices must not repeat: "name a row twice".

    Raises:
        IndexError: a value outside [0, end). ValueError: a value given twice. On a GPU a device
        assertion says the same, without the values.
    """
    if indices.numel() == 0:
        return
    lowest = -1 if padded else 0
    letter, bound = end
    padding = ", or -1 for padding" if padded else ""
    repeated_message = None if once is None else f"{name} must not {once}"
    if indices.device.type == "cuda" and why_not_triton(indices.device, indices.dtype) is None:
        from boe_kernels._triton_index_check import check_indices

        range_message = f"{name} must hold {members} in [0, {letter}){padding}"
        check_indices(indices, lowest, bound, range_message, repeated_message)
        return
    on_cpu = indices.device.type == "cpu"
    range_message = f"{name} must hold {members} in [0, {bound}){padding}"
    within = ((indices >= lowest) & (indices < bound)).all()
    if not on_cpu:
        torch._assert_async(within, range_message)
    elif not bool(within):
        values = f"values from {int(indices.min())} to {int(indices.max())}"
        raise IndexError(f"{range_message}, got {values}")
    if repeated_message is not None:
        ordered = indices.sort(dim=-1).values
        repeats = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        repeated = repeats.any()
        if not on_cpu:
            torch._assert_async(~repeated, repeated_message)
        elif bool(repeated):
            again = int(ordered[..., 1:][repeats][0])
            raise ValueError(f"{repeated_message}, got {again} more than once")


def check_band(window: int | None, block_size: int | None) -> None:
    """A window reaches 0 rows or more, a block holds 1 row or more."""
    for name, value, least in (("window", window, 0), ("block_size", block_size, 1)):
        if value is None:
            continue
        require_int(name, value)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"{name} must be below 2**63, got {value}")


def check_grad_rows(grad_rows: str) -> None:
    if grad_rows not in get_args(GradRows):
        raise ValueError(f"grad_rows must be 'queries' or 'keys', got {grad_rows!r}")


def _plainly_fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the quick check passes; if not, the full one finds out what is wrong.

    Between two long kernels the caches are cold, and a line of Python takes 20 times longer
    than in a loop of its own: the full check some 50 µs.
    """
    if not (type(q) is Tensor and type(k) is Tensor and type(v) is Tensor):
        return False
    q_shape, k_shape = q.shape, k.shape
    return (
        q.dtype in FLOATING
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and len(q_shape) == len(k_shape) == 4
        and k_shape == v.shape
        and q_shape[0] == k_shape[0]
        and q_shape[3] == k_shape[3] > 0
        and k_shape[1] > 0
        and q_shape[1] % k_shape[1] == 0
    )


def check_attention_tensors(
    query: tuple[str, Tensor],
    key: tuple[str, Tensor],
    value: tuple[str, Tensor],
    key_padding_mask: Tensor | None,
) -> None:
    """Queries (B, Hq, A, D) against keys and values (B, Hkv, Lk, D), each with its name."""
    (q_name, q), (k_name, k), (v_name, v) = query, key, value
    if key_padding_mask is None and _plainly_fit(q, k, v):
        return
    for name, tensor in (query, key, value):
        require_tensor(name, tensor, rank=4)
    require_floating(q_name, q)
    require_alike(k_name, k, q_name, q)
    require_alike(v_name, v, q_name, q)
    batch, q_heads, _, width = q.shape
    if k.shape[0] != batch or k.shape[3] != width:
        raise ValueError(
            f"{k_name} must have the batch {batch} and head dimension {width} of {q_name}, "
            f"got shape {tuple(k.shape)}"
        )
    require_shape(v_name, v, tuple(k.shape), f"that of {k_name}")
    if k.shape[1] == 0 or q_heads % k.shape[1]:
        raise ValueError(
            f"the heads of {q_name} must be a multiple of those of {k_name}, "
            f"got {q_heads} and {k.shape[1]}"
        )
    if width == 0:
        raise ValueError(f"the head dimension of {q_name} must be positive, got 0")
    if key_padding_mask is not None:
        require_tensor("key_padding_mask", key_padding_mask)
        if key_padding_mask.dtype != torch.bool:
            additive = ": an additive mask is a key_bias"
            raise TypeError(
                f"key_padding_mask must be bool, got {key_padding_mask.dtype}"
                f"{additive if key_padding_mask.is_floating_point() else ''}"
            )
        require_same_device("key_padding_mask", key_padding_mask, q_name, q)
        if key_padding_mask.dim() > 2:
            raise ValueError(
                "key_padding_mask must have shape (B, Lk): masks that differ from query to query "
                f"or head to head are not supported, got {tuple(key_padding_mask.shape)}"
            )
        require_shape("key_padding_mask", key_padding_mask, (batch, k.shape[2]), "(B, Lk)")
