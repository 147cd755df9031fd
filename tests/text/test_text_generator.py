"""Texts in, texts out: prompts, chats, gaps, ends, stop texts, failures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from position_writer import ID, TEMPLATE, characters, writer
from tiny_checkpoints import save_tiny_bert
from transformers import AddedToken

import boe
from boe import Failure, Reply, TextGenerator, TextOptions
from boe.text.tokenization import Texts

OPTIONS = TextOptions(sampler="confidence", max_new_tokens=8)


def generator(*texts: tuple[str, list[str] | str], **options: object) -> TextGenerator:
    return TextGenerator(writer(characters(), *texts, **options), OPTIONS)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    folder: Path = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    return TextGenerator.from_pretrained(folder, OPTIONS)


# --- prompts and their batches --------------------------------------------------------


def test_one_prompt_gives_one_reply_and_several_a_list_in_their_order() -> None:
    two = generator(("Q", "abcdabcd"), (":", "ddddcccc"))
    reply = two.complete("Q")
    assert (reply.text, reply.finish, reply.number) == ("abcdabcd", "length", 0)
    assert [r.text for r in two.complete([":", "Q"])] == ["ddddcccc", "abcdabcd"]
    assert [r.number for r in two.complete([":", "Q"])] == [0, 1]
    assert [r.text for r in two.complete(["Q"])] == ["abcdabcd"]


@pytest.mark.parametrize("sampler", ["confidence", "boe:tolerance=none,rho=0.5"])
def test_prompts_of_different_lengths_get_their_own_results_in_a_batch(
    tiny_bert: TextGenerator, sampler: str
) -> None:
    prompts = ["the cat", "a big red dog ran to the house", "the", "on a mat"]
    options = {"sampler": sampler, "temperature": 1.0, "batch_size": 3}
    together = tiny_bert.complete(prompts, **options)
    for number, prompt in enumerate(prompts):
        alone = tiny_bert.complete([prompt], item_ids=[number], **options)[0]
        assert together[number].text == alone.text
        assert together[number].account.steps == alone.account.steps


def test_the_same_seed_writes_the_same_and_another_does_not(tiny_bert: TextGenerator) -> None:
    def text(seed: int) -> str:
        return tiny_bert.complete("the", temperature=2.0, seed=seed).text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_special_tokens_frame_the_prompt_and_its_masks(tiny_bert: TextGenerator) -> None:
    reply = tiny_bert.complete("the cat")
    ids = reply.item.ids.tolist()
    assert (ids[0], ids[-1], len(ids)) == (2, 3, 1 + 2 + 8 + 1)
    assert reply.ids == tuple(ids[3:-1])


def test_blocks_are_written_from_left_to_right() -> None:
    backwards = generator(("Q", "abcdabcd"), later=(0, 1, 2, 3))
    whole = backwards.complete("Q", trajectory=True)
    blocks = backwards.complete("Q", trajectory=True, block_length=4)
    assert int(whole.item.trajectory[0].revealed) == 5
    assert [int(r.revealed) for r in blocks.item.trajectory] == list(range(1, 9))


def test_guidance_and_steps_reach_the_loop(tiny_bert: TextGenerator) -> None:
    account = tiny_bert.complete("the", guidance=1.0, steps=4).account
    assert (account.steps, account.nfe_forward) == (4, 8)


# --- chats ----------------------------------------------------------------------------


def test_a_chat_goes_through_the_template() -> None:
    chatty = generator(("u:abc\na:", "dd<eos>"))
    reply = chatty.chat([{"role": "user", "content": "abc"}])
    assert (reply.text, reply.finish) == ("dd", "end")
    several = chatty.chat([[{"role": "user", "content": "abc"}]] * 2)
    assert [r.text for r in several] == ["dd", "dd"]


def test_a_chat_that_ends_with_the_assistant_is_continued_there() -> None:
    chatty = generator(("u:abc\na:d", "ee<eos>"))
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "d"}]
    assert chatty.chat(messages).text == "ee"


def test_without_a_template_or_messages_a_chat_is_refused() -> None:
    plain = TextGenerator(writer(characters(template=None), ("Q", "a")), OPTIONS)
    with pytest.raises(ValueError, match="the tokenizer has no chat template") as caught:
        plain.chat([{"role": "user", "content": "abc"}])
    assert caught.value.__notes__ == ["in prompt 0: 'abc'"]
    with pytest.raises(ValueError, match="a chat must hold at least one message"):
        generator().chat([[]])


def test_a_message_cannot_smuggle_in_masks() -> None:
    assert "{{ m.content }}" in TEMPLATE
    with pytest.raises(ValueError, match="holds the mask token"):
        generator().chat([{"role": "user", "content": "a[MASK]b"}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], "message 0 must have a content"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 1 must have a role"),
        ([{"role": "nobody", "content": "a"}], "the chat template refuses .*: no such role"),
    ],
)
def test_a_chat_that_cannot_be_written_out_is_named_and_the_others_kept(messages, message) -> None:
    refusing = TEMPLATE.replace(
        "%}", "%}{% if m.role == 'nobody' %}{{ raise_exception('no such role') }}{% endif %}", 1
    )
    chatty = TextGenerator(writer(characters(refusing), ("u:abc\na:", "dd<eos>")), OPTIONS)
    good = [{"role": "user", "content": "abc"}]
    with pytest.raises(ValueError, match=message) as caught:
        chatty.chat([good, messages])
    assert "in prompt 1: " in caught.value.__notes__[0]
    kept = chatty.chat([good, messages], failures="keep")
    assert kept[0].text == "dd"
    assert isinstance(kept[1], Failure)


# --- ends and stop texts --------------------------------------------------------------


def test_decoding_ends_early_once_everything_up_to_an_end_is_written() -> None:
    reply = generator(("Q", "ab<eos>ccccc")).complete("Q")
    assert (reply.text, reply.finish, reply.account.steps) == ("ab", "end", 3)
    assert reply.ids == (ID["a"], ID["b"], ID["<eos>"])
    late = generator(("Q", "ab<eos>ccccc"), later=(0,)).complete("Q")
    assert (late.text, late.account.steps) == ("ab", 8)


def test_the_end_of_a_turn_ends_too_and_other_ends_can_be_named() -> None:
    answer = "ab<|eot_id|>cd<eos>ab"
    assert generator(("Q", answer)).complete("Q").text == "ab"
    assert generator(("Q", answer)).complete("Q", eos=("<eos>",)).text == "abcd"
    assert generator(("Q", answer)).complete("Q", eos=("d",)).text == "abc"


def test_without_early_stop_the_whole_canvas_is_decoded_and_the_text_is_the_same() -> None:
    reply = generator(("Q", "ab<eos>ccccc")).complete("Q", early_stop=False)
    assert (reply.text, reply.finish, reply.account.steps) == ("ab", "end", 8)


def test_special_tokens_are_shown_where_asked_for() -> None:
    reply = generator(("Q", "ab<eos>ccccc")).complete("Q", skip_special_tokens=False)
    assert reply.text == "ab<eos>"


def test_special_tokens_are_left_out_by_their_ids_and_not_by_their_spelling() -> None:
    texts = generator().texts
    texts.tokenizer.add_tokens([AddedToken("<tool>", special=True), "<b>"])
    tool, bold = texts.tokenizer.convert_tokens_to_ids(["<tool>", "<b>"])
    ids = [ID["a"], tool, bold, ID["b"], ID["<eos>"]]
    assert texts.answer(ids, (), skip_special=True) == "a<b>b"
    assert texts.answer(ids, (), skip_special=False) == "a<tool><b>b<eos>"
    spelled = writer(characters(), ("Q", "a")).tokenizer
    spelled.add_tokens(["<eo", "s>"])
    parts = spelled.convert_tokens_to_ids(["<eo", "s>"])
    assert Texts(spelled, 0).answer([ID["a"], *parts], (), skip_special=True) == "a<eos>"


def test_a_stop_text_may_hold_special_tokens() -> None:
    texts = generator().texts
    ids = [ID["a"], ID["<|eot_id|>"], ID["b"], ID["<eos>"], ID["c"]]
    for until, answer in ((("<eos>",), "ab"), (("b<eos>",), "a"), (("b",), "a"), (("c",), "ab")):
        assert texts.answer(ids, until, skip_special=True) == answer
    assert texts.answer(ids, ("b<eos>",), skip_special=False) == "a<|eot_id|>"


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_stop_text_ends_an_answer_however_it_is_tokenised(early_stop: bool) -> None:
    answer = ["a", "b\n", "Q", ":a", "c", "c", "c", "c"]
    two = generator(("Q", answer), (":", "abcdabcd"))
    replies = two.complete(["Q", ":"], stop=("\nQ:", "zz"), early_stop=early_stop)
    assert [r.text for r in replies] == ["ab", "abcdabcd"]
    assert [r.finish for r in replies] == ["stop", "length"]
    assert replies[0].account.steps == (4 if early_stop else 8)
    assert replies[1].account.steps == 8


def test_delayed_tokens_come_last_and_suppressed_ones_never() -> None:
    model = generator(("Q", "<eos>abcdabc"))
    assert model.complete("Q").text == ""
    delayed = model.complete("Q", delay=("<eos>",), trajectory=True)
    assert int(delayed.item.trajectory[-1].revealed) == 1
    never = model.complete("Q", suppress=("<eos>", "<|eot_id|>"))
    assert (never.finish, never.text[1:]) == ("length", "abcdabc")


# --- gaps -----------------------------------------------------------------------------


def test_gaps_are_filled_and_the_rest_stays() -> None:
    model = generator(("Q", "a.bcd:ee"))
    reply = model.infill("Qa[MASK]b[MASK][MASK]:")
    assert reply.text == "Qa.bcd:"
    assert reply.gaps == (".", "cd")
    assert reply.ids == tuple(ID[c] for c in ".cd")
    pieces = model.infill(["Qa", 1, "b", 2, ":"])
    assert (pieces.text, pieces.gaps) == (reply.text, reply.gaps)
    assert [r.text for r in model.infill([["Qa", 1], "Q[MASK]"])] == ["Qa.", "Qa"]


def test_ends_are_not_written_into_gaps(tiny_bert: TextGenerator) -> None:
    model = generator(("Q", "<eos>bcd"))
    assert model.infill(["Q", 1, "b"]).gaps[0] not in ("", "<eos>")
    reply = tiny_bert.infill("the [MASK] sat on [MASK] [MASK]")
    assert reply.text.startswith("the ")
    assert len(reply.ids) == 3


def test_what_cannot_be_infilled_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has no gap"):
        generator().infill("Qa")
    with pytest.raises(ValueError, match="a gap must be at least 1 token long, got 0"):
        generator().infill(["Q", 0])
    with pytest.raises(ValueError, match="stop has no meaning where gaps are filled"):
        generator().infill("[MASK]", stop=("a",))
    with pytest.raises(ValueError, match="max_new_tokens has no meaning where gaps are filled"):
        generator().infill("[MASK]", max_new_tokens=3)


# --- failures -------------------------------------------------------------------------


def test_a_failure_names_its_prompt_and_the_others_go_on() -> None:
    model = generator(("Q", "abcdabcd"), (":", "ddddcccc"), max_length=12)
    prompts = ["Q", "Q[MASK]", ":", "abcde"]
    replies = model.complete(prompts, failures="keep")
    assert [type(r) for r in replies] == [Reply, Failure, Reply, Failure]
    assert [replies[k].text for k in (0, 2)] == ["abcdabcd", "ddddcccc"]
    assert str(replies[1]).startswith("prompt 1 ('Q[MASK]'): the text holds the mask token")
    assert "the canvas would have 13 positions" in str(replies[3])
    with pytest.raises(ValueError, match="the model takes 12") as caught:
        model.complete(["Q", "abcde"])
    assert caught.value.__notes__ == ["in prompt 1: 'abcde'"]


def test_a_prompt_whose_logits_are_useless_fails_alone() -> None:
    model = generator(("Q", "abcdabcd"), (":", "ddddcccc"))
    denoiser = model.model.denoiser
    plain = denoiser.predict

    def predict(canvas, positions, keep="nothing"):
        prediction = plain(canvas, positions, keep)
        prediction.logits[canvas.ids[:, 0] == ID[":"]] = torch.nan
        return prediction

    denoiser.predict = predict  # type: ignore[method-assign]
    replies = model.complete([":", "Q"], failures="keep")
    assert "are NaN" in str(replies[0])
    assert replies[1].text == "abcdabcd"


def test_a_batch_that_does_not_fit_is_split() -> None:
    model = generator(("Q", "abcdabcd"), (":", "ddddcccc"))
    denoiser, sizes = model.model.denoiser, []
    plain = denoiser.predict

    def predict(canvas, positions, keep="nothing"):
        sizes.append(canvas.batch)
        if canvas.batch > 2:
            raise torch.OutOfMemoryError("no memory")
        return plain(canvas, positions, keep)

    denoiser.predict = predict  # type: ignore[method-assign]
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}
    replies = model.complete(
        [":", "Q", ":"], on_text=lambda k, piece: pieces.update({k: pieces[k] + piece})
    )
    assert [r.text for r in replies] == ["ddddcccc", "abcdabcd", "ddddcccc"]
    assert list(pieces.values()) == [r.text for r in replies]
    assert sizes.count(3) == 1


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"stop": ("",)}, ValueError, "stop must hold texts, got an empty one"),
        ({"stop": "ab"}, TypeError, "stop must be a tuple of texts, got one text"),
        ({"failures": "skip"}, ValueError, "failures must be one of raise, keep"),
        ({"eos": ("ab",)}, ValueError, "eos must hold single tokens, 'ab' is 2"),
        ({"maximum": 3}, TypeError, "maximum"),
    ],
)
def test_bad_options_are_named(change: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        generator(("Q", "abcd")).complete("Q", **change)


def test_the_number_of_prompts_and_of_their_ids_must_agree() -> None:
    with pytest.raises(ValueError, match="at least one prompt, got none"):
        generator().complete([])
    with pytest.raises(ValueError, match="item_ids must number 1 prompts, got 2"):
        generator().complete("Q", item_ids=[1, 2])


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        ("complete", 3, "prompts must be a sequence of which each is a text, got 3"),
        ("complete", ["Q", 3], r"prompts\[1\] must be a text, got 3"),
        ("chat", 3, "chats must be a sequence of which each is a message or a chat, got 3"),
        ("chat", {"role": "user"}, "chats must be a sequence of which each is a message or a"),
        ("chat", "Q", "chats must be a sequence of which each is a message or a chat, got 'Q'"),
        ("chat", ["Q"], r"chats\[0\] must be a message or a chat, got 'Q'"),
        ("chat", [[], ["Q"]], r"chats\[1\]\[0\] must be a dictionary with role and .*, got 'Q'"),
        ("infill", 3, "gapped must be a sequence of which each is a text, a length .*, got 3"),
        ("infill", ["Q", None], r"gapped\[1\] must be a text, a length or a list.*, got None"),
        ("infill", [["Q", 2.5]], "pieces must be texts and lengths of gaps, got 2.5"),
        ("infill", ["Q", True], "pieces must be texts and lengths of gaps, got True"),
    ],
)
def test_what_is_no_prompt_is_named(call: str, given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        getattr(generator(("Q", "abcd")), call)(given)


def test_the_names_are_public() -> None:
    assert {"TextGenerator", "TextOptions", "Reply", "Failure", "Draft"} <= set(boe.__all__)


def test_a_kv_cache_reaches_the_loop(tiny_bert: TextGenerator) -> None:
    options = {"block_length": 4, "kv_cache": "prefix"}
    reused = tiny_bert.complete("the cat sat on a mat", **options).account
    assert reused.flop_equiv < reused.nfe_forward
    delayed = tiny_bert.complete("the cat sat on a mat", kv_cache="delayed").account
    refreshed = tiny_bert.complete(
        "the cat sat on a mat", kv_cache="delayed", cache_refresh=2
    ).account
    assert delayed.flop_equiv < refreshed.flop_equiv < refreshed.nfe_forward
    with pytest.raises(ValueError, match="kv_cache"):
        tiny_bert.complete("the", kv_cache="sometimes")
