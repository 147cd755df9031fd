"""``python -m boe.scaling.worker KIND FOLDER SHARDS``: one replica, started by
:mod:`boe.scaling.replicas`. Not meant to be typed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from boe.scaling.answering import Replica
from boe.scaling.engine import ReplicaExecutor, ShardTask, ShardWorker
from boe.scaling.job import JobFolder
from boe.scaling.studies import study_worker


def generation_worker(folder: Path) -> ShardWorker:
    """A replica of the job's model."""
    return Replica(JobFolder(folder))


KINDS: dict[str, Callable[[Path], ShardWorker]] = {
    "generation": generation_worker,
    "study": study_worker,
}


def main(arguments: Sequence[str]) -> None:
    kind, folder, listed = arguments
    job = JobFolder(Path(folder))
    shards = job.content()["shards"]
    only = [int(number) for number in listed.split(",")]
    ReplicaExecutor(ShardTask(KINDS[kind], job.path), shards, job.engine, only).run()


if __name__ == "__main__":
    main(sys.argv[1:])
