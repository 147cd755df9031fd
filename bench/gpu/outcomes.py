"""A pytest plugin that writes every test's outcome to a file as soon as it is known.

``pytest -p bench.gpu.outcomes --outcomes FILE``: one JSON object per line, so that a run
that is killed, or that takes the device down with it, has told what it found till then. Tests
that have passed according to the file are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Outcome:
    """What came of one test."""

    test: str
    """Its node id."""
    result: str
    """passed, failed or skipped."""
    reason: str
    """Of a failure or a skip, in one line."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file to append every test's outcome to")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(_Recorder(path))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        passed = {o.test for o in read_outcomes(self._path) if o.result == "passed"}
        over = [item for item in items if item.nodeid in passed]
        if over:
            items[:] = [item for item in items if item.nodeid not in passed]
            config.hook.pytest_deselected(items=over)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "failed":
            self._write(report.nodeid, report.outcome, report.longrepr)

    def _write(self, test: str, result: str, longrepr: Any) -> None:
        reason = "" if result == "passed" else _one_line(longrepr)
        append_outcomes(self._path, [Outcome(test, result, reason)])


def _one_line(longrepr: Any) -> str:
    if isinstance(longrepr, tuple):
        # Of a skip: file, line and reason.
        text = str(longrepr[2])
    else:
        crash = getattr(longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(longrepr)
        # A collection error ends with what was wrong.
        if crash is None:
            text = text.strip().rsplit("\n", 1)[-1]
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines[:3])[:400]


def append_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Add a line per outcome to the file, which begins with the first."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What a run has told so far; a line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Outcome(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return found
