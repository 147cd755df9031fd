"""``boe generate --input`` and ``boe eval --shards``: work in shards, by several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from boe.cli.output import check_json_path, console_for, emit_json, progress_on
from boe.denoisers.placement import dtype_named, require_device
from boe.evaluate.running import Run
from boe.evaluate.study import Study
from boe.scaling.answering import Replica
from boe.scaling.engine import ReplicaExecutor, ShardTask, cluster_executor, executor_options
from boe.scaling.job import GenerationJob, Job, JobFolder, ModelSource
from boe.scaling.merging import Merged, first_failures, forget_failures, merge
from boe.scaling.rank_group import RankGroup
from boe.scaling.replicas import replica_count, run_replicas
from boe.scaling.studies import StudyJob, gather
from boe.scaling.worker import KINDS
from boe.tasks import Task
from boe.text import TextOptions

_SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Sharding:
    """Who works on the shards.

    Attributes:
        workers: replicas on this host; by default one per GPU, or one on the CPU.
        node: "k/n" for the k-th (from 0) of n hosts that share the output; each has every
            n-th shard.
        executor: "local", or a cluster's (:data:`boe.scaling.engine.CLUSTERS`).
        executor_options: its arguments, as ``name=value``.
        retry_failed: try prompts that failed in finished shards again.
        threads: CPU threads of each local replica.

    Raises:
        ValueError: options that do not go together.
    """

    workers: int | None = None
    node: str = "0/1"
    executor: str = "local"
    executor_options: tuple[str, ...] = ()
    retry_failed: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        number, count = self.place
        if not 0 <= number < count:
            raise ValueError(f"node must be k/n with 0 ≤ k < n, got {self.node!r}")
        if self.executor == "local" and self.executor_options:
            raise ValueError("executor-option is for executor slurm or ray, got executor local")
        if self.executor != "local" and (self.workers is not None or count > 1):
            raise ValueError(
                f"workers and node are for executor local; {self.executor} has options of its own"
            )

    @property
    def place(self) -> tuple[int, int]:
        """Number of this host, and how many there are."""
        number, slash, count = self.node.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise ValueError(f"node must be k/n, such as 0/4, got {self.node!r}")
        return int(number), int(count)


def run_sharded_generation(
    model: ModelSource,
    prompts: Path,
    output: Path,
    options: TextOptions,
    sizes: dict[str, int],
    sharding: Sharding,
    json_path: Path | None,
    group: RankGroup | None = None,
) -> bool:
    """Answer all prompts of a file, from wherever it was left; whether all have an answer.

    Args:
        sizes: ``shards`` and ``length`` of the job.
        group: the processes that the model's layers are shared out over: one replica, whose
            first process does all but the decoding alone.

    Raises:
        ValueError, OSError: as :class:`GenerationJob` and :meth:`JobFolder.open`.
        RuntimeError: as :func:`work_on`.
    """
    if group is not None and (sharding.workers is not None or sharding.executor != "local"):
        raise ValueError(
            "workers and executor do not go with tensor-parallel, whose processes torchrun has "
            "started; node does"
        )
    if group is not None and not group.leads:
        Replica(group.agree(), group=group).follow()
        return True
    check_json_path(json_path)
    dtype_named(model.dtype)
    if not prompts.is_file():
        raise FileNotFoundError(f"input {prompts} is not a file")
    job = GenerationJob.of(model, prompts, options, **sizes)
    job.deal()
    console = console_for(json_path)
    folder = JobFolder(output.resolve())
    if sharding.executor == "local":
        require_device(model.device)
    with _begun(folder, job, sharding):
        if sharding.retry_failed:
            forget_failures(folder, job.shards)
        if group is not None:
            group.agree(folder)
            replica = Replica(folder, group=group)
        else:
            replica = None
        work_on(console, "generation", folder, job.shards, model.device, sharding, replica)
    merged = merge(folder)
    _show(console, folder, merged)
    emit_json(json_path, merged.as_json())
    return not merged.failed


def run_study_in_shards(
    shards: int,
    sharding: Sharding,
    study: Study,
    task: Task,
    console: Console,
    records: Path | None,
) -> Run:
    """As :func:`boe.cli.running.run_visibly`, by several processes.

    Args:
        records: names the directory; the shards are in a folder of their own there.

    Raises:
        RuntimeError: as :func:`work_on`.
    """
    if records is None:
        raise ValueError("shards need an output directory")
    folder = JobFolder((records.parent / "sharded").resolve())
    job = StudyJob(study, shards)
    with _begun(folder, job, sharding):
        work_on(console, "study", folder, shards, "cpu", sharding)
    return gather(folder, task)


@contextmanager
def _begun(folder: JobFolder, job: Job, sharding: Sharding) -> Iterator[None]:
    """``job`` begun in ``folder``, or found begun there.

    One that this host alone has begun and that ends before anything is stored, as for an option
    that does not fit the model, leaves the folder to any other.
    """
    began = folder.open(job)
    try:
        yield
    except BaseException:
        alone = sharding.executor == "local" and sharding.place[1] == 1
        if began and alone and folder.untouched:
            folder.job.unlink()
        raise


def work_on(
    console: Console,
    kind: str,
    folder: JobFolder,
    shards: int,
    device: str,
    sharding: Sharding,
    replica: Replica | None = None,
) -> None:
    """Have the shards that are not finished worked on.

    Args:
        kind: of :data:`boe.scaling.worker.KINDS`.
        replica: works on this host's shards in this very process, if it is given.

    Raises:
        RuntimeError: replicas that ended before their shards were done, or shards that are
            left to other hosts.
    """
    waiting = folder.unfinished(shards)
    if len(waiting) < shards:
        console.print(f"{shards - len(waiting)} of {shards} shards were there already")
    if waiting and sharding.executor != "local":
        task = ShardTask(KINDS[kind], folder.path)
        given = executor_options(sharding.executor_options)
        cluster_executor(sharding.executor, task, shards, folder.engine, given).run()
    elif waiting:
        number, hosts = sharding.place
        mine = [shard for shard in waiting if shard % hosts == number]
        if replica is not None:
            ReplicaExecutor(
                ShardTask(lambda _: replica, folder.path), shards, folder.engine, mine
            ).run()
        else:
            _run_here(console, kind, folder, mine, device, sharding)
    if replica is not None:
        replica.dismiss()
    waiting = folder.unfinished(shards)
    if waiting:
        raise RuntimeError(
            f"{len(waiting)} of {shards} shards are unfinished ({_listed(waiting)}): once they "
            "are done elsewhere, the same command puts all together"
        )


def _run_here(
    console: Console,
    kind: str,
    folder: JobFolder,
    shards: Sequence[int],
    device: str,
    sharding: Sharding,
) -> None:
    count = replica_count(device, sharding.workers)
    with progress_on(console) as progress:
        bar = progress.add_task("shards", total=len(shards))

        def show_markers() -> None:
            progress.update(bar, completed=sum(folder.marker(s).exists() for s in shards))

        number, hosts = sharding.place
        logs = folder.workers if hosts == 1 else folder.workers / f"node-{number}"
        logs.mkdir(exist_ok=True)
        try:
            ended = run_replicas(
                kind, folder.path, logs, shards, count, device, sharding.threads, show_markers
            )
        except (KeyboardInterrupt, SystemExit):
            console.print("stopped: what is done is kept, and the same command goes on from there")
            raise
    if ended:
        left = [shard for shard in shards if not folder.marker(shard).exists()]
        kept = (
            "no prompt was tried"
            if folder.untouched
            else "what they have is kept, and the same command goes on from there"
        )
        raise RuntimeError(
            f"{'; '.join(one.reason for one in ended)}. Shards {_listed(left)} are unfinished; "
            f"{kept}"
        )


def _show(console: Console, folder: JobFolder, merged: Merged) -> None:
    means = merged.as_json()["means"]
    console.print(
        f"{merged.answered} of {merged.prompts} prompts answered; per answer "
        f"{means['steps']:.1f} steps, cost {means['flop_equiv']:.1f} forwards, "
        f"{means['seconds']:.2f} s of a replica"
    )
    for name, line, reason in first_failures(folder, _SHOWN_FAILURES):
        console.print(f"failed: {name} (line {line}): {reason}", soft_wrap=True)
    if merged.failed > _SHOWN_FAILURES:
        console.print(f"… and {merged.failed - _SHOWN_FAILURES} more: {folder.failures}")
    console.print(f"answers: {folder.answers}", soft_wrap=True)


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    text = ", ".join(map(str, numbers[:most]))
    return text if len(numbers) <= most else f"{text} …"
