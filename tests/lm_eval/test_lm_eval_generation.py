"""``generate_until``: stops and what is paid until then, batches, seeds, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_denoiser import FakeDenoiser
from tiny_checkpoints import save_tiny_bert
from toy_lm import ID, TOKENS, PositionDenoiser, generation, toy_lm

from boe.lm_eval.model import BoeLM

STORY = ["a", "b\n", "Q", ":a", "c", "<eos>", "d", "d"]


def test_decoding_ends_with_a_stop_text_that_spans_tokens() -> None:
    lm = toy_lm(PositionDenoiser(STORY))
    assert lm.generate_until([generation(until=["\nQ:"])]) == ["ab"]
    record = lm.costs.records[0]
    assert (record.nfe_forward, record.steps, record.tokens, record.stopped) == (4, 4, 4, True)


def test_a_gap_before_the_stop_text_has_to_be_filled_in_first() -> None:
    lm = toy_lm(PositionDenoiser(STORY, later=(0,)))
    assert lm.generate_until([generation(until=["\nQ:"])]) == ["ab"]
    # The first place comes last of all eight: the stop is not reached before.
    assert lm.costs.records[0].nfe_forward == 8


def test_an_end_of_text_ends_it_and_is_no_part_of_the_answer() -> None:
    lm = toy_lm(PositionDenoiser(STORY))
    assert lm.generate_until([generation()]) == ["ab\nQ:ac"]
    assert (lm.costs.records[0].nfe_forward, lm.costs.records[0].tokens) == (6, 6)


def test_special_tokens_are_kept_where_asked() -> None:
    lm = toy_lm(PositionDenoiser(STORY), skip_special_tokens=False)
    assert lm.generate_until([generation()]) == ["ab\nQ:ac<eos>"]


def test_without_early_stop_the_answer_is_the_same_but_all_is_paid_for() -> None:
    lm = toy_lm(PositionDenoiser(STORY), early_stop=False)
    assert lm.generate_until([generation(until=["\nQ:"])]) == ["ab"]
    assert (lm.costs.records[0].nfe_forward, lm.costs.records[0].stopped) == (8, False)


def test_tokens_can_be_named_as_ends() -> None:
    lm = toy_lm(PositionDenoiser(STORY), eos="Q")
    assert lm.generate_until([generation()]) == ["ab\n"]
    assert lm.costs.records[0].nfe_forward == 3


def test_tokens_can_be_suppressed_or_delayed() -> None:
    lm = toy_lm(PositionDenoiser(["<eos>", "a", "b"]), suppress="<eos>")
    assert "<eos>" not in lm.generate_until([generation(max_gen_toks=3)])[0]
    delayed = toy_lm(PositionDenoiser(["<eos>", "a", "b"]), delay="<eos>")
    delayed.generate_until([generation(max_gen_toks=3)])
    assert delayed.costs.records[0].nfe_forward == 3


def test_what_becomes_of_keys_and_values_reaches_the_loop() -> None:
    lm = toy_lm(PositionDenoiser(STORY), kv_cache="exact")
    with pytest.raises(ValueError, match="kv_cache='exact' needs block-causal attention"):
        lm.generate_until([generation()])


def test_steps_blocks_and_lengths_come_from_the_arguments() -> None:
    lm = toy_lm(
        PositionDenoiser(STORY), gen_length=6, steps=3, block_length=2, eos=[], sampler="margin"
    )
    lm.generate_until([generation(max_gen_toks=8)])
    record = lm.costs.records[0]
    assert (record.tokens, record.steps, record.prompt_tokens) == (6, 3, 1)


def test_boe_pays_for_backward_passes_too() -> None:
    lm = toy_lm(PositionDenoiser(STORY), sampler="boe:tolerance=none", eos=[])
    lm.generate_until([generation()])
    assert lm.costs.records[0].n_backward > 0


def test_a_request_gets_its_answer_whatever_else_is_asked() -> None:
    contexts = ["Q", "QQ", "Q:ab", "cd"]
    requests = [generation(context, until=["c"]) for context in contexts]
    alone = [toy_lm(PositionDenoiser(STORY)).generate_until([one])[0] for one in requests]
    lm = toy_lm(PositionDenoiser(STORY), batch_size=3)
    assert lm.generate_until(requests) == alone
    assert len(set(alone)) > 1
    backwards = toy_lm(PositionDenoiser(STORY), batch_size=2)
    assert backwards.generate_until(requests[::-1]) == alone[::-1]


def test_draws_depend_on_the_text_and_not_on_place_or_batch() -> None:
    flat = {"sharpness": 0.5}
    requests = [generation(context, doc=k) for k, context in enumerate(("Q", "ab", "c"))]
    options = {"temperature": 1.0, "eos": []}
    one = toy_lm(PositionDenoiser(STORY, **flat), batch_size=3, **options).generate_until(requests)
    assert one == [
        toy_lm(PositionDenoiser(STORY, **flat), **options).generate_until([request])[0]
        for request in requests
    ]
    assert len(set(one)) == 3
    other = toy_lm(PositionDenoiser(STORY, **flat), seed=1, **options).generate_until(requests)
    assert other != one


def test_repetitions_are_drawn_anew_and_copies_for_other_ranks_are_not() -> None:
    denoiser = PositionDenoiser(STORY, sharpness=0.5)
    lm = toy_lm(denoiser, eos=[])
    request = generation(repeats=3, do_sample=True, temperature=1.0)
    answers = lm.generate_until([request] * 5)
    assert len(set(answers[:3])) == 3
    assert answers[3:] == [answers[2]] * 2
    assert len(lm.costs.records) == 3
    assert [record.repeat for record in lm.costs.records] == [0, 1, 2]


def test_a_task_that_does_not_sample_leaves_the_temperature_to_the_sampler() -> None:
    lm = toy_lm(PositionDenoiser(STORY))
    greedy = lm.generate_until([generation(do_sample=False, temperature=0.7, top_p=0.5, top_k=3)])
    assert greedy == ["ab\nQ:ac"]


def test_a_task_that_samples_at_no_temperature_samples_at_1() -> None:
    asks = [
        generation(do_sample=True, **said) for said in ({}, {"temperature": 1.0}, {"top_p": 1.0})
    ]
    drawn, at_1, of_all = (
        toy_lm(PositionDenoiser(STORY, sharpness=0.5), eos=[]).generate_until([ask])[0]
        for ask in asks
    )
    greedy = toy_lm(PositionDenoiser(STORY, sharpness=0.5), eos=[]).generate_until([generation()])
    assert drawn == at_1 == of_all != greedy[0]


def test_prompts_stand_between_the_tokenizers_special_tokens(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path)
    lm = BoeLM(pretrained=str(folder), sampler="confidence", device="cpu")
    shown = []
    predict = lm.denoiser.predict

    def watched(canvas, *arguments, **options):  # type: ignore[no-untyped-def]
        shown.append(canvas.ids.tolist())
        return predict(canvas, *arguments, **options)

    lm.denoiser.predict = watched
    (answer,) = lm.generate_until([generation("the cat", max_gen_toks=3)])
    assert shown[0] == [[2, 5, 6, 4, 4, 4, 3]]
    assert len(answer.split()) == 3
    assert lm.costs.records[0].prompt_tokens == 4


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_decoded() -> None:
    denoiser = PositionDenoiser(STORY, max_length=10)
    lm = toy_lm(denoiser)
    with pytest.raises(ValueError, match=r"toy/7: a prompt of 3 tokens .* the 10 positions"):
        lm.generate_until([generation("Q"), generation("abc", doc=7)])
    assert denoiser.canvases == []


def test_the_beginning_of_prompts_is_cut_off_if_asked() -> None:
    denoiser = PositionDenoiser(STORY, start=2, max_length=10)
    lm = toy_lm(denoiser, truncate=True)
    assert lm.generate_until([generation("abcd")]) == ["ab\nQ:ac"]
    assert denoiser.canvases[0].ids[0, :2].tolist() == [ID["c"], ID["d"]]
    with pytest.raises(ValueError, match="give a smaller gen_length"):
        lm.generate_until([generation("a", max_gen_toks=11)])


def test_what_stands_before_every_text_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt in ("abcd", "Qabcd"):
        denoiser = PositionDenoiser(STORY, start=3, max_length=10)
        lm = toy_lm(denoiser, truncate=True)
        monkeypatch.setattr(lm.texts, "prefix", [ID["Q"]])
        lm.generate_until([generation(prompt, max_gen_toks=7)])
        assert denoiser.canvases[0].ids[0, :3].tolist() == [ID["Q"], ID["c"], ID["d"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "'num_beams' is not supported; supported are until"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "top_k is not supported"),
        ({"do_sample": "false"}, "do_sample must be true or false, got 'false'"),
        ({"max_gen_toks": -1}, "max_gen_toks must be at least 1, got -1"),
    ],
)
def test_what_a_task_asks_in_vain_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_lm(PositionDenoiser(STORY)).generate_until([generation(**options)])


def test_a_failure_of_particles_names_the_requests_of_its_batch() -> None:
    broken = FakeDenoiser(torch.full((64, len(TOKENS)), torch.nan))
    lm = toy_lm(broken, sampler="random+smc:particles=2;every=2", temperature=1.0)
    with pytest.raises(ValueError, match="NaN") as caught:
        lm.generate_until([generation(doc=5)])
    assert "0: generate_until request toy/5" in caught.value.__notes__[0]
