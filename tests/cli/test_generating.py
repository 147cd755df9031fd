"""``boe generate``: how its options reach the decoding loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoints import SPECIAL, WORDS, save_tiny_bert
from typer.testing import CliRunner

from boe.cli import generating
from boe.cli.app import app
from boe.cli.generating import DecodingOptions, run_generate

SPECIAL_AND_WORDS = (*SPECIAL, *WORDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("model") / "model")


def generated(model: Path, *arguments: object, length: int = 8) -> dict:
    fixed = ("--model", model, "--prompt", "the cat", "--length", length, "--json", "-")
    result = CliRunner().invoke(app, ["generate", *map(str, (*fixed, *arguments))])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def words(content: dict) -> list[str]:
    return content["text"].split()


def test_a_strategy_of_several_parts_decodes(model: Path) -> None:
    content = generated(model, "--sampler", "confidence+eb:gamma=9+tokens:temperature=0.5")
    assert len(words(content)) == 10
    assert content["steps"] < 8
    assert content["temperature"] is None


def test_suppressed_words_are_not_written(model: Path) -> None:
    plain = generated(model, "--sampler", "confidence")
    word = words(plain)[-1]
    assert word not in words(generated(model, "--sampler", "confidence", "--suppress", word))[2:]


def test_texts_reach_the_loop_as_ids(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict = {}
    original = generating.generate

    def spy(*arguments, **options):
        given.update(options)
        return original(*arguments, **options)

    monkeypatch.setattr(generating, "generate", spy)
    arguments = ["--delay", "red", "--delay", "[SEP]", "--suppress", "cat", "--stop", "the cat"]
    generated(model, "--sampler", "confidence", *arguments)
    red, the, cat = (SPECIAL_AND_WORDS.index(word) for word in ("red", "the", "cat"))
    assert given["delay"] == [red, 3]
    assert given["suppress"] == [cat]
    assert given["stop"] == [[the, cat]]


def test_a_stop_text_ends_the_sequence_and_the_text(model: Path) -> None:
    plain = generated(model, "--sampler", "confidence", "--block-length", 1)
    word = words(plain)[4]
    first = words(plain)[2:].index(word) + 2
    content = generated(
        model, "--sampler", "confidence", "--block-length", 1, "--stop", word, "--stop", "mat sat"
    )
    assert words(content) == words(plain)[: first + 1]
    assert content["steps"] == first - 1
    assert content["end"] == 1 + first + 1  # [CLS] comes first


def test_guidance_counts_two_forwards_a_step(model: Path) -> None:
    content = generated(model, "--sampler", "confidence", "--guidance", 1.5)
    assert content["nfe_forward"] == 2 * content["steps"] == 16


def test_the_nucleus_reaches_the_loop(model: Path) -> None:
    narrow = generated(model, "--sampler", "random", "--temperature", 5, "--top-p", 1e-6)
    greedy = generated(model, "--sampler", "random")
    assert words(narrow) == words(greedy)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("suppress", "the cat", "--suppress 'the cat' must be one token, it is 2"),
        ("delay", "", "--delay '' is no text to this tokenizer"),
        ("stop", "", "--stop '' is no text to this tokenizer"),
    ],
)
def test_texts_that_are_no_tokens_are_refused(
    model: Path, option: str, text: str, message: str
) -> None:
    plain = {
        "sampler": "confidence",
        "steps": None,
        "block_length": None,
        "temperature": None,
        "top_p": None,
        "guidance": 0.0,
        "stop": (),
        "suppress": (),
        "delay": (),
        "seed": 0,
    }
    options = DecodingOptions(**{**plain, option: (text,)})
    with pytest.raises(ValueError, match=message):
        run_generate(str(model), "the [MASK]", 0, options, "cpu", "auto", None)
