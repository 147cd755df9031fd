"""``boe generate``: how its options reach the decoding loop."""

from __future__ import annotations

import json
from pathlib import Path

import published_checkpoints
import pytest
from tiny_checkpoints import SPECIAL, WORDS, save_tiny_bert
from transformers import AutoTokenizer
from typer.testing import CliRunner

from boe.cli import generating
from boe.cli.app import app
from boe.cli.generating import run_generate
from boe.denoisers import compiled
from boe.denoisers.compiled import CompiledDenoiser
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.prompting import DecodingOptions
from boe.text.tokenization import Texts

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
    assert given["stop"] == []
    assert given["stop_when"](0, [2, the, cat, red, the, cat, red]) == 6, "behind the prompt"


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


def test_an_end_of_text_ends_what_is_appended(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = generated(model, "--sampler", "confidence", "--block-length", 1)
    word = words(plain)[4]
    first = words(plain)[2:].index(word) + 2
    end = SPECIAL_AND_WORDS.index(word)
    monkeypatch.setattr(Texts, "end_ids", lambda self, named: (end,))
    content = generated(model, "--sampler", "confidence", "--block-length", 1)
    assert (content["end"], content["steps"]) == (1 + first + 1, first - 1)


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
        ("suppress", "the cat", "suppress 'the cat' must be one token, it is 2"),
        ("delay", "", "delay '' is no text to this tokenizer"),
        ("stop", "the zebra", "stop 'the zebra' holds what is no token of this tokenizer"),
        ("suppress", "zebra", "suppress 'zebra' holds what is no token of this tokenizer"),
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


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="stop must hold texts, got an empty one"):
        DecodingOptions(stop=("a", ""))


def test_keys_and_values_are_kept_only_by_the_name_of_a_cache(
    model: Path,
) -> None:
    fixed = ("--sampler", "confidence", "--block-length", 2)
    whole = generated(model, *fixed)
    frozen = generated(model, *fixed, "--kv-cache", "prefix")
    delayed = generated(model, *fixed, "--kv-cache", "delayed", "--cache-refresh", 3)
    assert [run["kv_cache"] for run in (whole, frozen, delayed)] == [None, "prefix", "delayed"]
    assert [run["cache_refresh"] for run in (whole, frozen, delayed)] == [None, None, 3]
    for cached in (frozen, delayed):
        assert cached["nfe_forward"] == whole["nfe_forward"]
        assert cached["flop_equiv"] < whole["flop_equiv"]
    with pytest.raises(ValueError, match="kv_cache must be one of none, exact, prefix, delayed"):
        DecodingOptions(kv_cache="cached")


# --- where prompts come from, and how models are loaded ---------------------------------


def test_a_prompt_can_come_from_standard_input(model: Path) -> None:
    fixed = ["generate", "--model", str(model), "--length", "4", "--json", "-"]
    typed = CliRunner().invoke(app, [*fixed, "--prompt", "-"], input="the cat\n")
    given = CliRunner().invoke(app, [*fixed, "--prompt", "the cat"])
    assert json.loads(typed.stdout)["ids"] == json.loads(given.stdout)["ids"]
    assert json.loads(typed.stdout)["prompt"] == "the cat"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_bert(tmp_path_factory.mktemp("chat") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "[CLS] {% for m in messages %}{{ m.content }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}big{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_prints_the_answer_alone_and_stores_the_whole_canvas(chatty: Path) -> None:
    fixed = ["generate", "--model", str(chatty), "--prompt", "the cat", "--length", "5", "--chat"]
    content = json.loads(CliRunner().invoke(app, [*fixed, "--json", "-"]).stdout)
    the, cat, big = (SPECIAL_AND_WORDS.index(word) for word in ("the", "cat", "big"))
    assert content["ids"][:5] == [2, the, cat, 3, big]
    assert len(content["ids"]) == 10
    assert len(content["text"].split()) == 5
    assert (content["chat"], content["steps"]) == (True, 5)
    printed = CliRunner().invoke(app, fixed).stdout
    assert printed.splitlines()[0].split() == content["text"].split()


def test_a_chat_without_a_template_or_a_length_is_refused(model: Path, chatty: Path) -> None:
    refused = CliRunner().invoke(
        app, ["generate", "--model", str(model), "--prompt", "the", "--length", "3", "--chat"]
    )
    assert "the tokenizer has no chat template" in str(refused.exception)
    short = CliRunner().invoke(
        app, ["generate", "--model", str(chatty), "--prompt", "the", "--chat"]
    )
    assert "--chat needs --length" in str(short.exception)


def test_a_checkpoint_without_tokenizer_takes_one_by_option(model: Path, tmp_path: Path) -> None:
    config = published_checkpoints.MDLM
    state = published_checkpoints.random_state(config)
    folder = published_checkpoints.write_checkpoint(tmp_path / "mdlm", config, state)
    fixed = ["generate", "--model", str(folder), "--prompt", "the cat", "--length", "3"]
    bare = CliRunner().invoke(app, fixed)
    assert "holds no tokenizer" in str(bare.exception)
    named = CliRunner().invoke(app, [*fixed, "--tokenizer", str(model), "--json", "-"])
    assert named.exit_code == 0, named.output
    assert len(json.loads(named.stdout)["ids"]) == 1 + 2 + 3 + 1


def test_options_of_loading_reach_the_loader(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict = {}

    def spy(source: str, **options: object) -> None:
        given.update(options)
        raise FileNotFoundError("seen enough")

    monkeypatch.setattr(generating, "load_model", spy)
    flags = ["--allow-pickle", "--trust-remote-code", "--mask-id", "4", "--tokenizer", "words"]
    CliRunner().invoke(app, ["generate", "--model", str(model), "--prompt", "the", *flags])
    assert {name: given[name] for name in ("mask_id", "tokenizer")} == {
        "mask_id": 4,
        "tokenizer": "words",
    }
    assert given["allow_pickle"] is given["trust_remote_code"] is True


def test_the_network_is_compiled_if_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Quick(CompiledDenoiser):
        def __init__(self, denoiser: TransformersDenoiser, *, cuda_graphs: bool) -> None:
            asked.append(cuda_graphs)
            super().__init__(denoiser, cuda_graphs=cuda_graphs, backend="eager")

    plain = generated(model)
    assert asked == []
    monkeypatch.setattr(compiled, "CompiledDenoiser", Quick)
    assert generated(model, "--compile", "network")["ids"] == plain["ids"]
    assert asked == [False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compile", "yes"], "compile must be one of none, network, graphs, got 'yes'"),
        (["--compile", "graphs"], "cuda_graphs needs a model on a GPU, got cpu"),
        (["--tensor-parallel", "2"], "tensor_parallel = 2 needs 2 processes, and there are 1"),
    ],
)
def test_what_the_model_cannot_be_made_is_refused(
    model: Path, arguments: list[str], message: str
) -> None:
    given = ["generate", "--model", str(model), "--prompt", "the cat", "--length", "4"]
    assert message in str(CliRunner().invoke(app, [*given, *arguments]).exception)


def test_a_compiled_model_is_not_shared_out(model: Path) -> None:
    given = ["generate", "--model", str(model), "--prompt", "the cat", "--length", "4"]
    result = CliRunner().invoke(app, [*given, "--compile", "network", "--tensor-parallel", "2"])
    assert result.exit_code == 2
