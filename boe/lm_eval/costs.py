"""What each request cost: one line of JSON per request, beside lm-eval's results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MEASURES = ("nfe_forward", "n_backward", "flop_equiv", "seconds")
_SHOWN = 10


@dataclass(frozen=True)
class CostRecord:
    """Cost of one request.

    Attributes:
        kind: lm-eval's name of the request.
        task, doc, choice, repeat: which request it was; ``choice`` counts the requests of
            one document.
        key: what its random draws depend on, beside the seed.
        prompt_tokens: tokens that were given, special ones included.
        tokens: tokens generated up to and including the stop, or whose likelihood was asked.
        stopped: whether a stop text or token ended it.
        steps: decoding steps; 0 for likelihoods.
        nfe_forward, n_backward, flop_equiv, seconds: as in :class:`boe.Account`.
        error: why it failed; ``None`` if it did not. The costs are then those until then, of
            a likelihood 0.
    """

    kind: str
    task: str | None
    doc: int | None
    choice: int
    repeat: int
    key: int
    prompt_tokens: int
    tokens: int
    stopped: bool
    steps: int
    nfe_forward: float
    n_backward: float
    flop_equiv: float
    seconds: float
    error: str | None = None

    @property
    def request(self) -> tuple[Any, ...]:
        return (self.kind, self.task, self.doc, self.choice, self.repeat, self.key)


class CostLog:
    """Records of one process, appended to a file as they come.

    Args:
        folder: where; ``None`` keeps them in memory only.
        fingerprint: of model and settings. What may answer differently has files of its own,
            and a run that goes on appends to what is there.
        rank: of the process.
    """

    def __init__(self, folder: str | None, fingerprint: str, rank: int = 0) -> None:
        self.records: list[CostRecord] = []
        self.path: Path | None = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.path = Path(folder) / f"costs_{fingerprint}_rank{rank}.jsonl"
            _cut_torn_line(self.path)

    def add(self, record: CostRecord) -> None:
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")


def read_costs(folder: str | Path, fingerprint: str) -> list[CostRecord]:
    """The records of all ranks; of a request that was run again, the last.

    Raises:
        ValueError: a line is no record; the message gives file and line.
    """
    names = {field.name for field in fields(CostRecord)}
    latest: dict[tuple[Any, ...], CostRecord] = {}
    for path in sorted(Path(folder).glob(f"costs_{fingerprint}_rank*.jsonl")):
        text = path.read_text()
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
            try:
                content = json.loads(line)
                if set(content) != names:
                    raise ValueError("other fields")
            except (ValueError, TypeError) as error:
                raise ValueError(f"line {number} of {path} is no cost record") from error
            record = CostRecord(**content)
            latest[record.request] = record
    return list(latest.values())


def summarise(records: Iterable[CostRecord]) -> dict[str, dict[str, float]]:
    """Per task how many requests were answered and how many failed, and the answers' means."""
    grouped: dict[str, list[CostRecord]] = {}
    for record in records:
        grouped.setdefault(record.task or "", []).append(record)
    summary = {}
    for task, group in sorted(grouped.items()):
        answered = [record for record in group if record.error is None]
        summary[task] = {
            "requests": float(len(answered)),
            "failed": float(len(group) - len(answered)),
            **{
                measure: sum(getattr(record, measure) for record in answered)
                / max(len(answered), 1)
                for measure in ("tokens", "steps", *MEASURES)
            },
        }
    return summary


def failures_in(records: Iterable[CostRecord]) -> list[dict[str, Any]]:
    """Which requests failed, and why."""
    return [
        {"kind": record.kind, "task": record.task, "doc": record.doc, "error": record.error}
        for record in records
        if record.error is not None
    ]


def summary_lines(folder: str, fingerprint: str) -> list[str]:
    """The means per task as a Markdown table, where the records are, and what failed."""
    lines = [
        "",
        "|task|requests|failed|forwards|backwards|cost in forwards|seconds|",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    records = read_costs(folder, fingerprint)
    for task, means in summarise(records).items():
        values = "|".join(f"{means[measure]:.2f}" for measure in MEASURES)
        lines.append(f"|{task}|{means['requests']:.0f}|{means['failed']:.0f}|{values}|")
    lines.append(f"per request: {Path(folder) / f'costs_{fingerprint}_rank*.jsonl'}")
    failed = failures_in(records)
    for one in failed[:_SHOWN]:
        lines.append(f"failed: {one['task']}/{one['doc']}: {one['error']}")
    if failed:
        lines.append(
            f"{len(failed)} requests failed: their answers are empty and count as any wrong one, "
            "so that the scores are too low"
        )
    return lines


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left of its last line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        path.write_bytes(content[:whole])
