"""A bias per key in the attention kernels, interpreted, in every shape of work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import test_attention_mass
import test_query_attention_triton as of_queries
import test_row_attention_triton as of_rows
import torch
from attention_shapes import SHAPES, force
from dense_attention import random_key_bias
from torch import Tensor

from boe_kernels import AttentionPlan
from boe_kernels._attention_launch import Tile, keys_per_step
from boe_kernels._triton import ARCHITECTURES, recording

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned_allocations")

DTYPES = (torch.float32, torch.float16)
RAGGED = of_queries.RAGGED
LENGTH = 40
BIAS = random_key_bias(3, LENGTH)
PADDING = of_queries.blind_canvas(LENGTH)
RESTRICTIONS: dict[str, dict[str, Any]] = {
    "bias": {"bias": BIAS},
    "bias, padding": {"mask": PADDING, "bias": BIAS.roll(1, 0)},
    "bias, window, blocks": {"bias": BIAS, "window": 5, "block_size": 9},
    "bias, negative scale": {"bias": BIAS, "scale": -0.4},
}
restrictions = pytest.mark.parametrize("name", RESTRICTIONS)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    force(request.param, monkeypatch)
    return request.param


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    force("split, parts of dq", monkeypatch)


# --- accuracy -----------------------------------------------------------------------


@restrictions
def test_output_and_gradients_of_queries_are_as_accurate_as_dense_attention(name, shape):
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, **RESTRICTIONS[name])
    case.assert_accurate(case.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 129], ids="L={}".format)
def test_any_length_is_right(length, dtype, shape):
    rows, bias = torch.arange(length - 1, -1, -7), random_key_bias(1, length)
    sizes = {"batch": 1, "heads": (2, 1), "length": length, "width": 16, "dtype": dtype}
    case = of_queries.Problem.of(rows, bias=bias, **sizes)
    case.assert_accurate(case.run())


@restrictions
def test_gradients_of_the_active_keys_alone_are_right(name, in_parts):
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, **RESTRICTIONS[name])
    case.assert_accurate(case.run("keys"), "keys")


@restrictions
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_of_rows_are_as_accurate_as_dense_attention(name, dtype, in_parts):
    of_rows.Problem.of(RAGGED, heads=(4, 2), dtype=dtype, **RESTRICTIONS[name]).assert_accurate()


@pytest.mark.parametrize("weighted", [False, True])
@restrictions
def test_the_mass_is_what_its_definition_says(name, weighted, in_parts):
    options = {**RESTRICTIONS[name], "weighted": weighted}
    test_attention_mass.Problem.of(RAGGED, batch=3, heads=(4, 2), **options).check("triton")


def test_the_log_sum_exp_has_the_bias_in_it():
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, bias=BIAS)
    _, lse = case.forward()
    q, k, _ = (x.double() for x in case.inputs)
    scores = (q * case.scale) @ k.transpose(-1, -2)
    truth = (scores + BIAS[:, None, None]).logsumexp(dim=-1)
    assert torch.equal(lse[1], torch.full_like(lse[1], -torch.inf))
    torch.testing.assert_close(lse.double(), truth, rtol=1e-6, atol=1e-6)


# --- values at the ends of the range ------------------------------------------------


def equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_minus_infinity_excludes_as_padding_does(shape):
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, mask=PADDING)
    excluding = torch.zeros(3, LENGTH).masked_fill(~PADDING, -torch.inf)
    biased = replace(case, mask=None, bias=excluding)
    biased.assert_accurate(biased.run())
    assert not biased.run()[0][1].any()


def test_finite_biases_however_low_exclude_beside_others_and_cancel_alone(shape):
    least = torch.finfo(torch.float32).min
    bias = torch.zeros(3, LENGTH)
    bias[0, 5:9] = least
    bias[1] = least
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, bias=bias)
    actual = case.run()
    assert all(x.isfinite().all() for x in actual)
    hidden = replace(case, bias=torch.where(bias < 0, -torch.inf, 0.0))
    expected = hidden.run()
    assert equal(tuple(x[0] for x in actual), tuple(x[0] for x in expected))
    assert actual[0][1].any(), "of keys that are all as low none is excluded"
    assert (actual[3][1].abs() <= 40.0 * case.grad.abs().max()).all(), "no P is above 1"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("shape", ["one pass, parts of dq", "split"], indirect=True)
def test_nan_and_infinity_reach_every_query_that_sees_the_key_and_no_other(value, shape):
    bias = torch.zeros(3, LENGTH)
    bias[0, 20] = value
    case = of_queries.Problem.of(torch.tensor([19, 3]), batch=3, length=LENGTH, bias=bias)
    case = replace(case, window=4)
    out, dq, dk, _ = case.run()
    seeing = torch.zeros(LENGTH, dtype=torch.bool)
    seeing[16:25] = True
    assert out[0][:, seeing].isnan().all()
    assert out[0][:, ~seeing].isfinite().all()
    assert dq[0][:, 19].isnan().all()
    assert dk[0][:, 20].isnan().all()
    assert all(x[1:].isfinite().all() for x in (out, dq, dk))


# --- how it is launched -------------------------------------------------------------


def test_a_bias_of_another_dtype_and_layout_gives_the_same_as_its_float32_copy(in_parts):
    half = BIAS.half()
    apart = torch.stack([half, half], dim=-1)[..., 0]
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, bias=apart)
    assert equal(case.run(), replace(case, bias=half.float()).run())


def test_one_bias_for_all_canvases_may_be_expanded(in_parts):
    one = BIAS[:1].expand(3, -1)
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(2, 1), length=LENGTH, bias=one)
    assert equal(case.run(), replace(case, bias=one.contiguous()).run())


@pytest.mark.parametrize("shape", ["one pass, parts of dq", "split"], indirect=True)
def test_a_canvas_gives_the_same_bits_alone_as_in_a_batch(shape):
    case = of_queries.Problem.of(RAGGED, batch=3, heads=(4, 2), length=LENGTH, bias=BIAS)
    together = case.run()
    for b in range(3):
        one = slice(b, b + 1)
        inputs = tuple(x[one] for x in case.inputs)
        alone = of_queries.Problem(inputs, case.grad[one], RAGGED[one], bias=BIAS[one])
        assert equal(alone.run(), tuple(x[one] for x in together))


def test_a_step_has_half_as_many_keys_with_biases_but_no_fewer_than_32():
    def steps(mask: Tensor | None) -> list[int]:
        return [keys_per_step(Tile(64, n, 4, 2), mask) for n in (16, 32, 64, 128)]

    assert steps(BIAS) == [16, 32, 32, 64]
    assert steps(None) == steps(PADDING) == [16, 32, 64, 128]


@pytest.mark.parametrize("op", ["active_query_attention", "active_row_attention", "attention_mass"])
def test_a_plan_with_a_bias_needs_binaries_of_its_own_and_covers_masks_beside_it(op):
    def signatures(**options: bool) -> set[object]:
        plan = AttentionPlan(4, 64, 64, active=(3,), ops=(op,), **options)
        with recording(ARCHITECTURES[0]) as launches:
            for call in plan.calls(op):
                call(torch.device("meta"))
        return {launch.signature for launch in launches}

    biased = signatures(biased=True)
    assert biased == signatures(biased=True, padded=True)
    assert not biased <= signatures() | signatures(padded=True)
