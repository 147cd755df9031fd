"""``python -m boe.scaling.worker KIND FOLDER SHARDS``: one replica, started by
:mod:`boe.scaling.replicas`. Not meant to be typed."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from boe.scaling.answering import Replica
from boe.scaling.engine import ReplicaExecutor, ShardTask, ShardWorker
from boe.scaling.job import JobFolder
from boe.scaling.replicas import CANNOT_WRITE, end_with_parent
from boe.scaling.studies import study_worker


def generation_worker(folder: Path) -> ShardWorker:
    """A replica of the job's model."""
    return Replica(JobFolder(folder))


KINDS: dict[str, Callable[[Path], ShardWorker]] = {
    "generation": generation_worker,
    "study": study_worker,
}


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str]) -> None:
    kind, folder, listed = arguments
    job = JobFolder(Path(folder))
    shards = job.content()["shards"]
    only = [int(number) for number in listed.split(",")]
    try:
        ReplicaExecutor(ShardTask(KINDS[kind], job.path), shards, job.engine, only).run()
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        with suppress(OSError):
            traceback.print_exc()
        # Python's own way out would flush its output to the full disk, and fail at that.
        os._exit(CANNOT_WRITE)


if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1:])
