"""What the commands refuse before any work begins. Needs no datatrove."""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest
from prompt_files import write_prompts
from typer.testing import CliRunner

from boe.cli.app import app
from boe.cli.evaluating import run_plans
from boe.scaling.job import ModelSource


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt, or --input with --output"),
        (["--prompt", "x", "--input", "p.jsonl"], "give --prompt, or --input with --output"),
        (["--input", "p.jsonl"], "--input needs --output"),
    ],
)
def test_one_prompt_or_a_file_of_them_with_an_output(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["generate", "--model", "m", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_without_datatrove_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec

    def absent(name: str, *rest: Any) -> Any:
        return None if name == "datatrove" else find(name, *rest)

    monkeypatch.setattr(util, "find_spec", absent)
    monkeypatch.delitem(sys.modules, "boe.scaling.engine", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[scaling\]'"):
        import_module("boe.scaling.engine")


def test_plans_of_another_kind_are_refused_before_any_is_run(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('task = "sudoku"\n[[group]]\nsamplers = ["confidence"]\n')
    (tmp_path / "b.toml").write_text('kind = "fidelity"\ntask = "sudoku"\n')
    with pytest.raises(ValueError, match=r"b\.toml: a plan of kind fidelity cannot be run in sh"):
        run_plans([tmp_path / "a.toml", tmp_path / "b.toml"], None, lambda *given: None)  # type: ignore[arg-type,return-value]


def test_a_device_is_a_kind_and_not_one_gpu() -> None:
    with pytest.raises(ValueError, match="each replica is given its own, got 'cuda:1'"):
        ModelSource("m", device="cuda:1")


def test_an_option_that_does_not_fit_the_model_leaves_the_folder_to_the_right_one(
    tmp_path: Path, tiny_bert: Path
) -> None:
    prompts, output = write_prompts(tmp_path / "p.jsonl", 2), tmp_path / "out"
    command = ["generate", "--model", tiny_bert, "--input", prompts, "--output", output]
    command += ["--sampler", "confidence"]

    def generate(*more: str) -> Any:
        return CliRunner().invoke(app, [*map(str, command), *more])

    wrong = generate("--suppress", "nosuchtoken")
    assert isinstance(wrong.exception, RuntimeError)
    assert "nosuchtoken" in str(wrong.exception)
    assert str(wrong.exception).endswith("Shards 0 are unfinished; no prompt was tried")
    assert generate("--seed", "3").exit_code == 0
    other = generate("--seed", "4")
    assert "holds another job: options.seed was 3, now 4" in str(other.exception)
    assert len((output / "answers.jsonl").read_text().splitlines()) == 2
