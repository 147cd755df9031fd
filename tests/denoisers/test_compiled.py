"""Compiled denoisers: the same results, and one compilation for every size of a set."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_words, tiny_denoiser
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from boe import BoE, CompiledDenoiser, TokensPerStep, generate
from boe.canvas import Canvas
from boe.denoisers import Denoiser, GradientRequest, UnsupportedModel, frozen_products
from boe.denoisers.base import EntropyGradient, required_keep
from boe_kernels import observe_paths

pytestmark = pytest.mark.usefixtures("fresh_compiler")

LENGTH = 20


def gradient(denoiser: Denoiser, masks: int, batch: int = 2, **options: object) -> EntropyGradient:
    rows = [random_words(LENGTH, list(range(2, 2 + masks)), seed=k) for k in range(batch)]
    positions = torch.arange(2, 2 + masks).expand(batch, -1)
    keep = required_keep("replay", False)
    prediction = denoiser.predict(Canvas.of(torch.stack(rows)), positions, keep)
    cut = max(1, masks // 3)
    request = GradientRequest(positions[:, :cut], positions[:, cut:], positions, **options)
    return denoiser.entropy_gradient(prediction, request)


def test_one_compilation_serves_every_size_of_the_active_set() -> None:
    plain = tiny_denoiser("eurobert", 1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = CompiledDenoiser(plain, buckets=(2, 4, 8), backend=counter)
    for masks in (3, 5, 8, 11, 16):
        mine, theirs = gradient(compiled, masks, alpha=0.5), gradient(plain, masks, alpha=0.5)
        assert torch.allclose(mine.gradient, theirs.gradient, rtol=1e-4, atol=1e-9)
        assert torch.allclose(mine.surrogate, theirs.surrogate)
        assert torch.equal(mine.replayed_rows, theirs.replayed_rows)
    assert counter.frame_count == 2, "the forward, and the replay"


def test_a_replay_that_outgrows_pytorchs_products_is_the_same_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tiny_denoiser("eurobert", 1)
    width = plain.embedding_table.shape[1]
    # A plain replay changes its products between 4 and 8 rows in each of two sequences.
    monkeypatch.setattr(frozen_products, "_WORTHWHILE", 2 * 8 * width * width)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = CompiledDenoiser(plain, buckets=(4, 8), backend=counter)
    frozen = []
    for masks in (4, 8):
        with observe_paths() as seen:
            theirs = gradient(plain, masks)
        frozen.append("frozen_linear" in dict(seen))
        mine = gradient(compiled, masks)
        assert torch.allclose(mine.gradient, theirs.gradient, rtol=1e-4, atol=1e-9)
    assert frozen == [False, True]
    assert counter.frame_count == 2, "the forward, and the replay"


def test_a_decode_with_a_kv_cache_runs_its_forwards_uncompiled() -> None:
    plain = tiny_denoiser("bert", 1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = CompiledDenoiser(plain, buckets=(4, 8, 16), backend=counter)
    canvases = [random_words(18 + k, list(range(1, 13 + k)), seed=k) for k in range(2)]
    mine, theirs = (generate(d, canvases, "confidence+delayed") for d in (compiled, plain))
    assert [item.ids.tolist() for item in mine.items] == [
        item.ids.tolist() for item in theirs.items
    ]
    assert mine.total.flop_equiv == theirs.total.flop_equiv < theirs.total.nfe_forward
    assert counter.frame_count == 0


def test_a_whole_decode_is_the_same_and_compiles_no_more_than_its_variants() -> None:
    plain = tiny_denoiser("bert", 1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = CompiledDenoiser(plain, buckets=(4, 8, 16), backend=counter)
    canvases = [random_words(18 + k, list(range(1, 13 + k)), seed=k) for k in range(3)]
    sampler = BoE(tolerance=None, rho=0.6)

    def sequences(denoiser: Denoiser) -> list[Tensor]:
        return generate(denoiser, canvases, sampler, budget=TokensPerStep(2)).sequences

    for mine, theirs in zip(sequences(compiled), sequences(plain), strict=True):
        assert torch.equal(mine, theirs)
    # Forward and replay, each for batches with padding, and for the last row alone.
    variants = counter.frame_count
    assert variants <= 6
    sequences(compiled)
    assert counter.frame_count == variants


def test_a_compiled_replay_of_a_candidates_own_entropy_is_the_same() -> None:
    plain = tiny_denoiser("bert", 1)
    compiled = CompiledDenoiser(plain, backend="aot_eager")
    mine, theirs = (gradient(d, 6, subtract_self=True) for d in (compiled, plain))
    assert torch.allclose(mine.gradient, theirs.gradient, rtol=1e-9, atol=1e-12)


def test_what_is_not_compiled_still_works() -> None:
    compiled = CompiledDenoiser(tiny_denoiser("bert", 1), backend="aot_eager")
    canvas = random_words(12, [1, 3, 4, 6, 9])
    for sampler in ("boe:engine=late,context=full", "boe:active=bridges,tolerance=none,rho=0.5"):
        expected = generate(tiny_denoiser("bert", 1), canvas, sampler).sequences[0]
        assert torch.equal(generate(compiled, canvas, sampler).sequences[0], expected)


def test_the_model_stays_usable_without_compilation() -> None:
    plain = tiny_denoiser("bert", 1)
    before = gradient(plain, 5).gradient
    CompiledDenoiser(plain, backend="aot_eager")
    assert torch.equal(gradient(plain, 5).gradient, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": ()}, "buckets must be ascending numbers above 1"),
        ({"buckets": (1, 8)}, "buckets must be ascending numbers above 1"),
        ({"buckets": (8, 4)}, "buckets must be ascending numbers above 1"),
        ({"cuda_graphs": True}, "cuda_graphs needs a model on a GPU, got cpu"),
    ],
)
def test_what_cannot_be_compiled_so_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompiledDenoiser(tiny_denoiser("bert", 1), **options)


def test_other_denoisers_are_refused() -> None:
    from fake_denoiser import FakeDenoiser, table_of

    with pytest.raises(UnsupportedModel, match="only denoisers of transformers models"):
        CompiledDenoiser(FakeDenoiser(table_of([0.5])))  # type: ignore[arg-type]
