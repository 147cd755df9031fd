"""Training: masks, loss, schedule, and going on after an interruption."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from boe.tasks.text.model import ModelShape, build_model
from boe.training import (
    STATE_FILE,
    TrainConfig,
    masked_diffusion_loss,
    stratified_mask,
    train,
)

MASK = 7


class TinyNet(nn.Module):
    """Predicts each token from itself and the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(8, 12)
            self.out = nn.Linear(12, 8)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        return SimpleNamespace(logits=self.out((hidden + hidden.mean(1, keepdim=True)).tanh()))


CONFIG = TrainConfig(steps=12, batch_size=4, warmup_steps=2, precision="fp32", save_every=3)


def next_batch(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 7, (4, 5), generator=generator)


def weights_after(folder: Path, config: TrainConfig = CONFIG, stop_at: int | None = None) -> dict:
    model = TinyNet()

    def on_step(done: int, loss: float) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    train(model, next_batch, MASK, config, folder, on_step)
    return model.state_dict()


# --- masks and loss -------------------------------------------------------------------


def test_every_sample_has_a_mask_and_the_rates_are_spread_over_the_unit_interval() -> None:
    mask = stratified_mask((400, 50), torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool
    assert bool(mask.any(dim=1).all())
    rate = mask.double().mean(dim=1)
    expected = (torch.arange(400) + 0.5) / 400
    assert float((rate - expected).abs().mean()) < 0.06  # binomial noise alone makes 0.044
    assert bool((rate[:20] < 0.3).all())
    assert bool((rate[-20:] > 0.7).all())


def test_mask_rates_stay_between_given_bounds() -> None:
    mask = stratified_mask((50, 4000), torch.Generator().manual_seed(0), rates=(0.4, 0.9))
    rate = mask.double().mean(dim=1)
    noise = 5 * 0.5 / 4000**0.5
    assert float(rate.min()) == pytest.approx(0.4, abs=noise + 0.5 / 50)
    assert float(rate.max()) == pytest.approx(0.9, abs=noise + 0.5 / 50)


def test_a_sample_that_would_have_no_mask_gets_one() -> None:
    for seed in range(20):
        mask = stratified_mask((6, 1), torch.Generator().manual_seed(seed))
        assert mask.all()


def test_masks_stay_where_they_are_allowed_and_no_sample_is_without() -> None:
    allowed = torch.tensor([False, True, True, False])
    for seed in range(5):
        mask = stratified_mask((40, 4), torch.Generator().manual_seed(seed), allowed)
        assert bool(mask.any(dim=1).all())
        assert torch.equal(mask.any(dim=0), allowed)


def test_masks_that_allow_nothing_are_refused(tmp_path: Path) -> None:
    nowhere = torch.zeros(5, dtype=torch.bool)
    with pytest.raises(ValueError, match="maskable must allow at least one position"):
        train(TinyNet(), next_batch, MASK, CONFIG, tmp_path, maskable=nowhere)


def test_texts_that_do_not_divide_the_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts must divide the length \d+, got 7"):
        train(TinyNet(), next_batch, MASK, CONFIG, tmp_path, texts=7)


def test_only_what_is_maskable_is_ever_masked(tmp_path: Path) -> None:
    class Watching(TinyNet):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            seen.append((input_ids == MASK).any(dim=0))
            return super().forward(input_ids)

    seen: list[Tensor] = []
    answer = torch.tensor([False, False, True, True, True])
    train(Watching(), next_batch, MASK, CONFIG, tmp_path, maskable=answer)
    assert torch.equal(torch.stack(seen).any(dim=0), answer)


def test_the_loss_is_the_mean_over_samples_of_the_mean_over_their_masks() -> None:
    model = TinyNet()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, False, False], [True, True, False]])
    logp = model(torch.tensor([[MASK, 2, 3], [MASK, MASK, 6]])).logits.log_softmax(-1)
    first = -logp[0, 0, 1]
    second = -(logp[1, 0, 4] + logp[1, 1, 5]) / 2
    loss = masked_diffusion_loss(model, ids, mask, MASK)
    torch.testing.assert_close(loss, (first + second) / 2)


# --- rows behind the last attention ---------------------------------------------------


def loss_and_gradients(
    dtype: torch.dtype, *, rows_only: bool, texts: int = 1, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """The loss of one batch and the gradients of all parameters, in a row."""
    model = build_model(ModelShape(layers=2, width=32), 14, [list(range(14))], 0).to(dtype)
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 10, (6, 14), generator=generator)
    mask = stratified_mask((6 * texts, 14 // texts), generator).view_as(ids)
    behind = model.base_model.encoder.layer[-1].attention.output if rows_only else None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = masked_diffusion_loss(model, ids, mask, MASK, texts, behind)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_running_masked_rows_only_changes_loss_and_gradients_by_no_more_than_rounding(
    texts: int, bf16: bool
) -> None:
    truth = loss_and_gradients(torch.float64, rows_only=False, texts=texts)
    plain = loss_and_gradients(torch.float32, rows_only=False, texts=texts, bf16=bf16)
    ours = loss_and_gradients(torch.float32, rows_only=True, texts=texts, bf16=bf16)
    # Losses are float32 everywhere, and rounded in one more place.
    torch.testing.assert_close(
        ours[0], plain[0], rtol=0, atol=float(4 * (plain[0] - truth[0]).abs() + 1e-6)
    )
    error, plain_error = ((found[1].double() - truth[1]).norm() for found in (ours, plain))
    assert 0 < error < 2 * plain_error


def test_only_masked_rows_reach_what_lies_behind_the_last_attention() -> None:
    model = build_model(ModelShape(layers=2, width=32), 14, [list(range(14))], 0)
    seen: list[torch.Size] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    mask = torch.arange(3 * 14).view(3, 14) % 3 == 0
    behind = model.base_model.encoder.layer[-1].attention.output
    masked_diffusion_loss(model, torch.full((3, 14), 4), mask, MASK, 1, behind)
    assert seen == [(1, 14, 32)]
    assert model(input_ids=torch.full((3, 14), 4)).logits.shape[:2] == (3, 14), "as before"


# --- schedule and configuration -------------------------------------------------------


def test_the_rate_warms_up_linearly_and_falls_to_zero_as_half_a_cosine() -> None:
    config = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    assert config.rate_at(0) == pytest.approx(0.1)
    assert config.rate_at(4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert config.rate_at(50) == pytest.approx(0.5)
    assert config.rate_at(100) == pytest.approx(0.0)
    assert TrainConfig(steps=10, learning_rate=1.0, warmup_steps=0).rate_at(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"precision": "fp8"}, "precision must be 'bf16' or 'fp32', got 'fp8'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


# --- interruption ---------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 3, 4, 8, 12])
def test_an_interrupted_run_ends_with_bitwise_the_weights_of_an_undisturbed_one(
    tmp_path: Path, stop_at: int
) -> None:
    expected = weights_after(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        weights_after(tmp_path / "cut", stop_at=stop_at)
    resumed = weights_after(tmp_path / "cut")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_run_in_bf16_that_is_interrupted_ends_with_the_same_weights_too(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="bf16")
    expected = weights_after(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        weights_after(tmp_path / "cut", config, stop_at=8)
    resumed = weights_after(tmp_path / "cut", config)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_an_interrupted_run_goes_on_from_its_last_save_not_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        weights_after(tmp_path, stop_at=8)
    seen: list[int] = []
    train(TinyNet(), next_batch, MASK, CONFIG, tmp_path, lambda done, loss: seen.append(done))
    assert seen == [7, 8, 9, 10, 11, 12]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = weights_after(tmp_path)
    again = weights_after(tmp_path, stop_at=1)  # would raise if a step ran
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_another_configuration_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    weights_after(tmp_path)
    with pytest.raises(ValueError, match="belongs to a run with another learning_rate, seed;"):
        weights_after(tmp_path, replace(CONFIG, learning_rate=0.5, seed=3))


def test_no_partial_state_is_left_behind_and_the_model_ends_in_evaluation_mode(
    tmp_path: Path,
) -> None:
    model = TinyNet()
    train(model, next_batch, MASK, CONFIG, tmp_path / "deep" / "folder")
    assert [p.name for p in (tmp_path / "deep" / "folder").iterdir()] == [STATE_FILE]
    assert not model.training


def test_the_seed_fixes_the_run(tmp_path: Path) -> None:
    first, again = weights_after(tmp_path / "a"), weights_after(tmp_path / "b")
    other = weights_after(tmp_path / "c", replace(CONFIG, seed=1))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(first["out.weight"], other["out.weight"])
