"""Row index sets: which rows of a canvas an op works on.

An index set comes as int64 (A,), shared by the batch; as int64 (B, A), where −1 pads
rows with fewer members; or as bool (L,) or (B, L). Order does not matter and no row
may appear twice. Ops work on the padded integer form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boe_kernels._arguments import require_indices, require_same_device, require_tensor


def check_rows(
    name: str, rows: Tensor, batch: int, length: int, like: Tensor, allow_mask: bool = True
) -> None:
    """Check an index set over ``batch`` canvases of ``length`` rows.

    Raises:
        TypeError: neither int64 nor, with ``allow_mask``, bool.
        ValueError: wrong shape or device, or a row given twice.
        IndexError: a row outside ``[0, length)`` that is not the padding −1.
    """
    if _is_plainly_valid(rows, batch, length, like):
        return
    require_tensor(name, rows)
    require_same_device(name, rows, "the data", like)
    if rows.dtype == torch.bool and allow_mask:
        if tuple(rows.shape) not in ((length,), (batch, length)):
            raise ValueError(
                f"bool {name} must have shape (L,) = ({length},) or (B, L) = ({batch}, {length}), "
                f"got {tuple(rows.shape)}"
            )
        return
    if rows.dtype != torch.int64:
        accepted = "int64 or bool" if allow_mask else "int64"
        raise TypeError(f"{name} must be {accepted}, got {rows.dtype}")
    shared = rows.dim() == 1
    if not shared and (rows.dim() != 2 or rows.shape[0] != batch):
        raise ValueError(
            f"{name} must have shape (A,) or (B, A) with B = {batch}, got {tuple(rows.shape)}"
        )
    # Of a DTensor each rank checks the rows that it holds.
    rows = rows.to_local() if hasattr(rows, "to_local") else rows
    # The value checks are left out of compiled graphs, where A − 1 would be a size of its own.
    if torch.compiler.is_compiling() or rows.numel() == 0:
        return
    require_indices(name, rows, "rows", ("L", length), padded=not shared, once="name a row twice")


# Up to this many rows Python is quicker than PyTorch's sort and comparisons.
_FEW = 512


def _is_plainly_valid(rows: Tensor, batch: int, length: int, like: Tensor) -> bool:
    """Whether the quick check passes; if not, the full one finds out what is wrong.

    For few rows, on the CPU, outside compiled graphs.
    """
    if (
        torch.compiler.is_compiling()
        or type(rows) is not Tensor
        or rows.dtype != torch.int64
        or not rows.device.type == like.device.type == "cpu"
        or not 0 < rows.numel() <= _FEW
    ):
        return False
    if rows.dim() == 1:
        return _are_distinct(rows.tolist(), 0, length)
    if rows.dim() != 2 or rows.shape[0] != batch:
        return False
    return all(_are_distinct(members, -1, length) for members in rows.tolist())


def _are_distinct(members: list[int], lowest: int, length: int) -> bool:
    """Whether all are in [lowest, length), and none but −1 is there twice."""
    padding = members.count(-1) if lowest < 0 else 0
    if len(set(members)) + max(0, padding - 1) != len(members):
        return False
    return min(members) >= lowest and max(members) < length


def pad_rows(rows: Tensor, widest: int | None = None) -> Tensor:
    """The index set as int64 (B, A) padded with −1, or (1, A) where the batch shares it.

    A bool mask is converted by counting its members, which waits for the device, unless
    ``widest`` tells how many members the largest set has.
    """
    if rows.dtype != torch.bool:
        return rows if rows.dim() == 2 else rows.unsqueeze(0)
    mask = rows if rows.dim() == 2 else rows.unsqueeze(0)
    if widest is None:
        widest = int(mask.sum(dim=-1).max()) if mask.numel() else 0
    order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :widest]
    return torch.where(mask.gather(1, order), order, -1)


def has_padding(rows: Tensor) -> bool:
    """Whether any of the rows (A,) or (B, A) is −1, which only rows per canvas may be.

    Off the CPU the answer is yes, to wait for no device.
    """
    if rows.dim() == 1:
        return False
    return rows.device.type != "cpu" or bool((rows < 0).any())


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` (B, H, L, D) as (B, H, A, D); ``rows`` (A,) or (B, A) hold no padding."""
    if rows.dim() == 1 or rows.shape[0] == 1:
        return x.index_select(2, rows.reshape(-1))
    batch = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x.transpose(1, 2)[batch, rows].transpose(1, 2)


def with_unit_stride(x: Tensor) -> Tensor:
    """``x``, copied only if neighbours of its last dimension are not neighbours in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def empty_by_rows(like: Tensor) -> Tensor:
    """Room of the shape of ``like`` (B, H, L, D), in memory (B, L, H, D), as models lay it out."""
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def replace_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of ``x`` (B, H, L, D) whose given rows are ``values`` (B, H, A, D).

    The copy has one spare row, cut off on return, to which padding is written: so
    nothing has to be counted or compacted first. It lies in memory as (B, L, H, D), which
    is how models make their keys and values.
    """
    batch, heads, length, width = x.shape
    merged = x.new_empty(batch, length + 1, heads, width).transpose(1, 2)
    merged[:, :, :length] = x
    target = torch.where(rows < 0, length, rows)
    if rows.shape[0] == 1:
        merged.index_copy_(2, target[0], values)
    else:
        which = torch.arange(batch, device=x.device).unsqueeze(1)
        merged.transpose(1, 2)[which, target] = values.transpose(1, 2)
    return merged[:, :, :length]


def spread_rows(values: Tensor, rows: Tensor, length: int) -> Tensor:
    """(B, H, L, D) holding ``values`` (B, H, A, D) at the given rows and zeros elsewhere.

    Padding reads row 0: ``values`` must be zero there (:func:`zero_padding`).
    """
    batch, heads, _, width = values.shape
    canvas = values.new_zeros(batch, heads, length, width)
    if rows.dim() == 1:
        return canvas.index_add_(2, rows, values)
    if rows.shape[0] == 1:
        return canvas.index_add_(2, rows[0].clamp_min(0), values)
    index = rows.clamp_min(0)[:, None, :, None].expand_as(values)
    return canvas.scatter_add_(2, index, values)


def zero_padding(values: Tensor, rows: Tensor) -> Tensor:
    """``values`` (B, H, A, D) with zeros at padding, whatever stood there."""
    return torch.where((rows >= 0)[:, None, :, None], values, 0.0)


def spread_by_selection(values: Tensor, rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The form of :func:`replace_rows` for references: differentiable any number of times.

    Returns:
        (B, H, L, D) with ``values`` (B, H, A, D) at their rows and anything elsewhere, and
        bool (B, 1, L, 1) telling which is which.
    """
    # A last row of padding keeps the graph connected when there are no rows.
    rows = torch.nn.functional.pad(rows, (0, 1), value=-1)
    values = torch.nn.functional.pad(values, (0, 0, 0, 1))
    place = rows.unsqueeze(-1) == torch.arange(length, device=rows.device)
    slot = place.to(torch.int8).argmax(dim=1)[:, None, :, None]
    index = slot.expand(*values.shape[:2], length, values.shape[3])
    return values.gather(2, index), place.any(dim=1)[:, None, :, None]
