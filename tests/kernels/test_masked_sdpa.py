"""The attention primitive, with the composition that devices other than the CPU take.

Tests have no other device than the CPU. The composition is called directly, and the ops
are led to it by tensors that claim to lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dense_attention import (
    assert_as_accurate_as_dense,
    assert_rows_are_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_qkv,
    take_rows,
    visible_keys,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode

from boe_kernels import (
    DeferredRows,
    _masked_sdpa,
    active_query_attention,
    active_row_attention,
)
from boe_kernels.query_attention import library as query_library
from boe_kernels.query_attention import op as query_op
from boe_kernels.row_attention import library as row_library

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

HEADS = {"MHA 4": (4, 4), "GQA 8/2": (8, 2), "MQA 7/1": (7, 1)}
LENGTH, KEYS, SCALE = 9, 21, 0.4


def visibilities() -> dict[str, Tensor | None]:
    """Masks of every shape that the ops make, most with queries that see nothing."""
    padding = torch.arange(KEYS) % 3 != 1
    blind = torch.zeros(KEYS, dtype=torch.bool)
    near = (torch.arange(LENGTH)[:, None] - torch.arange(KEYS)).abs() <= 2
    near[4] = False
    return {
        "all keys": None,
        "(B, 1, 1, Lk)": torch.stack((padding, padding.roll(1)))[:, None, None],
        "(B, 1, 1, Lk), a blind canvas": torch.stack((padding, blind))[:, None, None],
        "(1, 1, A, Lk), a blind row": near[None, None],
        "(B, 1, A, Lk), blind rows": torch.stack((near & padding, near & blind))[:, None],
    }


@pytest.mark.parametrize("visible", visibilities())
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_public_composition_is_as_accurate_as_dense_attention(dtype, heads, visible):
    visible = visibilities()[visible]
    *inputs, grad = random_qkv(heads=HEADS[heads], length=LENGTH, key_length=KEYS, dtype=dtype)
    bias = _masked_sdpa.as_bias(visible, dtype)
    actual = output_and_gradients(
        lambda q, k, v: _masked_sdpa._public_sdpa(q, k, v, bias, SCALE), inputs, grad
    )
    assert_as_accurate_as_dense(actual, inputs, grad, visible, SCALE)


@pytest.mark.parametrize("heads", HEADS)
def test_a_single_query_row_with_its_own_mask_per_canvas_is_right(heads):
    # One row makes the bias (B, 1, 1, Lk), which must not be repeated over head groups.
    visible = visibilities()["(B, 1, 1, Lk), a blind canvas"]
    *inputs, grad = random_qkv(heads=HEADS[heads], length=1, key_length=KEYS)
    bias = _masked_sdpa.as_bias(visible, torch.float32)
    actual = output_and_gradients(
        lambda q, k, v: _masked_sdpa._public_sdpa(q, k, v, bias, SCALE), inputs, grad
    )
    assert_as_accurate_as_dense(actual, inputs, grad, visible, SCALE)
    assert not actual[0][1].any()


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Another kernel for the composition: no care for blind queries, its own strides."""
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores if attn_mask is None else scores + attn_mask
    return scores.softmax(dim=-1) @ v


def test_no_kernel_is_shown_a_query_that_sees_nothing(monkeypatch):
    # Kernels differ on such queries. This one gives NaN, forward and backward.
    monkeypatch.setattr(_masked_sdpa, "scaled_dot_product_attention", softmax_attention)
    visible = visibilities()["(B, 1, A, Lk), blind rows"]
    *inputs, grad = random_qkv(heads=(8, 2), length=LENGTH, key_length=KEYS)
    bias = _masked_sdpa.as_bias(visible, torch.float32)
    actual = output_and_gradients(
        lambda q, k, v: _masked_sdpa._public_sdpa(q, k, v, bias, SCALE), inputs, grad
    )
    assert_as_accurate_as_dense(actual, inputs, grad, visible, SCALE)


def test_visibility_and_bias_follow_their_definitions():
    rows = torch.tensor([[0, 5], [3, -1]])
    padding = torch.tensor([[True] * 6, [False, True] * 3])
    visible = _masked_sdpa.visibility(rows, torch.arange(6), padding, 1, None)
    # Padding rows count as row 0: what they see does not matter, but they must see nothing
    # that could make them differ from a real row.
    expected = visible_keys(rows.clamp_min(0), 6, padding, 1, None)
    assert torch.equal(visible, expected)
    bias = _masked_sdpa.as_bias(visible, torch.float16)
    assert bias.dtype == torch.float16
    assert torch.equal(bias == 0, expected)
    assert torch.equal(bias == -torch.inf, ~expected)
    assert _masked_sdpa.visibility(rows, torch.arange(6), None, None, None) is None
    assert _masked_sdpa.as_bias(None, torch.float16) is None


# --- the ops on another device ------------------------------------------------------


class TensorElsewhere(Tensor):
    """A CPU tensor that claims to lie on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def as_if_elsewhere(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., object]:
    def wrapper(*args: object) -> tuple[Tensor, ...]:
        moved = [x.as_subclass(TensorElsewhere) if isinstance(x, Tensor) else x for x in args]
        return tuple(result.as_subclass(Tensor) for result in function(*moved))

    return wrapper


@pytest.fixture
def off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attention ops take the path for other devices; lists which parts of it ran."""
    ran: list[str] = []
    public = _masked_sdpa._public_sdpa

    def recorded(*args: object) -> Tensor:
        ran.append("public")
        return public(*args)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the CPU kernels must not run here")

    monkeypatch.setattr(_masked_sdpa, "_public_sdpa", recorded)
    monkeypatch.setattr(_masked_sdpa, "_cpu_forward", never)
    monkeypatch.setattr(_masked_sdpa, "_cpu_backward", never)
    for library in (query_library, row_library):
        for name in ("attend", "attend_backward"):
            monkeypatch.setattr(library, name, as_if_elsewhere(getattr(_masked_sdpa, name)))
    return ran


PADDING = torch.ones(2, 40, dtype=torch.bool)
PADDING[0, 5:9] = PADDING[1] = False
OP_OPTIONS = {
    "plain": {},
    "key padding, a blind canvas": {"key_padding_mask": PADDING},
    "window, blind rows": {"window": 1, "key_padding_mask": PADDING},
}
ROWS = {"shared": torch.tensor([7, 0, 39]), "ragged": torch.tensor([[7, 0, 39], [3, -1, -1]])}


@pytest.mark.parametrize("options", OP_OPTIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_query_attention_is_right_on_another_device(off_the_cpu, rows, options):
    *inputs, grad = random_qkv(heads=(8, 2), length=40)
    rows, options = ROWS[rows], OP_OPTIONS[options]
    actual = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, rows, backend="library", **options),
        inputs,
        grad,
    )
    positions = torch.arange(40).expand(2, -1)
    padding, window = options.get("key_padding_mask"), options.get("window")
    visible = visible_keys(positions, 40, padding, window)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible)
    assert off_the_cpu == ["public", "public"], "once forward, once backward"


def test_query_attention_with_deferred_rows_is_right_on_another_device(off_the_cpu):
    *inputs, grad = random_qkv(heads=(8, 2), length=40)
    deferred = DeferredRows()
    deferred.bind(ROWS["ragged"])
    actual = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, deferred, backend="library"), inputs, grad
    )
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, ROWS["ragged"]))
    assert off_the_cpu


def test_an_empty_index_set_is_right_on_another_device(off_the_cpu):
    *inputs, grad = random_qkv(heads=(8, 2), length=40)
    rows = torch.zeros(2, 0, dtype=torch.int64)
    actual = output_and_gradients(
        lambda q, k, v: active_query_attention(q, k, v, rows, backend="library"), inputs, grad
    )
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))
    assert off_the_cpu == ["public"], "there is nothing to do in the backward"


def strides(x: Tensor) -> list[int]:
    """Those that matter: of dimensions with more than one element."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows", ROWS)
def test_gradients_lie_in_memory_as_their_fakes_say_on_another_device(
    off_the_cpu, rows, heads, monkeypatch
):
    # Compiled code relies on the strides that the fake promised, whatever the kernel does.
    monkeypatch.setattr(_masked_sdpa, "scaled_dot_product_attention", softmax_attention)
    q, k, v, grad = random_qkv(heads=HEADS[heads], length=40)
    options = (ROWS[rows], None, SCALE, None, None, "queries")
    out, lse = query_op.forward_op(q, k, v, *options, "library")
    arguments = (grad, q, k, v, out, lse, *options, False, False, "library")
    gradients = query_op.backward_op(*arguments)
    with FakeTensorMode() as mode:
        fakes = query_op.backward_op(
            *(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments)
        )
    assert [strides(x) for x in gradients] == [strides(x) for x in fakes]
    assert off_the_cpu == ["public", "public"], "once forward, once backward"


@pytest.mark.parametrize("options", OP_OPTIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_row_attention_is_right_on_another_device(off_the_cpu, rows, options):
    q, k, v, grad = random_qkv(heads=(8, 2), length=40)
    rows, options = ROWS[rows].expand(2, -1), OP_OPTIONS[options]
    q, grad, *live_keys = (take_rows(x, rows) for x in (q, grad, k.flip(2), v.flip(2)))
    actual = output_and_gradients(
        lambda *live: active_row_attention(*live, k, v, rows, backend="library", **options),
        (q, *live_keys),
        grad,
    )
    assert_rows_are_as_accurate_as_dense(actual, (q, *live_keys), (k, v), rows, grad, **options)
    assert off_the_cpu == ["public", "public"], "once forward, once backward"
