"""diffusers' block-refinement pipeline, steered by our strategies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import save_tiny_bert
from torch import Tensor

pytest.importorskip("diffusers")

import boe
from boe.denoisers.loading import LoadedModel
from boe.integrations.diffusers import BoEScheduler, DenoiserModel, llada2_pipeline

MASK = 4
STEERED = "boe:tolerance=none,rho=0.6"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return boe.load_model(save_tiny_bert(tmp_path_factory.mktemp("bert")), dtype=torch.float64)


def written(
    model: LoadedModel, prompts: Tensor, sampler: str, length: int = 8, steps: int = 2, **options
) -> Tensor:
    pipe = llada2_pipeline(model, sampler)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        input_ids=prompts,
        gen_length=length,
        block_length=4,
        num_inference_steps=steps,
        editing_threshold=None,
        eos_early_stop=False,
        temperature=0.0,
        output_type="seq",
        **options,
    ).sequences


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(5, 17, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("sampler", ["confidence", "margin", STEERED, "boe+eb:gamma=0.5"])
def test_a_pipeline_fills_every_mask(model: LoadedModel, sampler: str) -> None:
    sequences = written(model, torch.stack(prompts(8, 8)), sampler)
    assert sequences.shape == (2, 8)
    assert MASK not in sequences.tolist()


@pytest.mark.parametrize("sampler", ["confidence", STEERED, "overlap:gamma=5,floor=0.99"])
def test_of_one_block_it_writes_what_boe_generate_writes(model: LoadedModel, sampler: str) -> None:
    (prompt,) = prompts(8)
    ours = written(model, prompt.unsqueeze(0), sampler, length=4, steps=2)[0]
    canvas = torch.cat((prompt, torch.full((4,), MASK)))
    result = boe.generate(model.denoiser, canvas, sampler, budget=boe.TokensPerStep(2))
    assert torch.equal(ours, result.sequences[0][8:])


def test_padded_prompts_get_what_they_get_alone(model: LoadedModel) -> None:
    long, short = prompts(8, 5)
    ids = torch.stack((long, torch.cat((torch.zeros(3, dtype=torch.int64), short))))
    mask = (torch.arange(8) >= torch.tensor([[0], [3]])).long()
    together = written(model, ids, STEERED, attention_mask=mask)
    denoiser = DenoiserModel(model.denoiser, keep="keys_values")
    masked = torch.full((1, 4), MASK)
    padded = denoiser(torch.cat((ids[1:], masked), 1), torch.cat((mask[1:], masked > 0), 1)).logits
    bare = denoiser(torch.cat((short.unsqueeze(0), masked), 1)).logits
    assert torch.allclose(padded[:, -4:], bare[:, -4:])
    assert torch.equal(together[0], written(model, long.unsqueeze(0), STEERED)[0])


def test_a_text_that_does_not_fill_its_last_block_is_finished_too(model: LoadedModel) -> None:
    sequences = written(model, torch.stack(prompts(6)), STEERED, length=7)
    assert sequences.shape == (1, 7)
    assert MASK not in sequences.tolist()


def test_a_tokenizer_need_not_name_the_mask(tmp_path: Path) -> None:
    nameless = boe.load_model(save_tiny_bert(tmp_path, mask_token=False), mask_id=MASK)
    assert nameless.tokenizer.mask_token_id is None
    assert MASK not in written(nameless, torch.stack(prompts(8)), "confidence").tolist()


def test_steering_changes_the_order_of_commitments(model: LoadedModel) -> None:
    pipe = llada2_pipeline(model, STEERED)
    calls = []
    plain = model.denoiser.entropy_gradient

    def counted(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    model.denoiser.entropy_gradient = counted  # type: ignore[method-assign]
    try:
        pipe.set_progress_bar_config(disable=True)
        pipe(
            input_ids=torch.stack(prompts(8)),
            gen_length=8,
            block_length=8,
            num_inference_steps=8,
            editing_threshold=None,
            output_type="seq",
        )
    finally:
        del model.denoiser.entropy_gradient
    assert len(calls) >= 4


def test_a_scheduler_is_restored_from_its_configuration(tmp_path: Path) -> None:
    BoEScheduler(sampler=STEERED, block_length=16, seed=3).save_pretrained(tmp_path)
    again = BoEScheduler.from_pretrained(tmp_path)
    assert (again.config.sampler, again.config.block_length, again.config.seed) == (STEERED, 16, 3)
    assert again.strategy == boe.Strategy.of(boe.sampler_from(STEERED))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("p2", "must rank positions and take none back"),
        ("confidence+remdm-cap", "must rank positions and take none back"),
        ("confidence+smc:every=2", "has no particles"),
        ("confidence+delayed", "has no cache"),
        ("eb+deadline", "has no deadline"),
        ("confidence+backtrack", "has no backtrack"),
    ],
)
def test_strategies_that_a_scheduler_cannot_run_are_refused(sampler: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoEScheduler(sampler=sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"editing_threshold": 0.5}, "give the pipeline editing_threshold=None"),
        ({"top_k": 5}, "top_k is not supported, got 5"),
        ({"mask_token_id": 7}, "mask_token_id must be 4, got 7"),
    ],
)
def test_options_without_a_meaning_here_are_refused(
    model: LoadedModel, options: dict, message: str
) -> None:
    stand_in = DenoiserModel(model.denoiser)
    scheduler = BoEScheduler(sampler="confidence").bind(stand_in)
    scheduler.set_timesteps(2, block_length=4)
    sample = torch.full((1, 4), MASK)
    logits = stand_in(sample).logits
    with pytest.raises(ValueError, match=message):
        scheduler.step(logits, 0, sample, **{"mask_token_id": MASK, **options})


def test_logits_of_another_call_are_refused(model: LoadedModel) -> None:
    scheduler = BoEScheduler(sampler="confidence")
    sample = torch.full((1, 4), MASK)
    with pytest.raises(RuntimeError, match="bind the scheduler"):
        scheduler.step(torch.zeros(1, 4, 19), 0, sample, mask_token_id=MASK)
    stand_in = DenoiserModel(model.denoiser)
    scheduler.bind(stand_in)
    stand_in(torch.tensor([[5, 6, MASK, MASK]]))
    with pytest.raises(RuntimeError, match="not those of the bound model's last call"):
        scheduler.step(torch.zeros(1, 4, 19), 0, sample, mask_token_id=MASK)
