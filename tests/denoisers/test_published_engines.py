"""The three gradient engines on the published models, against hand-written networks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from published_checkpoints import MASK, MODELS, SHIFT, WORDS, Published, load_published
from torch import Tensor

from boe import TokensPerStep, generate
from boe.canvas import Canvas
from boe.denoisers import ENGINES, EntropyGradient, GradientRequest, UnsupportedModel
from boe.denoisers.attention_modes import Plain
from boe.denoisers.base import required_keep
from boe.denoisers.noise import NoiseRange
from boe_kernels import pad_rows

TIMED = "sedd"
UNTIMED = tuple(name for name in MODELS if name != TIMED)
MASKS = ([2, 5, 7, 8, 11, 15, 20], [0, 1, 4, 9])


def _words(length: int, masks: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (length,), generator=generator)
    ids[masks] = MASK
    return ids


CANVAS = Canvas.of([_words(21, MASKS[0], 1), _words(13, MASKS[1], 2)])
POSITIONS = torch.tensor([[2, 5, 7, 8, 11, 15, 20], [0, 1, 4, 9, -1, -1, -1]])
CANDIDATES = torch.tensor([[2, 8], [4, -1]])
PROBES = torch.tensor([[5, 7, 11, 15, 20], [0, 1, 9, -1, -1]])
EVERY_ROW = pad_rows(CANVAS.valid)
REVEALED = torch.tensor([2, 1])


@cache
def published(name: str) -> Published:
    with TemporaryDirectory() as folder:
        return load_published(name, Path(folder))


def active_rows(name: str) -> Tensor:
    """Candidates, the rows that predict the probes, and an observed row each."""
    shift = SHIFT.get(name, 0)
    members = torch.zeros(2, 21, dtype=torch.bool)
    for row in range(2):
        members[row, CANDIDATES[row][CANDIDATES[row] >= 0]] = True
        probes = PROBES[row][PROBES[row] >= 0]
        members[row, (probes + shift).clamp_min(0)] = True
        members[row, 3] = True
    return pad_rows(members)


def sigma_after(revealed: Tensor) -> Tensor:
    masked = torch.tensor([7, 4]) - revealed
    return NoiseRange.log_linear().sigma_at(masked, torch.tensor([21, 13]))


def entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(dim=-1)
    return -(logp.exp() * logp.clamp_min(-1e30)).sum(dim=-1)


def reference(
    name: str, active: Tensor | None, alpha: float, sigma: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient, Δe, F) by autograd of the hand-written network, stopped as eq. 30 says.

    ``sigma`` is the noise of the surrogate; the current canvas has its own.
    """
    model, shift = published(name), SHIFT.get(name, 0)
    now = None if sigma is None else sigma_after(torch.tensor([0, 0]))
    embeds = model.embeds(CANVAS.ids)
    p = model.logits(embeds, CANVAS.valid, sigma=now).softmax(dim=-1)
    rows = (CANDIDATES.clamp_min(0) + shift).clamp_min(0)
    p = p.gather(1, rows.unsqueeze(-1).expand(-1, -1, p.shape[-1]))
    real = (CANDIDATES >= 0).unsqueeze(-1)
    delta = (p @ model.table - model.table[MASK]) * real
    leaf = embeds.clone()
    for row, slot in real.squeeze(-1).nonzero().tolist():
        leaf[row, CANDIDATES[row, slot]] += alpha * delta[row, slot]
    leaf.requires_grad_()
    keep = None
    if active is not None:
        keep = torch.zeros(2, 22, dtype=torch.bool)
        keep.scatter_(1, torch.where(active < 0, 21, active), True)
        keep = keep[:, :21]
    logits = model.logits(leaf, CANVAS.valid, keep, sigma)
    probing = (PROBES.clamp_min(0) + shift).clamp_min(0)
    counted = PROBES >= 0
    if keep is not None:
        counted &= keep.gather(1, probing)
    total = torch.where(counted, entropy(logits).gather(1, probing), 0.0).sum(dim=1)
    (grad,) = torch.autograd.grad(total.sum(), leaf)
    index = CANDIDATES.clamp_min(0).unsqueeze(-1).expand(-1, -1, grad.shape[-1])
    return grad.gather(1, index) * real, delta, total.detach()


def gradient(name: str, engine: str, active: Tensor, **options: object) -> EntropyGradient:
    denoiser = published(name).denoiser
    prediction = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False))
    return denoiser.entropy_gradient(
        prediction, GradientRequest(CANDIDATES, PROBES, active, engine=engine, **options)
    )


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    norm = float(theirs.norm())
    assert norm > 1e-3
    assert float((ours - theirs).norm()) <= 1e-9 * norm


def assert_is_reference(result: EntropyGradient, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    for ours, theirs in zip(
        (result.gradient, result.delta, result.surrogate), expected, strict=True
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", UNTIMED)
def test_at_alpha_0_every_engine_is_autograd_with_stopped_attention_outputs(
    name: str, engine: str
) -> None:
    active = active_rows(name)
    result = gradient(name, engine, active)
    assert result.forwards == 0
    assert_is_reference(result, reference(name, active, 0.0))
    untruncated, _, _ = reference(name, None, 0.0)
    assert float((result.gradient - untruncated).norm()) > 1e-3 * float(untruncated.norm())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", UNTIMED)
def test_with_every_row_active_replay_is_the_dense_gradient_at_any_alpha(
    name: str, alpha: float
) -> None:
    result = gradient(name, "replay", EVERY_ROW, alpha=alpha)
    assert result.forwards == 0
    assert_is_reference(result, reference(name, None, alpha))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_with_full_context_every_engine_is_a_second_forward_at_the_soft_writes(
    name: str, engine: str
) -> None:
    active = active_rows(name)
    sigma = sigma_after(REVEALED) if name == TIMED else None
    result = gradient(name, engine, active, alpha=0.5, context="full", revealed=REVEALED)
    assert result.forwards == 1
    assert_is_reference(result, reference(name, active, 0.5, sigma))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_a_canvas_alone_has_the_gradient_that_it_has_in_a_padded_batch(
    name: str, engine: str
) -> None:
    denoiser, active = published(name).denoiser, active_rows(name)
    options = {"alpha": 0.5, "context": "full"}
    together = gradient(name, engine, active, revealed=REVEALED, **options)
    for row in range(2):

        def own(rows: Tensor, row: int = row) -> Tensor:
            return rows[row : row + 1, : int((rows[row] >= 0).sum())]

        canvas = CANVAS.select([row])
        request = GradientRequest(
            own(CANDIDATES),
            own(PROBES),
            own(active),
            engine=engine,
            revealed=REVEALED[row : row + 1],
            **options,
        )
        prediction = denoiser.predict(canvas, own(POSITIONS), required_keep(engine, False))
        alone = denoiser.entropy_gradient(prediction, request)
        assert_close(together.gradient[row, : alone.gradient.shape[1]], alone.gradient[0])
        assert_close(together.surrogate[row], alone.surrogate[0])


# --- time-conditioned models ----------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_sedd_runs_its_surrogate_at_the_next_noise_level_and_counts_that_forward(
    engine: str,
) -> None:
    active = active_rows(TIMED)
    result = gradient(TIMED, engine, active, context="full", revealed=REVEALED)
    assert result.forwards == 1
    assert_is_reference(result, reference(TIMED, active, 0.0, sigma_after(REVEALED)))
    still, _, _ = reference(TIMED, active, 0.0, sigma_after(torch.tensor([0, 0])))
    assert float((result.gradient - still).norm()) > 1e-4 * float(still.norm())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_with_every_row_active_sedds_frozen_replay_is_the_full_one(alpha: float) -> None:
    result = gradient(TIMED, "replay", EVERY_ROW, alpha=alpha, revealed=REVEALED)
    assert result.forwards == 0, "all rows are run again anyway, at the next noise level"
    assert_is_reference(result, reference(TIMED, None, alpha, sigma_after(REVEALED)))


def test_without_a_word_one_position_is_revealed() -> None:
    one = gradient(TIMED, "replay", EVERY_ROW, revealed=torch.tensor([1, 1]))
    silent = gradient(TIMED, "replay", EVERY_ROW)
    assert torch.equal(one.gradient, silent.gradient)


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_a_graph_of_the_current_time_cannot_serve_as_sedds_surrogate(engine: str) -> None:
    with pytest.raises(ValueError, match=r"at alpha = 0\.0 .* is of another time"):
        gradient(TIMED, engine, active_rows(TIMED), revealed=REVEALED)


def test_a_time_conditioned_model_is_not_run_without_knowing_its_noise() -> None:
    denoiser = published(TIMED).denoiser
    with pytest.raises(ValueError, match="noise level"):
        denoiser.run(denoiser.embed(CANVAS.ids), Plain(), POSITIONS)


def test_the_sampler_tells_sedd_how_many_positions_it_reveals_and_is_charged_twice() -> None:
    canvas = CANVAS.select([0])
    result = generate(
        published(TIMED).denoiser,
        canvas,
        "boe:alpha=0,context=full,tolerance=none,rho=0.7",
        budget=TokensPerStep(2),
    )
    account = result.items[0].account
    # 7 masks in steps of 2, 2, 2, 1: the last one has nothing left to choose.
    assert account.steps == 4
    assert account.nfe_forward == 4 + account.n_backward
    assert account.n_backward >= 2


# --- shifted models -------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_dreams_probes_count_where_the_row_before_them_is_active(engine: str) -> None:
    own = torch.tensor([[2, 5, 8, 11], [0, 4, -1, -1]])
    before = torch.tensor([[2, 4, 8, 10], [3, 4, -1, -1]])
    probes = torch.tensor([[5, 11], [-1, -1]])
    denoiser = published("dream").denoiser
    prediction = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False))
    norms = []
    for active in (own, before):
        request = GradientRequest(CANDIDATES, probes, active, engine=engine)
        norms.append(float(denoiser.entropy_gradient(prediction, request).gradient.norm()))
        prediction = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False))
    assert norms[0] == 0.0
    assert norms[1] > 1e-3


def test_dream_refuses_to_subtract_a_candidates_own_entropy() -> None:
    with pytest.raises(UnsupportedModel, match="unshifted"):
        gradient("dream", "replay", EVERY_ROW, subtract_self=True)
