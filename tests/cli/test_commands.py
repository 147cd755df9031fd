"""The commands: what they print, write and exit with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import typer
from tiny_checkpoints import save_tiny_bert
from typer.testing import CliRunner, Result

import boe.cli
import boe_kernels
from boe.cli.app import app
from boe.cli.lists import split_numbers, split_samplers, split_values
from boe.cli.training import training_config
from boe.decoding import TokensPerStep
from boe.defaults import SAMPLER
from boe.samplers.specs import parts_by_kind
from boe.tasks.countdown.task import CountdownTask
from boe.tasks.sudoku.model import train_sudoku
from boe.tasks.sudoku.task import SudokuTask
from boe.tasks.text.model import ModelShape
from boe.training import STATE_FILE, TrainConfig

SOLVED = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"
PUZZLE = "".join(d if k % 5 else "." for k, d in enumerate(SOLVED))  # 17 cells to fill
COSTS = {"steps", "nfe_forward", "n_backward", "flop_equiv", "seconds"}
STEP_KEYS = {"positions", "entropy", "scores", "parts", "revealed", "tokens", "remasked"}


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def strict_json(text: str) -> dict:
    """JSON by the letter: NaN and Infinity are not."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the program to its failure: (exit code, what it said on standard error)."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["boe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            boe.cli.main()
        return int(caught.value.code), capsys.readouterr().err

    return run


# --- solve ----------------------------------------------------------------------------


def test_solve_prints_the_grid_and_its_cost() -> None:
    result = invoke("solve", PUZZLE, "--tokens-per-step", 6)
    assert result.exit_code == 0, result.output
    assert "solved" in result.output
    assert "steps" in result.output
    assert "8 1 2 │ 7 5 3 │ 6 4 9" in result.output


def test_solve_writes_json_to_standard_output_and_nothing_else() -> None:
    result = invoke("solve", PUZZLE, "--sampler", "boe", "--tokens-per-step", 6, "--json", "-")
    content = strict_json(result.stdout)
    assert content["schema"] == "boe/solve/1"
    assert content["puzzle"] == PUZZLE.replace(".", "0")
    assert content["answer"] == SOLVED
    assert content["correct"] is True
    assert content["unique"] is True
    assert set(content) == COSTS | {
        "schema",
        "puzzle",
        "sampler",
        "tokens_per_step",
        "temperature",
        "seed",
        "answer",
        "correct",
        "unique",
        "trajectory",
    }
    assert len(content["trajectory"]) == content["steps"] == 3
    assert all(set(step) == STEP_KEYS for step in content["trajectory"])
    revealed = [cell for step in content["trajectory"] for cell in step["revealed"]]
    assert sorted(revealed) == list(range(0, 81, 5))


def test_a_wrong_answer_exits_with_1_and_names_the_broken_rule() -> None:
    result = invoke("solve", "." * 81, "--sampler", "random", "--tokens-per-step", 81)
    assert result.exit_code == 1
    assert "wrong: row 1 holds" in result.output


def test_solve_can_be_watched_where_there_is_no_terminal() -> None:
    result = invoke("solve", PUZZLE, "--sampler", "boe", "--watch", "--tokens-per-step", 6)
    assert result.exit_code == 0, result.output
    assert "step 3" in result.output


def test_solve_takes_the_default_strategy_as_generate_does() -> None:
    content = strict_json(invoke("solve", PUZZLE, "--json", "-").stdout)
    assert content["sampler"] == SAMPLER
    assert content["steps"] < PUZZLE.count("."), "what is nearly certain goes at once"


def test_solve_goes_back_to_wrong_guesses_where_it_is_asked_to() -> None:
    puzzle = "304005000000300700000004020903020000070603400020059008800000201040000005000007089"
    assert invoke("solve", puzzle, "--sampler", "threshold:value=0.99").exit_code == 1
    assert invoke("solve", puzzle, "--sampler", "threshold:value=0.99+backtrack").exit_code == 0


def test_samplers_lists_every_part_and_the_options_of_one() -> None:
    listed = invoke("samplers").output
    assert all(name in listed for name in ("boe", "overlap", "remdm-cap", "proofread", "delayed"))
    shown = invoke("samplers", "factor").output
    assert "factor" in shown
    assert "default" in shown
    for parts in parts_by_kind().values():
        for name, kind in parts.items():
            result = invoke("samplers", name)
            assert result.exit_code == 0
            assert all(field.name in result.output for field in fields(kind))


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").output.strip() == f"boe {version('boe-kernels')}"


@pytest.mark.parametrize("command", ["demo", "compare", "watch"])
def test_what_compares_samplers_shows_the_default_beside_boe_alone(command: str) -> None:
    commands = typer.main.get_command(app).commands
    (option,) = [o for o in commands[command].params if o.name == "samplers"]
    assert set(split_samplers(option.default)) >= {"confidence", "boe", SAMPLER}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "123"], "boe: a puzzle has 81 cells, got 3 characters"),
        (["solve", "x" + PUZZLE[1:]], "boe: cell 1 holds 'x'"),
        (["solve", SOLVED], "boe: the puzzle has no empty cell"),
        (["solve", PUZZLE, "--sampler", "best"], "boe: sampler must be one of random"),
        (["solve", PUZZLE, "--sampler", "boe:alpha=3"], "boe: alpha must be in [0, 1]"),
        (["compare", "--task", "chess"], "boe: task must be one of sudoku, sudoku4,"),
        (["compare", "--difficulty", "cruel"], "boe: difficulty must be one of easy"),
        (["compare", "--samplers", "boe,boe"], "boe: samplers must be different"),
        (["compare", "--samplers", ","], "boe: samplers must name at least one sampler"),
        (["compare", "--tokens-per-step", "1,x"], "boe: tokens-per-step must be numbers"),
        (["compare", "--tokens-per-step", "0"], "boe: tokens-per-step must be different numbers"),
        (["compare", "--plot", "plot.gif"], "boe: plot must end in .png, .svg or .pdf"),
        (["compare", "--temperature", "-1"], "boe: temperature must be finite and not negative"),
        (["compare", "--temperature", "hot"], "boe: temperature must be numbers or none"),
        (["compare", "--seeds", "1,1"], "boe: seeds must be different numbers"),
        (["compare", "--reference", "margin", "--samplers", "boe"], "boe: reference must be one"),
        (["compare", "--split", "all"], "boe: split must be one of"),
        (["demo", "--samplers", "best"], "boe: sampler must be one of random"),
    ],
)
def test_wrong_arguments_exit_with_1_and_one_line(fail, arguments, message: str) -> None:
    code, said = fail(*arguments)
    assert code == 1
    assert said.startswith(message)
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [["solve", PUZZLE], ["compare", "--puzzles", "1"], ["info"]])
def test_a_result_that_cannot_be_written_is_found_out_before_any_work(
    fail, tmp_path: Path, command: list[str]
) -> None:
    code, said = fail(*command, "--json", tmp_path / "nowhere" / "result.json")
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("boe: cannot write ")
    assert "is not a directory" in said
    code, said = fail(*command, "--json", tmp_path)
    assert code == 1
    assert "it is a directory" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["solve"],
        ["solve", PUZZLE, "--tokens-per-step", "0"],
        ["compare", "--puzzles", "0"],
        ["watch", "--temperature", "-1"],
        ["nothing"],
    ],
)
def test_wrong_usage_exits_with_2(fail, arguments: list[str]) -> None:
    assert fail(*arguments)[0] == 2


# --- compare and demo -----------------------------------------------------------------


def test_compare_shows_stores_and_draws(tmp_path: Path) -> None:
    result = invoke(
        "compare",
        *("--puzzles", 2, "--difficulty", "easy", "--samplers", "confidence,boe"),
        *("--tokens-per-step", "10,20", "--json", tmp_path / "out.json"),
        *("--plot", tmp_path / "out.png"),
    )
    assert result.exit_code == 0, result.output
    content = strict_json((tmp_path / "out.json").read_text())
    assert content["schema"] == "boe/compare/2"
    assert content["complete"] is True
    assert content["study"] == {
        "task": "sudoku",
        "difficulty": "easy",
        "split": "test",
        "items": 2,
        "item_seed": 0,
        "seeds": [0],
        "batch_size": 50,
        "traced": 0,
        "timings": 1,
        "groups": [
            {
                "samplers": ["confidence", "boe"],
                "settings": [{"tokens_per_step": 10}, {"tokens_per_step": 20}],
            }
        ],
    }
    assert len(content["records"]) == 8
    assert len(content["summary"]) == 4
    assert len(content["pairs"]) == 2
    assert {level["axis"] for level in content["equal_cost"]} == {"flop_equiv", "seconds"}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    for shown in ("confidence", "boe", "right", "McNemar", "equal cost", "2 test items, seed 0"):
        assert shown in result.output


def test_equal_seeds_give_equal_comparisons_whatever_the_batch(tmp_path: Path) -> None:
    answers = []
    for batch in (1, 3):
        path = tmp_path / f"{batch}.json"
        invoke(
            "compare",
            *("--puzzles", 3, "--samplers", "random", "--temperature", 1, "--seed", 4),
            *("--tokens-per-step", 20, "--batch", batch, "--json", path),
        )
        answers.append([r["answer"] for r in strict_json(path.read_text())["records"]])
    assert answers[0] == answers[1]


def test_ctrl_c_in_compare_keeps_the_records_and_exits_with_130(
    fail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rich.progress import Progress

    updates = []
    original = Progress.update

    def update(self: Progress, *arguments: object, **options: object) -> None:
        updates.append(1)
        if len(updates) == 2:
            raise KeyboardInterrupt
        original(self, *arguments, **options)

    monkeypatch.setattr(Progress, "update", update)
    path = tmp_path / "out.json"
    code, said = fail(
        "compare",
        *("--puzzles", 2, "--samplers", "confidence,margin,entropy", "--tokens-per-step", 20),
        *("--difficulty", "easy", "--json", path),
    )
    assert (code, said) == (130, "boe: interrupted\n")
    content = strict_json(path.read_text())
    assert content["complete"] is False
    assert [r["sampler"] for r in content["records"]] == ["confidence"] * 2 + ["margin"] * 2


def test_demo_compares_and_then_shows_a_grid_filling_in() -> None:
    result = invoke(
        "demo",
        *("--puzzles", 1, "--difficulty", "hard", "--tokens-per-step", 15),
        *("--samplers", "random,boe"),
    )
    assert result.exit_code == 0, result.output
    assert "BoE on the first puzzle" in result.output
    assert "TIS" in result.output, "a step with a gradient is among those shown"
    assert "step 55" in result.output
    wrong, right = result.output[result.output.index("step 55") :].split("The same with")
    assert "not solved: " in wrong
    assert "+backtrack" in right
    assert "\nsolved: " in right


def test_demo_json_on_standard_output_is_json_alone() -> None:
    result = invoke(
        "demo",
        *("--puzzles", 1, "--difficulty", "easy", "--tokens-per-step", 20),
        *("--samplers", "confidence", "--json", "-"),
    )
    assert strict_json(result.stdout)["schema"] == "boe/compare/2"


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("random, boe", ["random", "boe"]),
        ("boe:alpha=1,rho=0.5", ["boe:alpha=1,rho=0.5"]),
        ("boe;boe:preset=paper,rho=1;", ["boe", "boe:preset=paper,rho=1"]),
    ],
)
def test_sampler_lists_are_split_at_semicolons_where_options_need_the_commas(text, specs) -> None:
    assert split_samplers(text) == specs


def test_number_lists_are_split_at_commas() -> None:
    assert split_numbers("n", "1, 3,5") == [1, 3, 5]
    with pytest.raises(ValueError, match="n must be different numbers"):
        split_numbers("n", "2,2")
    assert split_values("t", "none,0.5") == [None, 0.5]


# --- generate -------------------------------------------------------------------------


def test_generate_fills_in_a_prompt(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    result = invoke("generate", "--model", model, "--prompt", "the [MASK] sat on [MASK] mat")
    assert result.exit_code == 0, result.output
    text = result.stdout.splitlines()[0].split()
    assert len(text) == 6
    assert [text[k] for k in (0, 2, 3, 5)] == ["the", "sat", "on", "mat"]
    assert "[MASK]" not in result.stdout


def test_generate_appends_masks_before_the_closing_token(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    result = invoke(
        "generate",
        *("--model", model, "--prompt", "the cat", "--length", 5, "--steps", 2),
        *("--temperature", 1.0, "--seed", 3, "--dtype", "float64", "--json", "-"),
    )
    content = strict_json(result.stdout)
    assert content["schema"] == "boe/generate/1"
    assert set(content) == COSTS | {
        "schema",
        "model",
        "prompt",
        "sampler",
        "block_length",
        "temperature",
        "top_p",
        "guidance",
        "kv_cache",
        "cache_refresh",
        "chat",
        "stop",
        "suppress",
        "delay",
        "seed",
        "text",
        "ids",
        "end",
        "trajectory",
    }
    assert len(content["ids"]) == 2 + 2 + 5
    assert (content["ids"][0], content["ids"][-1]) == (2, 3), "[CLS] first, [SEP] last"
    assert all(5 <= index < 17 for index in content["ids"][1:-1]), "words only"
    assert content["steps"] == 2
    assert content["text"].startswith("the cat ")


@pytest.mark.parametrize(
    "option",
    [
        ("--output", "answers"),
        *(("--shards", "4"), ("--batch", "3"), ("--workers", "2"), ("--node", "1/4")),
        *(("--executor", "slurm"), ("--retry-failed",)),
    ],
)
def test_options_of_many_prompts_are_refused_with_one(option: tuple[str, ...]) -> None:
    result = invoke("generate", "--model", "nowhere", "--prompt", "a [MASK]", *option)
    assert result.exit_code == 2
    assert f"{option[0]} goes with --input" in result.output


def test_generate_decodes_block_by_block(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    result = invoke(
        "generate",
        *("--model", model, "--prompt", "the cat", "--length", 6, "--block-length", 2),
        *("--sampler", "confidence", "--json", "-"),
    )
    order = [step["revealed"][0] for step in strict_json(result.stdout)["trajectory"]]
    assert [sorted(order[k : k + 2]) for k in (0, 2, 4)] == [[3, 4], [5, 6], [7, 8]]


def test_generate_fails_in_one_line(fail, tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    weights = save_tiny_bert(tmp_path / "damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--model", tmp_path / "nowhere", "--prompt", "a [MASK]"], "cannot load"),
        (["--model", tmp_path / "empty", "--prompt", "a [MASK]"], "holds no config.json"),
        (["--model", tmp_path / "damaged", "--prompt", "a [MASK]"], "cannot load"),
        (["--model", model, "--prompt", "the cat"], "holds no [MASK] and length is 0"),
        (["--model", model, "--prompt", "a", "--length", 90], "canvas has 93 positions"),
        (["--model", model, "--prompt", "a [MASK]", "--dtype", "int8"], "dtype must be one of"),
        (["--model", model, "--prompt", "a [MASK]", "--device", "abacus"], "abacus"),
    ):
        code, said = fail("generate", *arguments)
        assert code == 1, said
        last = said.strip().splitlines()[-1]
        assert last.startswith("boe: "), said
        assert message in last
        assert "Traceback" not in said


# --- train ----------------------------------------------------------------------------


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five grids instead of twenty thousand, a save at every second step, no evaluation."""
    monkeypatch.setattr("boe.cli.training.train_sudoku", partial(train_sudoku, grids=5))
    monkeypatch.setattr("boe.cli.training.TrainConfig", partial(TrainConfig, save_every=2))


TRAIN = ("train", "sudoku", "--steps", 4, "--batch-size", 2, "--evaluate", 1)


@pytest.mark.usefixtures("small_training")
def test_train_writes_a_checkpoint_with_its_model_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What is measured is that of a model that has learned nothing: it need not take 81 steps.
    monkeypatch.setattr("boe.tasks.sudoku.model_card.TokensPerStep", lambda _: TokensPerStep(20))
    result = invoke(*TRAIN, "--output", tmp_path / "out", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= written
    assert STATE_FILE not in written
    content = strict_json((tmp_path / "out.json").read_text())
    assert set(content) == {"schema", "output", "config", "measured"}
    assert content["schema"] == "boe/train/1"
    assert content["config"]["steps"] == 4
    card = (tmp_path / "out" / "README.md").read_text()
    for name in content["measured"]:
        assert name in card
    assert "--steps 4 --batch-size 2" in card


@pytest.mark.usefixtures("small_training")
def test_an_interrupted_training_goes_on_to_the_same_weights(
    fail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("boe.cli.training.measure", lambda checkpoint, count: {"nothing": 0.0})
    assert invoke(*TRAIN, "--output", tmp_path / "whole").exit_code == 0

    def interrupted(config, output, on_step):
        def stop(done: int, loss: float) -> None:
            on_step(done, loss)
            if done == 3:
                raise KeyboardInterrupt

        return train_sudoku(config, output, stop, grids=5)

    with monkeypatch.context() as patch:
        patch.setattr("boe.cli.training.train_sudoku", interrupted)
        assert fail(*TRAIN, "--output", tmp_path / "cut") == (130, "boe: interrupted\n")
    assert (tmp_path / "cut" / STATE_FILE).exists()
    code, said = fail(*TRAIN[:-2], "--seed", 9, "--output", tmp_path / "cut")
    assert code == 1
    assert "belongs to a run with another seed" in said
    assert invoke(*TRAIN, "--output", tmp_path / "cut").exit_code == 0
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.usefixtures("small_training")
def test_a_training_interrupted_before_its_first_save_does_not_promise_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(config, output, on_step):
        def stop(done: int, loss: float) -> None:
            raise KeyboardInterrupt

        return train_sudoku(config, output, stop, grids=5)

    monkeypatch.setattr("boe.cli.training.train_sudoku", interrupted)
    result = invoke(*TRAIN, "--output", tmp_path)
    assert not (tmp_path / STATE_FILE).exists()
    assert STATE_FILE not in result.output.replace("\n", "")


def test_train_trains_text_tasks_by_their_own_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert training_config("countdown") == CountdownTask.recipe
    assert training_config("sudoku") == SudokuTask.recipe
    monkeypatch.setattr(CountdownTask, "shape", ModelShape(1, 8, 2))
    monkeypatch.setattr("boe.tasks.text.model_card.TOKENS_PER_STEP", (5,))
    result = invoke(
        *("train", "countdown", "--steps", 2, "--batch-size", 4, "--evaluate", 2),
        *("--output", tmp_path / "out", "--json", tmp_path / "out.json"),
    )
    assert result.exit_code == 0, result.output
    content = strict_json((tmp_path / "out.json").read_text())
    assert set(content["measured"]) == {
        f"{name}, 5 per step" for name in CountdownTask.difficulties
    }
    assert content["config"]["learning_rate"] == CountdownTask.recipe.learning_rate
    card = (tmp_path / "out" / "README.md").read_text()
    assert "boe train countdown --steps 2 --batch-size 4" in card
    assert STATE_FILE not in {path.name for path in (tmp_path / "out").iterdir()}


def test_train_refuses_a_task_that_is_not_there(fail, tmp_path: Path) -> None:
    code, said = fail("train", "chess", "--output", tmp_path)
    assert code == 1
    assert "task must be one of sudoku, sudoku4, " in said


# --- info and the program -------------------------------------------------------------


def test_info_lists_versions_devices_and_the_path_of_every_op() -> None:
    content = strict_json(invoke("info", "--json", "-").stdout)
    assert set(content) == {"schema", "python", "packages", "native_kernels", "devices", "paths"}
    assert content["native_kernels"] == boe_kernels.native_kernels()
    assert content["schema"] == "boe/info/1"
    assert content["packages"]["torch"] == torch.__version__
    assert content["devices"][0]["device"] == "cpu"
    rows = [row for row in content["paths"] if row["device"] == "cpu"]
    assert {row["op"] for row in rows} == set(boe_kernels.registered_ops())
    assert all(set(row) == {"op", "device", "path", "rejected"} for row in content["paths"])
    assert "library" in invoke("info").output


def test_threads_are_set() -> None:
    arguments = ("--puzzles", 1, "--samplers", "confidence", "--tokens-per-step", 60)
    result = invoke("compare", *arguments, "--difficulty", "easy", "--threads", 2, "--json", "-")
    assert strict_json(result.stdout)["environment"]["threads"] == 2


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boe", *map(str, arguments)]
    # Tensors are tiny: further threads would only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_program_shows_its_commands() -> None:
    ran = program("--help")
    assert ran.returncode == 0
    for command in (
        *("demo", "compare", "eval", "ablate", "fidelity", "watch", "report"),
        *("solve", "generate", "train", "info"),
    ):
        assert command in ran.stdout


def test_the_program_fails_in_one_line_without_a_traceback() -> None:
    ran = program("solve", "123")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr == "boe: a puzzle has 81 cells, got 3 characters\n"


def test_the_program_solves() -> None:
    ran = program("solve", PUZZLE, "--tokens-per-step", 6, "--json", "-")
    assert ran.returncode == 0, ran.stderr
    assert strict_json(ran.stdout)["answer"] == SOLVED
