"""``model.generate(custom_generate=boe_generate)``."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from keeping_streamer import Streamer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import boe
from boe.denoisers import UnsupportedModel
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.integrations.transformers import boe_generate

MASK, EOS, PAD = 40, 38, 39


@cache
def _template() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=44,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        is_causal=False,
        use_cache=False,
        initializer_range=0.4,
        attn_implementation="sdpa",
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(config).double()


@pytest.fixture
def model() -> PreTrainedModel:
    return copy.deepcopy(_template())


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 30, (length,), generator=generator) for length in lengths]


def padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for k, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[k, where], mask[k, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def call(model: PreTrainedModel, inputs: dict[str, Tensor], **options: object):
    chosen = {"max_new_tokens": 6, "mask_token_id": MASK, "pad_token_id": PAD, **options}
    return model.generate(**inputs, custom_generate=boe_generate, **chosen)


@pytest.mark.parametrize("sampler", ["confidence", "boe:tolerance=none,rho=0.5"])
def test_it_writes_what_boe_generate_writes(model: PreTrainedModel, sampler: str) -> None:
    (prompt,) = prompts(5)
    ours = call(model, {"input_ids": prompt.unsqueeze(0)}, sampler=sampler, steps=3)
    denoiser = TransformersDenoiser(model, MASK)
    canvas = torch.cat((prompt, torch.full((6,), MASK)))
    expected = boe.generate(denoiser, canvas, sampler, budget=boe.FrontLoaded(3)).sequences[0]
    assert torch.equal(ours[0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_get_what_they_get_alone(model: PreTrainedModel, side: str) -> None:
    rows = prompts(3, 7, 5)
    together = call(model, padded(rows, side), sampler="margin")
    for k, row in enumerate(rows):
        alone = call(model, {"input_ids": row.unsqueeze(0)}, sampler="margin")
        assert torch.equal(together[k, 7:], alone[0, len(row) :])
        assert torch.equal(together[k, :7], padded(rows, side)["input_ids"][k])


def test_masks_in_the_prompt_are_filled_in_where_they_stand(model: PreTrainedModel) -> None:
    rows = prompts(4, 6)
    rows[0][1] = MASK
    together = call(model, padded(rows, "left"), sampler="confidence", max_new_tokens=2)
    assert int(together[0, 3]) != MASK
    kept = torch.tensor([0, 1, 2, 4, 5])
    assert torch.equal(together[0, kept], padded(rows, "left")["input_ids"][0, kept])


def test_an_end_stops_a_row_and_padding_follows(model: PreTrainedModel) -> None:
    (prompt,) = prompts(5)
    inputs = {"input_ids": prompt.expand(2, -1).clone()}
    inputs["input_ids"][1, 0] += 1
    plain = call(model, inputs, sampler="confidence", block_length=1)
    end = int(plain[0, 5 + 2])
    first = plain[0, 5:].tolist().index(end)
    ended = call(model, inputs, sampler="confidence", block_length=1, eos_token_id=end)
    assert ended[0, 5 : 5 + first + 1].tolist() == plain[0, 5 : 5 + first + 1].tolist()
    assert set(ended[0, 5 + first + 1 :].tolist()) <= {PAD}


def test_an_end_in_a_gap_of_the_prompt_ends_nothing(model: PreTrainedModel) -> None:
    (prompt,) = prompts(5)
    prompt[1] = MASK
    inputs = {"input_ids": prompt.unsqueeze(0)}
    plain = call(model, inputs, sampler="confidence", block_length=1)
    gap = int(plain[0, 1])
    ended = call(model, inputs, sampler="confidence", block_length=1, eos_token_id=gap)
    assert MASK not in ended[0, :5]
    first = [*plain[0, 5:].tolist(), gap].index(gap)
    assert ended[0, : 5 + first].tolist() == plain[0, : 5 + first].tolist()


def test_a_kv_cache_reaches_the_loop(model: PreTrainedModel) -> None:
    inputs = {"input_ids": prompts(5)[0].unsqueeze(0)}
    plain = call(model, inputs, sampler="confidence")
    refreshed = call(model, inputs, sampler="confidence", kv_cache="delayed", cache_refresh=1)
    assert torch.equal(refreshed, plain)
    with pytest.raises(ValueError, match="kv_cache='exact' needs block-causal attention"):
        call(model, inputs, kv_cache="exact")


def test_sampling_follows_the_generation_config_and_the_seed(model: PreTrainedModel) -> None:
    inputs = {"input_ids": prompts(4)[0].unsqueeze(0)}

    def texts(**options: object) -> list[int]:
        return call(model, inputs, sampler="confidence", **options)[0].tolist()

    config = GenerationConfig(do_sample=True, temperature=3.0, top_k=0, max_new_tokens=6)
    drawn = [texts(generation_config=config, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert texts(do_sample=False, seed=0) == texts(do_sample=False, seed=1)
    narrow = texts(do_sample=True, temperature=3.0, top_p=1e-9, top_k=0)
    assert narrow == texts(do_sample=False)
    several = call(model, inputs, do_sample=True, temperature=3.0, top_k=0, num_return_sequences=3)
    assert len({tuple(row) for row in several.tolist()}) > 1


def test_the_model_is_afterwards_as_it_was(model: PreTrainedModel) -> None:
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    call(model, {"input_ids": prompts(4)[0].unsqueeze(0)})
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not frozen.requires_grad


def test_a_ready_denoiser_can_be_given(model: PreTrainedModel) -> None:
    inputs = {"input_ids": prompts(4)[0].unsqueeze(0)}
    made = call(model, inputs)
    given = call(model, inputs, denoiser=TransformersDenoiser(model, MASK))
    assert torch.equal(made, given)


def test_a_dictionary_is_returned_where_asked_for(model: PreTrainedModel) -> None:
    inputs = {"input_ids": prompts(4)[0].unsqueeze(0)}
    output = call(model, inputs, return_dict_in_generate=True)
    assert torch.equal(output.sequences, call(model, inputs))


def test_a_streamer_gets_final_ids_and_drafts(model: PreTrainedModel) -> None:
    inputs = {"input_ids": prompts(4)[0].unsqueeze(0)}
    streamer = Streamer()
    result = call(model, inputs, sampler="confidence", draft_streamer=streamer)
    assert streamer.final == result[0].tolist()
    assert streamer.ended
    assert all(MASK in draft for draft in streamer.drafts)
    # What is final and the draft are the whole canvas, after every step but the last.
    assert {
        done + len(draft) for done, draft in zip(streamer.done, streamer.drafts, strict=True)
    } == {10}
    with pytest.raises(ValueError, match="draft_streamer takes one prompt, got 2"):
        call(model, {"input_ids": torch.stack(prompts(4, 4))}, draft_streamer=streamer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "top_k": 5}, "logits processor TopKLogitsWarper.*top_k=0"),
        ({"repetition_penalty": 1.3}, "logits processor RepetitionPenaltyLogitsProcessor"),
        ({"max_time": 3.0}, "stopping criterion MaxTimeCriteria"),
        ({"num_beams": 2}, "has no beams, got num_beams=2"),
        (
            {"output_scores": True, "return_dict_in_generate": True},
            "does not support output_scores=True",
        ),
        ({"mask_token_id": None}, "mask_token_id must be given"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(
    model: PreTrainedModel, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(model, {"input_ids": prompts(4)[0].unsqueeze(0)}, **options)


def test_stop_texts_end_a_row(model: PreTrainedModel) -> None:
    inner = Tokenizer(models.WordLevel({f"w{k}": k for k in range(44)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, mask_token=f"w{MASK}")
    inputs = {"input_ids": prompts(4)[0].unsqueeze(0)}
    whole = call(model, inputs, block_length=1)[0].tolist()
    stop = f"w{whole[5]} w{whole[6]}"
    cut = call(model, inputs, block_length=1, stop_texts=[stop], text_tokenizer=words)
    assert cut[0].tolist() == whole[:7]
    with pytest.raises(ValueError, match="stop_texts need text_tokenizer"):
        call(model, inputs, stop_texts=[stop])


def test_a_causal_model_is_refused(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.is_causal = True
    model.config.is_causal = True
    with pytest.raises(UnsupportedModel, match="is bidirectional"):
        call(model, {"input_ids": prompts(4)[0].unsqueeze(0)})
    assert model.config._attn_implementation == "sdpa"
