"""``python -m boe.lm_eval``, and several ranks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.api.registry import model_registry
from tiny_checkpoints import save_tiny_bert

import boe.lm_eval
from boe.lm_eval.__main__ import main
from boe.lm_eval.costs import read_costs
from boe.lm_eval.ranks import Ranks

ARGUMENTS = "pretrained=embedded:sudoku4,sampler=boe:alpha=0.5;rho=0.5,tokens_per_step=8"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs the command in this process, without the 14,000 task files of lm-eval."""
    own_only = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["lm-eval", "run", *arguments])
        main()

    return run


def test_registration_leaves_lm_evals_own_models_in_place() -> None:
    code = (
        "import boe.lm_eval; boe.lm_eval.register(); boe.lm_eval.register()\n"
        "from lm_eval.api.registry import get_model, model_registry\n"
        "assert 'hf' in model_registry and 'vllm' in model_registry\n"
        "assert get_model('boe').__name__ == 'BoeLM'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    boe.lm_eval.register()
    assert "boe" in model_registry


def test_the_command_evaluates_and_shows_costs(
    command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(
        *("--model", "boe", "--model_args", ARGUMENTS, "--tasks", "boe_sudoku4"),
        *("--limit", "4", "--batch_size", "4", "--output_path", str(tmp_path), "--log_samples"),
    )
    shown = capsys.readouterr().out
    assert "|boe_sudoku4|" in shown
    assert "|boe_sudoku4|4|0|2.00|" in shown
    folder = tmp_path / "embedded__sudoku4"
    assert len(list(folder.glob("results_*.json"))) == 1
    (costs,) = folder.glob("costs_*_rank0.jsonl")
    assert len(read_costs(folder, costs.name.split("_")[1])) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sampler=boe", "error: model_args must name the checkpoint: pretrained="),
        ("pretrained=x,tempreature=1", "error: unknown model argument 'tempreature': did you mean"),
        ("pretrained=x,sampler=boe:rho=2", "error: rho must be in"),
    ],
)
def test_wrong_arguments_end_it_before_anything_is_loaded(
    command, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command("--model", "boe", "--model_args", arguments, "--tasks", "boe_sudoku4")
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(message)


def test_an_embedded_model_that_does_not_exist_is_named_before_anything_is_loaded(
    command, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", "boe", "--model_args", "pretrained=embedded:chess")
    with pytest.raises(SystemExit) as caught:
        command(*given, "--tasks", "boe_sudoku4")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"error: .*embedded: and one of .*sudoku4.*, got 'chess'", said)


def test_results_that_cannot_be_written_end_it_before_anything_is_loaded(
    command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    given = ("--model", "boe", "--model_args", "pretrained=nowhere", "--tasks", "boe_sudoku4")
    with pytest.raises(SystemExit) as caught:
        command(*given, "--output_path", str(taken / "results"))
    assert caught.value.code == 1
    assert f"error: cannot write to {taken}/results" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_used_is_named_in_one_line(
    command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("--model", "boe", "--tasks", "boe_sudoku4", "--limit", "1", "--device", "cpu")
    folder = save_tiny_bert(tmp_path, mask_token=False)
    for source, message in (
        (folder, f"error: the tokenizer of {folder} has no mask token; give mask_id"),
        (tmp_path / "nowhere", f"error: cannot load {tmp_path}/nowhere: there is no such"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(*given, "--model_args", f"pretrained={source}")
        assert caught.value.code == 1
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(message)


RANKED = """
import sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from boe.lm_eval import PROTOCOLS
from boe.lm_eval.model import BoeLM
lm = BoeLM(pretrained="embedded:sudoku4", sampler="confidence", tokens_per_step=8,
           device="cpu", costs=sys.argv[1], batch_size=2)
manager = TaskManager(include_path=str(PROTOCOLS), include_defaults=False)
results = simple_evaluate(model=lm, tasks=["boe_sudoku4"], task_manager=manager, limit=5,
                          bootstrap_iters=0, use_cache=sys.argv[1] + "/cache")
if lm.rank == 0:
    print("RESULT", results["results"]["boe_sudoku4"]["exact_match,none"],
          results["config"]["boe_costs"]["boe_sudoku4"]["requests"])
else:
    assert results is None
print("RECORDS", lm.rank, len(lm.costs.records))
"""


def test_two_ranks_share_the_requests_and_give_one_result(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common["OMP_NUM_THREADS"] = "1"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKED, str(tmp_path)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1] + outputs[1][1]
    # Five documents: lm-eval gives the second rank a copy, which is not decoded again.
    assert "RESULT 1.0 5.0" in outputs[0][0]
    assert "RECORDS 0 3" in outputs[0][0]
    assert "RECORDS 1 2" in outputs[1][0]
    assert {path.name for path in tmp_path.glob("cache_rank*.db")} >= {
        "cache_rank0.db",
        "cache_rank1.db",
    }


def test_one_process_exchanges_nothing() -> None:
    ranks = Ranks()
    assert ranks.gather_object("x") == ["x"]
    assert ranks.device("cpu") == "cpu"
    ranks.barrier()


def test_each_rank_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Ranks(rank=5, world=8, local=1).device("cuda") == "cuda:1"
    assert Ranks(rank=5, world=8, local=1).device(None) == "cuda:1"
    with pytest.raises(ValueError, match="rank 2 would be GPU 2; torch sees 2"):
        Ranks(rank=2, world=8, local=2).device("cuda")
    with pytest.raises(ValueError, match="must name no GPU"):
        Ranks(rank=0, world=2).device("cuda:0")
