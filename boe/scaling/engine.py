"""Shards as tasks of datatrove: markers of completion, logs, Slurm and Ray.

datatrove knows which shards are done and runs the others; what a shard is, and going on in
its midst, is :mod:`boe.scaling.answering`'s.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

_SPEC = find_spec("datatrove")
# Without a file it is but some folder of that name, which Python takes for a package.
if _SPEC is None or _SPEC.origin is None:
    raise ModuleNotFoundError(
        "sharded work needs datatrove, which is not installed: "
        "pip install '.[scaling]' in a checkout of boe"
    )

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor  # noqa: E402

CLUSTERS = {
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}
"""datatrove's executors that start processes elsewhere."""

_OURS = ("pipeline", "tasks", "logging_dir", "skip_completed", "depends")


class ShardWorker(Protocol):
    """What works on shards; made once per process, since it holds the model."""

    def run_shard(self, shard: int) -> None:
        """Work on a shard until it is done, from wherever it was left."""


@dataclass(frozen=True)
class ShardTask:
    """A step of a datatrove pipeline: task n is shard n. Can be given to any executor.

    Attributes:
        make: makes the worker from the folder; a function of a module, so that other
            hosts can import it.
        folder: of the job, reachable from all hosts.
    """

    make: Callable[[Path], ShardWorker]
    folder: Path

    def __call__(self, data: Any, rank: int, world_size: int) -> Any:
        _worker(self.make, self.folder).run_shard(rank)
        return data


@cache
def _worker(make: Callable[[Path], ShardWorker], folder: Path) -> ShardWorker:
    """The worker of this process: its model is loaded for the first shard only."""
    return make(folder)


class ReplicaExecutor(PipelineExecutor):
    """Runs given shards one after another in this very process.

    datatrove's own local executor has a pool of processes, which waits for ever for one
    that was killed, and does not say which of them a task is in, so that it could be given
    a GPU. Here every replica is a process of its own (:mod:`boe.scaling.replicas`).

    Args:
        task: what is run.
        shards: how many the job has.
        only: numbers of those to run; all by default.
        logging_dir: for logs, statistics and markers.
    """

    def __init__(
        self,
        task: ShardTask,
        shards: int,
        logging_dir: Path,
        only: Sequence[int] | None = None,
    ) -> None:
        super().__init__([task], logging_dir=str(logging_dir))
        self._shards = shards
        self._only = range(shards) if only is None else only

    def run(self) -> None:
        for shard in self.get_incomplete_ranks(self._only):
            self._run_for_rank(shard)

    @property
    def world_size(self) -> int:
        return self._shards

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="BOE",
        )


def cluster_executor(
    name: str, task: ShardTask, shards: int, logging_dir: Path, options: Mapping[str, Any]
) -> PipelineExecutor:
    """datatrove's executor for a cluster.

    Args:
        name: of :data:`CLUSTERS`.
        options: arguments of its class.

    Raises:
        ValueError: another name, an unknown option, or a required one that is missing.
    """
    if name not in CLUSTERS:
        raise ValueError(f"executor must be local, {' or '.join(CLUSTERS)}, got {name!r}")
    module, kind = CLUSTERS[name]
    made: type[PipelineExecutor] = getattr(__import__(module, fromlist=[kind]), kind)
    known = inspect.signature(made).parameters
    free = [key for key in known if key not in _OURS]
    for key in options:
        if key not in free:
            raise ValueError(f"executor options of {name} are {', '.join(free)}; got {key!r}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in (*_OURS, *options):
            raise ValueError(f"{name} needs the executor option {key}: {key}=…")
    return made([task], tasks=shards, logging_dir=str(logging_dir), **options)


def executor_options(texts: Iterable[str]) -> dict[str, Any]:
    """Options given as ``name=value``; a value is JSON, or else a text.

    Raises:
        ValueError: one without a name or a value.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ValueError(f"executor-option must be name=value, got {text!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
