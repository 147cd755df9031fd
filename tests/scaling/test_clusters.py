"""datatrove's executors: their options, and Slurm with commands that stand in for it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from prompt_files import write_prompts
from typer.testing import CliRunner

pytest.importorskip("datatrove", reason="pip install '.[scaling]'")

from boe.cli import sharding
from boe.cli.app import app
from boe.cli.sharding import Sharding
from boe.denoisers.loading import LoadedModel
from boe.scaling.answering import Replica
from boe.scaling.engine import ReplicaExecutor, ShardTask, cluster_executor, executor_options
from boe.scaling.job import JobFolder
from boe.scaling.worker import generation_worker

SBATCH = """
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
if "launch_pickled_pipeline" in text:
    for task in range(int(re.search(r"--array=0-(\\d+)", text).group(1)) + 1):
        given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}
        subprocess.run(["bash", sys.argv[-1]], env={**os.environ, **given}, stdout=sys.stderr)
print("Submitted batch job 7")
"""
SRUN = 'while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sbatch`` runs the tasks of an array here, one after another."""
    scripts = {
        "sbatch": f"#!{sys.executable}{SBATCH}",
        "srun": f"#!/bin/bash\n{SRUN}",
        "scontrol": "#!/bin/bash\necho here\n",
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join((str(folder), own, os.environ["PATH"])))
    # The package may be run from its sources.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_slurm_tasks_answer_the_shards_and_the_command_puts_them_together(
    tmp_path: Path, tiny_bert: Path, slurm: None
) -> None:
    prompts, output = write_prompts(tmp_path / "p.jsonl", 6), tmp_path / "out"
    given = {"time": "1:00:00", "partition": "gpu", "gpus_per_task": 1, "tasks_per_job": 2}
    options = [part for k, v in given.items() for part in ("--executor-option", f"{k}={v}")]
    command = ["generate", "--model", tiny_bert, "--input", prompts, "--output", output]
    sharded = ["--shards", "2", "--sampler", "confidence", "--executor", "slurm", *options]
    result = CliRunner().invoke(app, [*map(str, command), *sharded])
    assert result.exit_code == 0, (result.output, result.exception)
    answers = [json.loads(text) for text in (output / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [f"p{k}" for k in range(6)]
    script = (output / "engine" / "launch_script.slurm").read_text()
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --gpus=1" in script
    assert "#SBATCH --array=0-0" in script


def test_hosts_share_the_shards_and_the_last_one_puts_them_together(
    tmp_path: Path, tiny_bert: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(kind: str, folder: Path, logs: Path, shards: list[int], *rest: Any) -> list[Any]:
        done.append(list(shards))
        assert logs.is_dir()
        logged.append(logs.relative_to(output).as_posix())
        task = ShardTask(lambda path: Replica(JobFolder(path), loaded), folder)
        ReplicaExecutor(task, 5, JobFolder(folder).engine, shards).run()
        return []

    done: list[list[int]] = []
    logged: list[str] = []
    monkeypatch.setattr(sharding, "run_replicas", here)
    prompts, output = write_prompts(tmp_path / "p.jsonl", 10), tmp_path / "out"
    command = ["generate", "--model", tiny_bert, "--input", prompts, "--output", output]
    command += ["--shards", "5", "--sampler", "confidence"]
    results = [
        CliRunner().invoke(app, [*map(str, command), "--node", node])
        for node in ("1/2", "0/2", "0/2")
    ]
    assert isinstance(results[0].exception, RuntimeError)
    assert "3 of 5 shards are unfinished (0, 2, 4)" in str(results[0].exception)
    assert [result.exit_code for result in results[1:]] == [0, 0]
    assert done == [[1, 3], [0, 2, 4]]
    assert logged == ["workers/node-1", "workers/node-0"], "none overwrites another's"
    assert len((output / "answers.jsonl").read_text().splitlines()) == 10


def test_options_of_an_executor_are_checked(tmp_path: Path) -> None:
    task = ShardTask(generation_worker, tmp_path)
    with pytest.raises(ValueError, match=r"executor must be local, slurm or ray, got 'pbs'"):
        cluster_executor("pbs", task, 2, tmp_path, {})
    with pytest.raises(ValueError, match=r"options of slurm are .*time, .*; got 'tasks'"):
        cluster_executor("slurm", task, 2, tmp_path, {"tasks": 3})
    with pytest.raises(ValueError, match=r"slurm needs the executor option partition"):
        cluster_executor("slurm", task, 2, tmp_path, {"time": "1:00:00"})
    assert executor_options(["time=1:00:00", "gpus_per_task=1", 'sbatch_args={"qos": "x"}']) == {
        "time": "1:00:00",
        "gpus_per_task": 1,
        "sbatch_args": {"qos": "x"},
    }
    with pytest.raises(ValueError, match="executor-option must be name=value, got 'time'"):
        executor_options(["time"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node": "2/2"}, "node must be k/n with 0 ≤ k < n"),
        ({"node": "x"}, "node must be k/n, such as 0/4"),
        ({"executor_options": ("a=1",)}, "executor-option is for executor slurm or ray"),
        ({"executor": "slurm", "workers": 2}, "workers and node are for executor local"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharding(**options)


def test_a_task_that_ray_is_to_run_can_be_sent_to_another_host(tmp_path: Path) -> None:
    dill = pytest.importorskip("dill")
    task = ShardTask(generation_worker, tmp_path)
    assert dill.loads(dill.dumps(task)) == task
