"""Active-row attention's Triton kernels, interpreted, with and without parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import triton
from attention_shapes import force
from dense_attention import (
    assert_rows_are_as_accurate_as_dense,
    output_and_gradients,
    random_qkv,
)
from torch import Tensor

from boe_kernels import active_row_attention
from boe_kernels._key_mask import as_key_mask
from boe_kernels.row_attention import op
from boe_kernels.row_attention import triton as kernels

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned_allocations")

DTYPES = (torch.float32, torch.float16)
RAGGED = torch.tensor([[5, -1, 1, 13, -1], [-1, -1, 7, -1, -1], [-1, -1, -1, -1, -1]])


@pytest.fixture(params=["split", "split, parts of dq"], ids=["whole", "in parts"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Keys in one stretch per program, or in several."""
    force(request.param, monkeypatch)
    return request.param


@dataclass(frozen=True)
class Problem:
    """Live rows of a frozen canvas, and what restricts the keys that a row sees."""

    live: tuple[Tensor, Tensor, Tensor]
    frozen: tuple[Tensor, Tensor]
    rows: Tensor
    grad: Tensor
    mask: Tensor | None = None
    scale: float = 0.3
    window: int | None = None
    block_size: int | None = None
    bias: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Tensor,
        batch: int = 3,
        heads: tuple[int, int] = (2, 1),
        length: int = 40,
        width: int = 8,
        dtype: torch.dtype = torch.float32,
        **restrictions: object,
    ) -> Problem:
        rows = rows.expand(batch, -1)
        sizes = {"batch": batch, "heads": heads, "width": width, "dtype": dtype}
        q_rows, k_rows, v_rows, grad = random_qkv(length=rows.shape[1], seed=1, **sizes)
        _, k, v, _ = random_qkv(length=length, **sizes)
        return cls((q_rows, k_rows, v_rows), (k, v), rows, grad, **restrictions)

    @property
    def restrictions(self) -> tuple[object, ...]:
        return as_key_mask(self.mask, self.bias), self.scale, self.window, self.block_size

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output and gradients."""
        inputs = (*self.live, *self.frozen)
        out, lse, *merged = kernels.forward(*inputs, self.rows, *self.restrictions)
        saved = (*merged, out, lse, self.rows)
        return out, *kernels.backward(self.grad, *inputs, *saved, *self.restrictions)

    def assert_accurate(self) -> None:
        assert_rows_are_as_accurate_as_dense(
            self.run(),
            self.live,
            self.frozen,
            self.rows,
            self.grad,
            self.mask,
            self.window,
            self.scale,
            self.block_size,
            self.bias,
        )


def equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def blind_canvas(length: int) -> Tensor:
    """Real keys of three canvases: one lacks a few, one has none, one has all."""
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[0, [0, 5, length - 1]] = False
    mask[1] = False
    return mask


# --- accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 127, 129], ids="L={}".format)
def test_output_and_gradients_are_as_accurate_as_dense_attention(length, dtype, shape):
    rows = torch.arange(length - 1, -1, -7)
    Problem.of(rows, batch=1, length=length, width=16, dtype=dtype).assert_accurate()


@pytest.mark.parametrize("width", [40, 80, 160], ids="D={}".format)
def test_any_head_dimension_is_right(width, shape):
    Problem.of(torch.tensor([2, 30, 7]), batch=1, width=width).assert_accurate()


@pytest.mark.parametrize("count", [0, 1, 40], ids="A={}".format)
def test_any_number_of_rows_is_right(count, shape):
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:count]
    Problem.of(rows, batch=1, heads=(3, 1)).assert_accurate()


@pytest.mark.parametrize(
    "restrictions",
    [
        {},
        {"mask": blind_canvas(40)},
        {"window": 5},
        {"block_size": 9},
        {"mask": blind_canvas(40), "window": 3, "block_size": 4},
        {"scale": -0.4},
    ],
    ids=["none", "padding", "window", "blocks", "all of them", "negative scale"],
)
def test_ragged_rows_are_right_whatever_hides_keys(restrictions, shape):
    Problem.of(RAGGED, heads=(4, 2), **restrictions).assert_accurate()


def test_the_public_function_runs_the_kernels(shape):
    case = Problem.of(RAGGED, window=9)
    options = {"window": 9, "scale": case.scale, "backend": "triton"}
    actual = output_and_gradients(
        lambda *live: active_row_attention(*live, *case.frozen, RAGGED, **options),
        case.live,
        case.grad,
    )
    assert equal(actual, case.run())


# --- what is read and written -------------------------------------------------------


def test_what_padding_and_frozen_keys_at_the_rows_hold_is_not_read(shape):
    case = Problem.of(RAGGED, heads=(4, 2))
    padding = (RAGGED < 0)[:, None, :, None]
    at_rows = (RAGGED.unsqueeze(-1) == torch.arange(40)).any(dim=1)[:, None, :, None]
    spoilt = replace(
        case,
        live=tuple(x.masked_fill(padding, torch.nan) for x in case.live),
        frozen=tuple(x.masked_fill(at_rows, torch.nan) for x in case.frozen),
        grad=case.grad.masked_fill(padding, torch.nan),
    )
    actual = spoilt.run()
    assert equal(actual, case.run())
    assert not any(x.masked_select(padding).any() for x in actual)


def test_nothing_is_merged_in_memory():
    case = Problem.of(RAGGED)
    *_, keys, values = kernels.forward(*case.live, *case.frozen, RAGGED, *case.restrictions)
    assert keys.shape == values.shape == (0,)


# --- strides and repetition ---------------------------------------------------------


def test_inputs_with_any_strides_give_the_same_as_their_copies(shape):
    case = Problem.of(RAGGED, heads=(4, 2))

    def transposed(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    strided = replace(
        case,
        live=tuple(map(transposed, case.live)),
        frozen=tuple(torch.stack([x, x], dim=-1)[..., 0] for x in case.frozen),
        grad=case.grad[:1, :1, :1, :1].expand_as(case.grad),
    )
    copied = replace(case, grad=strided.grad.contiguous())
    assert equal(strided.run(), copied.run())


def test_repeated_runs_give_the_same_bits(shape):
    case = Problem.of(torch.arange(0, 70, 5), batch=1, length=70, dtype=torch.float16)
    first = case.run()
    assert all(equal(case.run(), first) for _ in range(2))


def test_a_canvas_gives_the_same_bits_alone_as_in_a_batch(shape):
    case = Problem.of(RAGGED, mask=blind_canvas(40))
    together = case.run()
    for b in range(3):
        one = slice(b, b + 1)
        alone = Problem(
            tuple(x[one] for x in case.live),
            tuple(x[one] for x in case.frozen),
            case.rows[one],
            case.grad[one],
            case.mask[one],
        )
        assert equal(alone.run(), tuple(x[one] for x in together))


@pytest.mark.parametrize(
    ("hip", "version", "why"),
    [
        ("6.3", "3.6.0", "needs Triton 3.9 on an AMD GPU, got 3.6.0"),
        ("6.3", "3.9.0", None),
        (None, "3.6.0", None),
    ],
)
def test_on_amd_it_needs_a_triton_that_can_select_between_pointers(hip, version, why, monkeypatch):
    # Triton 3.6 fails an assertion in AMD's CanonicalizePointers, with every tile.
    monkeypatch.setattr(op, "why_not_triton", lambda device, dtype: None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(triton, "__version__", version)
    assert op._why_not_triton(torch.device("cuda"), torch.bfloat16) == why
