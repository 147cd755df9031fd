"""Finished shards put together: all answers in the order of the prompts, and a summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from boe.evaluate.record import COSTS
from boe.files import partial_path, write_json
from boe.scaling.job import JobFolder

SCHEMA = "boe/generation/1"
_OPEN_FILES = 128


@dataclass(frozen=True)
class Merged:
    """What all shards came to.

    Attributes:
        totals: sums over the answers of ``steps`` and every cost.
        environments: that shards were made in, each with the number of its ``shards``.
    """

    prompts: int
    answered: int
    failed: int
    totals: dict[str, float]
    denoiser: str
    environments: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        means = {name: value / max(self.answered, 1) for name, value in self.totals.items()}
        return {
            "schema": SCHEMA,
            "prompts": self.prompts,
            "answered": self.answered,
            "failed": self.failed,
            "totals": self.totals,
            "means": means,
            "denoiser": self.denoiser,
            "environments": self.environments,
        }


def forget_failures(folder: JobFolder, shards: int) -> int:
    """Have finished shards that hold failures worked on again; their number."""
    count = 0
    for shard in range(shards):
        marker = folder.marker(shard)
        if marker.exists() and json.loads(folder.report(shard).read_text())["failures"]:
            marker.unlink()
            count += 1
    return count


def merge(folder: JobFolder) -> Merged:
    """Write ``answers.jsonl``, ``failures.jsonl`` and ``summary.json``.

    Raises:
        ValueError: shards were made by different models, or by code in which a sampler's
            defaults differ, or a prompt is not there exactly once; the message names them.
    """
    job = folder.read()
    reports = [json.loads(folder.report(shard).read_text()) for shard in range(job.shards)]
    _check_alike(reports, "denoiser", "models with different weights")
    _check_alike(reports, "decided_by", "different defaults of a sampler")
    totals: Counter[str] = Counter()
    counts: Counter[bool] = Counter()
    places = _places(folder, job.shards)
    expected = sum(report["prompts"] for report in reports)
    lines = [line for line, *_ in places]
    if len(set(lines)) < len(lines) or len(lines) != expected:
        raise ValueError(
            f"{folder.path}: the shards hold {len(lines)} lines of {len(set(lines))} prompts, "
            f"their reports say {expected}"
        )
    with ExitStack() as stack:
        # Several hosts may merge at once, and all get the same.
        partial = {path: partial_path(path) for path in (folder.answers, folder.failures)}
        files = {path: stack.enter_context(place.open("wb")) for path, place in partial.items()}
        for text in _read(folder, places):
            content = json.loads(text)
            failed = "error" in content
            files[folder.failures if failed else folder.answers].write(text)
            counts[failed] += 1
            if not failed:
                totals.update({name: content[name] for name in ("steps", *COSTS)})
    for path, place in partial.items():
        place.replace(path)
    environments = Counter(json.dumps(report["environment"]) for report in reports)
    merged = Merged(
        prompts=len(lines),
        answered=counts[False],
        failed=counts[True],
        totals={name: float(totals[name]) for name in ("steps", *COSTS)},
        denoiser=reports[0]["denoiser"],
        environments=[
            {**json.loads(text), "shards": count} for text, count in environments.items()
        ],
    )
    write_json(folder.summary, merged.as_json())
    return merged


def first_failures(folder: JobFolder, count: int) -> Iterator[tuple[str, int, str]]:
    """Id, line and reason of the first failures."""
    with folder.failures.open() as file:
        for _, text in zip(range(count), file, strict=False):
            content = json.loads(text)
            yield content["id"], content["line"], content["error"]


def _check_alike(reports: list[dict[str, Any]], name: str, difference: str) -> None:
    groups: dict[str, list[int]] = {}
    for report in reports:
        groups.setdefault(report[name], []).append(report["shard"])
    if len(groups) > 1:
        named = "; ".join(
            f"{value[:10]}: {', '.join(map(str, shards))}" for value, shards in groups.items()
        )
        raise ValueError(
            f"shards were made by {difference} ({named}): give a new output, and the same to all "
            "hosts"
        )


Place = tuple[int, int, int]
"""Line of the prompt, shard, and where in the shard's file its line begins."""


def _places(folder: JobFolder, shards: int) -> list[Place]:
    places: list[Place] = []
    for shard in range(shards):
        with folder.shard(shard).open("rb") as file:
            start = 0
            for text in file:
                places.append((json.loads(text)["line"], shard, start))
                start += len(text)
    return sorted(places)


def _read(folder: JobFolder, places: list[Place]) -> Iterator[bytes]:
    """The lines at ``places``, with no more than so many files open at once."""
    files: dict[int, Any] = {}
    try:
        for _, shard, start in places:
            if shard not in files:
                if len(files) == _OPEN_FILES:
                    files.pop(next(iter(files))).close()
                files[shard] = folder.shard(shard).open("rb")
            files[shard].seek(start)
            yield files[shard].readline()
    finally:
        for file in files.values():
            file.close()
