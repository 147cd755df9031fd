"""The Triton paths as PyTorch sees them: fakes, compilation, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_registration
import test_tis_scores
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from boe_kernels import (
    decide,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
    observe_paths,
    sample_tokens,
)
from boe_kernels.entropy import op as entropy
from boe_kernels.head_entropy import op as head_entropy
from boe_kernels.soft_embedding import op as soft_embedding
from boe_kernels.tis_scores import op as scores
from boe_kernels.token_sampling import op as token_sampling

pytestmark = pytest.mark.usefixtures("interpreted")

IDS = torch.tensor([1, 5])
ROWS = torch.tensor([[4, 0, 7], [2, -1, -1]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_arguments(top_k: int | None, path: str = "triton") -> tuple[Any, ...]:
    write = (ROWS, random(2, 3, 7), random(7, 4), random(4), 0.3)
    return random(2, 10, 4).requires_grad_(), *write, top_k, True, path


OPS: dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]] = {
    "entropy": (entropy.forward_op, lambda: (random(3, 7).requires_grad_(), IDS, "triton")),
    "entropy, strided": (
        entropy.forward_op,
        lambda: (random(7, 3).T.requires_grad_(), None, "triton"),
    ),
    "entropy backward": (
        entropy.backward_op,
        lambda: (random(3), random(3, 7), random(3), random(3), IDS, "triton"),
    ),
    "linear entropy": (
        head_entropy.forward_op,
        lambda: (random(3, 4).requires_grad_(), random(7, 4), random(7), IDS, 16, True, "triton"),
    ),
    "soft embedding": (soft_embedding.forward_op, lambda: soft_arguments(None)),
    "soft embedding, fused": (
        soft_embedding.forward_op,
        lambda: soft_arguments(None, "triton_fused"),
    ),
    "soft embedding, top k": (soft_embedding.forward_op, lambda: soft_arguments(3)),
    "tokens": (
        token_sampling.forward_op,
        lambda: (random(3, 7), torch.arange(3), 0.7, IDS, "triton"),
    ),
    "scores": (scores.forward_op, lambda: test_tis_scores.opcheck_arguments("triton")),
}
# These keep queries by gathering inside the kernels, never before.
OPS |= {
    case: argued
    for case, argued in test_registration.attention_cases("triton").items()
    if case.endswith(("shared, plain", "ragged, masked")) and "rows kept" not in case
}


@pytest.mark.parametrize("case", OPS)
def test_the_operator_passes_opcheck(case):
    op, arguments = OPS[case]
    torch.library.opcheck(op.op, arguments())


def test_another_number_of_rows_is_not_another_graph(fresh_compiler):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def entropy_and_draw(hidden: Tensor, weight: Tensor, seeds: Tensor) -> Tensor:
        logits = hidden @ weight.T
        stats = entropy_stats(logits, backend="triton")
        token = sample_tokens(logits, seeds, backend="triton").token
        of_head = linear_entropy(hidden, weight, backend="triton").entropy
        return stats.entropy.sum() + of_head.sum() + token.sum()

    weight, graphs = random(9, 4), []
    for rows in (2, 3, 5):
        hidden = random(rows, 4, seed=rows).requires_grad_()
        (gradient,) = torch.autograd.grad(
            entropy_and_draw(hidden, weight, torch.arange(rows)), hidden
        )
        expected = 2 * entropy_stats(hidden @ weight.T, backend="reference").entropy.sum()
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden)[0])
        graphs.append(counter.frame_count)
    # The first call may take PyTorch two attempts, because of the draw's temperature.
    assert graphs[0] == graphs[1] == graphs[2]


def test_the_gradient_reaches_untouched_rows_only():
    embeds, rows, *rest = soft_arguments(2)
    canvas = inject_soft_embeddings(
        embeds, rows, *rest[:4], top_k=2, is_logits=True, backend="triton"
    )
    (gradient,) = torch.autograd.grad(canvas.sum(), embeds)
    untouched = ~(rows.unsqueeze(-1) == torch.arange(10)).any(dim=1)
    assert torch.equal(gradient, untouched.unsqueeze(-1).float().expand_as(gradient))


def test_forward_and_backward_report_their_path():
    with observe_paths() as seen:
        logits = random(2, 7).requires_grad_()
        entropy_stats(logits, backend="triton").entropy.sum().backward()
        linear_entropy(random(2, 4), random(7, 4), backend="triton")
    assert seen == [
        ("entropy_stats", "triton"),
        ("entropy_stats_backward", "triton"),
        ("linear_entropy", "triton"),
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("entropy_stats", "triton"),
        ("linear_entropy", "triton"),
        ("inject_soft_embeddings", "triton"),
        ("inject_soft_embeddings", "triton_fused"),
        ("inject_soft_embeddings(top_k)", "triton"),
        ("sample_tokens", "triton"),
        ("tis_scores", "triton"),
    ],
)
def test_without_a_gpu_the_kernels_are_refused_unless_they_are_interpreted(name, path, monkeypatch):
    cpu = torch.device("cpu")
    assert decide(name, path, cpu, torch.float32).path == path
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        decide(name, path, cpu, torch.bfloat16)
    with pytest.raises(ValueError, match="take float32, bfloat16 and float16"):
        decide(name, path, cpu, torch.float64)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=f"cannot run .*{name.split('(')[0]}.*needs a GPU"):
        decide(name, path, cpu, torch.float32)
