"""ActiveQueryAttention, active-row attention and the attention mass on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from bench import attention
from bench.attention_providers import TIMED
from bench.gathered_attention import gathered_aten
from bench.gpu.replay import merged
from boe_kernels import active_row_attention, attention_mass

Compete = Callable[..., None]

PROVIDERS = {**TIMED, "gathered_aten": gathered_aten}
CPU = torch.device("cpu")


@pytest.mark.parametrize("provider", ["ours", "two_call", "partition", "gathered_aten"])
@pytest.mark.parametrize("mode", ["backward", "forward+backward"])
@pytest.mark.parametrize("active", [32, 128])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=["8 heads", "8 heads on 2"])
def bench_active_query_attention(
    heads: tuple[int, int], active: int, mode: str, provider: str, toy: bool, compete: Compete
) -> None:
    length, active = (48, active // 16) if toy else (512, active)
    case = attention.Case(torch.float32, 64, length, active, *heads)
    inputs = case.inputs(CPU)

    def both(name: str) -> object:
        return attention.gradients(PROVIDERS[name](inputs), inputs, inputs.dout)

    def backward(name: str) -> Callable[[], object]:
        out = PROVIDERS[name](inputs)
        return partial(attention.gradients, out, inputs, inputs.dout, keep=True)

    names = {provider, "ours"}
    calls: dict[str, Callable[[], object]] = {
        name: backward(name) if mode == "backward" else partial(both, name) for name in names
    }
    compete("active_query_attention", mode, case.config, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "merged"])
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("active", [32, 128])
def bench_active_row_attention(
    active: int, mode: str, provider: str, toy: bool, compete: Compete
) -> None:
    heads, width, length = (8, 2), 64, 48 if toy else 512
    active = active // 16 if toy else active
    random = torch.Generator().manual_seed(0)

    def draw(count: int, rows: int) -> torch.Tensor:
        return torch.randn(1, count, rows, width, generator=random)

    live = tuple(draw(count, active).requires_grad_() for count in (heads[0], heads[1], heads[1]))
    frozen = (draw(heads[1], length), draw(heads[1], length))
    rows = torch.randperm(length, generator=random)[:active]
    dout = draw(heads[0], active)
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "ours": active_row_attention,
        "merged": lambda *inputs: merged(*inputs)[0],
    }

    def run(name: str) -> object:
        if mode == "forward":
            with torch.no_grad():
                return functions[name](*live, *frozen, rows)
        return torch.autograd.grad(functions[name](*live, *frozen, rows), live, dout)

    shape = {"H": heads[0], "Hkv": heads[1], "d": width, "L": length, "A": active}
    calls = {name: partial(run, name) for name in functions}
    compete("active_row_attention", mode, shape, calls, provider)


@pytest.mark.parametrize("provider", ["ours", "softmax", "reference"])
@pytest.mark.parametrize("rows", [16, 128])
def bench_attention_mass(rows: int, provider: str, toy: bool, compete: Compete) -> None:
    heads, width, length = (8, 2), 64, 48 if toy else 512
    rows = rows // 16 if toy else rows
    random = torch.Generator().manual_seed(0)
    q_rows = torch.randn(1, heads[0], rows, width, generator=random)
    k = torch.randn(1, heads[1], length, width, generator=random)
    of_heads = k.repeat_interleave(heads[0] // heads[1], dim=1).transpose(-2, -1)
    scale = width**-0.5
    lse = (q_rows @ of_heads * scale).logsumexp(dim=-1)

    def softmax() -> torch.Tensor:
        # Without the log-sum-exps of a forward: scores, their softmax, and its sum.
        keys = k.repeat_interleave(heads[0] // heads[1], dim=1).transpose(-2, -1)
        return (q_rows @ keys * scale).softmax(dim=-1).sum(dim=(1, 2))

    calls: dict[str, Callable[[], object]] = {
        "ours": partial(attention_mass, q_rows, k, lse),
        "reference": partial(attention_mass, q_rows, k, lse, backend="reference"),
        "softmax": softmax,
    }
    shape = {"H": heads[0], "Hkv": heads[1], "d": width, "L": length, "S": rows}
    compete("attention_mass", "forward", shape, calls, provider)
