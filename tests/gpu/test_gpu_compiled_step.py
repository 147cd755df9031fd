"""Whole steps compiled and captured in CUDA graphs, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bench.llm_step import Shape, build_denoiser
from boe import BoE, CompiledDenoiser, TokensPerStep, generate
from boe.canvas import Canvas
from boe.denoisers import Denoiser, GradientRequest
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import EntropyGradient, required_keep

pytestmark = [pytest.mark.device_only, pytest.mark.usefixtures("fresh_compiler")]

LENGTH = 160
SIZES = (5, 16, 40, 64, 100)


@pytest.fixture(params=["llada-8b", "dream-7b"])
def plain(request: pytest.FixtureRequest, device: torch.device) -> Iterator[AttentionDenoiser]:
    """A model of the published build at a sixteenth of its width, in bfloat16."""
    yield build_denoiser(Shape(request.param, 16), device)
    build_denoiser.cache_clear()


def canvas_of(denoiser: Denoiser, masks: int, batch: int = 2) -> Canvas:
    generator = torch.Generator().manual_seed(masks)
    mask_id = denoiser.facts.mask_id
    ids = torch.randint(mask_id, (batch, LENGTH), generator=generator)
    ids[:, LENGTH - masks :] = mask_id
    return Canvas.of(ids.to(denoiser.device))


def gradient(denoiser: Denoiser, masks: int) -> EntropyGradient:
    canvas = canvas_of(denoiser, masks)
    positions = torch.arange(LENGTH - masks, LENGTH, device=denoiser.device).expand(2, -1)
    active = torch.arange(LENGTH - masks - 1, LENGTH, device=denoiser.device).expand(2, -1)
    prediction = denoiser.predict(canvas, positions, required_keep("replay", False))
    cut = max(1, masks // 4)
    request = GradientRequest(positions[:, :cut], positions[:, cut:], active, alpha=0.5)
    return denoiser.entropy_gradient(prediction, request)


def relative_error(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("cuda_graphs", [False, True], ids=["compiled", "captured"])
def test_a_compiled_step_has_the_same_gradient_for_every_size(
    plain: AttentionDenoiser, cuda_graphs: bool
) -> None:
    compiled = CompiledDenoiser(plain, cuda_graphs=cuda_graphs)  # type: ignore[arg-type]
    for masks in SIZES:
        # Twice: the first call of a size records, the second replays.
        for _ in range(3):
            mine = gradient(compiled, masks).gradient.clone()
        # Fused code rounds to bfloat16 in other places; a wrong gradient is off by its length.
        assert relative_error(mine, gradient(plain, masks).gradient) < 0.1
        assert torch.equal(gradient(compiled, masks).gradient, mine)


def test_captured_steps_of_known_sizes_compile_nothing(plain: AttentionDenoiser) -> None:
    compiled = CompiledDenoiser(plain, cuda_graphs=True)  # type: ignore[arg-type]
    gradient(compiled, SIZES[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for masks in SIZES:
            gradient(compiled, masks)


def test_a_captured_decode_fills_every_mask_and_repeats_itself(plain: AttentionDenoiser) -> None:
    compiled = CompiledDenoiser(plain, cuda_graphs=True)  # type: ignore[arg-type]
    canvas = canvas_of(plain, 24)

    def sequences() -> list[Tensor]:
        sampler = BoE(tolerance=None, rho=0.5)
        return generate(compiled, canvas, sampler, budget=TokensPerStep(4)).sequences

    first, again = sequences(), sequences()
    assert all(map(torch.equal, first, again))
    assert all(plain.facts.mask_id not in ids.tolist() for ids in first)
