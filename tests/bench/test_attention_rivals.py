"""The rivals of attention through active rows, and the truth that they are compared with."""

from __future__ import annotations

import pytest
import torch

from bench import attention
from bench.attention_providers import TIMED
from bench.attention_truth import Truth
from bench.gathered_attention import call_by_schema, gathered_aten
from bench.session import WrongResultError

CPU = torch.device("cpu")
CASES = {
    "MHA": attention.Case(torch.float32, 16, 50, 7, 2, 2, 2),
    "GQA": attention.Case(torch.float32, 16, 50, 7, 4, 2, 2),
    "A=L": attention.Case(torch.float32, 16, 33, 33, 2, 1),
    "bfloat16": attention.Case(torch.bfloat16, 16, 50, 7, 4, 2),
}


def results(provider, inputs, dout=None):
    out = provider(inputs)
    dout = inputs.dout if dout is None else dout
    return (out, *torch.autograd.grad(out, inputs.leaves, dout))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["two_call", "partition", "gathered_aten", "ours"])
def test_every_rival_computes_what_ours_does(name, case):
    inputs = CASES[case].inputs(CPU)
    provider = {**TIMED, "gathered_aten": gathered_aten}[name]
    Truth(inputs).compare(name, *results(provider, inputs))


@pytest.mark.parametrize("case", CASES)
def test_dense_computes_it_when_inactive_rows_send_nothing(case):
    inputs = CASES[case].inputs(CPU)
    truth = Truth(inputs)
    truth.compare("dense", *results(TIMED["dense"], inputs, inputs.masked_dout))
    if case != "A=L":
        with pytest.raises(WrongResultError, match=r"dense: d[kv] is off"):
            truth.compare("dense", *results(TIMED["dense"], inputs))


@pytest.mark.parametrize("which", range(4), ids=["out", "dq", "dk", "dv"])
@pytest.mark.parametrize("damage", ["scaled", "nan"])
def test_a_wrong_result_is_refused(which, damage):
    inputs = CASES["GQA"].inputs(CPU)
    got = list(results(TIMED["ours"], inputs))
    got[which] = got[which] * (1.001 if damage == "scaled" else torch.nan)
    with pytest.raises(WrongResultError, match=("out", "dq", "dk", "dv")[which]):
        Truth(inputs).compare("rival", *got)


def test_a_gradient_at_an_inactive_row_is_refused():
    inputs = CASES["GQA"].inputs(CPU)
    out, dq, dk, dv = results(TIMED["ours"], inputs)
    dq = dq.clone()
    dq[1, 2, inputs.inactive[3]] = 1e-30
    with pytest.raises(WrongResultError, match="dq is not zero at inactive rows"):
        Truth(inputs).compare("rival", out, dq, dk, dv)


def test_rows_of_dq_alone_are_accepted():
    inputs = CASES["GQA"].inputs(CPU)
    out, dq, dk, dv = results(TIMED["ours"], inputs)
    Truth(inputs).compare("rival", out, dq.index_select(2, inputs.active), dk, dv)


def test_an_unknown_argument_of_a_private_operator_stops_the_rival():
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    q = torch.randn(1, 1, 4, 8)
    out, _ = call_by_schema(operator, {"query": q, "key": q, "value": q})
    assert out.shape == q.shape
    with pytest.raises(NotImplementedError, match="wants 'value'"):
        call_by_schema(operator, {"query": q, "key": q})
