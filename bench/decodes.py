"""Whole decodes by BoE, relative to whole decodes in confidence order of as many steps.

Steps are equal, so a decode's ideal is its cost in forwards (``Account.flop_equiv``) over that
of confidence: 1 + 2·|A|/L for a step that replays, 1 for one that does not. The aim is 1.15
times that, and for prompts of at least eight times what is filled in also 1.35 at most.

Samplers take turns decode by decode. Where the time goes is taken from one decode more, before
the timed ones: a clock around every forward and every gradient would disturb those.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any

from torch import Tensor

from bench.report import Target, print_table, print_targets, shape_text
from bench.results import Config, Measurement, Quantiles
from bench.session import Options, WrongResultError, parse_options, run_cases
from bench.timing import Effort, interleave
from boe import TokensPerStep, generate
from boe.decoding.records import Account
from boe.denoisers.base import Denoiser
from boe.tasks import TASKS, EmbeddedTask, ProseTask

NAME = "decodes"
RIVAL = "confidence"
SAMPLERS = ("boe", "boe:tolerance=none", "boe:sure=none,tolerance=none", "boe:preset=paper")
RATIO, IDEAL = f"decode/{RIVAL}", "ideal"
PARTS = ("forward", "gradient", "rest")
SLACK = 1.15
LONG_PROMPT, LONG_PROMPT_LIMIT = 8, 1.35
MOST_ROWS = 150_000
"""Rows of the canvases that a decode in confidence order may run; more would take minutes."""
FULL = Effort(seconds=6.0, least_rounds=3, most_rounds=11)
QUICK = Effort(seconds=0.2, least_rounds=2, most_rounds=3)


@dataclass(frozen=True)
class Case:
    """Decodes of ``batch`` hard items of a task at once, at ``tokens`` a step.

    Attributes:
        length: positions of the first canvas, and masks: how many it has; in these tasks all
            canvases are alike.
    """

    task: str
    length: int
    masks: int
    batch: int
    tokens: int

    @property
    def config(self) -> Config:
        return {
            "task": self.task,
            "L": self.length,
            "masks": self.masks,
            "batch": self.batch,
            "tokens": self.tokens,
        }

    @property
    def rows(self) -> int:
        return self.batch * self.length * -(-self.masks // self.tokens)

    def __str__(self) -> str:
        return shape_text(self.config)


def cases(quick: bool) -> list[Case]:
    """Every task but prose, which is drawn: without temperature all its decodes are the same."""
    if quick:
        return [case_of("sudoku4", 3, 1)]
    found = [
        case_of(name, batch, tokens)
        for name in TASKS
        if name != ProseTask.name
        for batch in (50, 200)
        for tokens in (1, 3)
    ]
    # Short ones first: a run that is interrupted keeps the most.
    return sorted((case for case in found if case.rows <= MOST_ROWS), key=lambda case: case.rows)


def case_of(name: str, batch: int, tokens: int) -> Case:
    (ids,) = _items(name, 1)
    masks = int((ids == _task(name).denoiser().facts.mask_id).sum())
    return Case(name, len(ids), masks, batch, tokens)


@cache
def _task(name: str) -> EmbeddedTask:
    """The task, which holds its denoiser once loaded."""
    return TASKS[name]("hard")


def _items(name: str, count: int) -> list[Tensor]:
    items = _task(name).items(count, seed=0, split="validation")
    return [item.canvas for item in items]


@dataclass
class Stopwatch:
    """Seconds spent inside a denoiser, by part."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS[:-1], 0.0))

    def watch(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, with a clock around forwards and gradients."""
        watched = copy.copy(denoiser)
        for part, method in (("forward", "predict"), ("gradient", "entropy_gradient")):
            setattr(watched, method, self._timed(part, getattr(denoiser, method)))
        return watched

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return call


@dataclass(frozen=True)
class Watched:
    """A decode's cost, and the shares of its time that went into ``PARTS``."""

    account: Account
    shares: dict[str, float]


@dataclass(frozen=True)
class Decode:
    """What one case decodes."""

    denoiser: Denoiser
    canvases: list[Tensor]
    tokens: int

    @classmethod
    def of(cls, case: Case) -> Decode:
        return cls(_task(case.task).denoiser(), _items(case.task, case.batch), case.tokens)

    def run(self, spec: str, denoiser: Denoiser | None = None) -> Account:
        budget = TokensPerStep(self.tokens)
        return generate(denoiser or self.denoiser, self.canvases, spec, budget=budget).total

    def watched(self, spec: str) -> Watched:
        stopwatch = Stopwatch()
        denoiser = stopwatch.watch(self.denoiser)
        began = time.perf_counter()
        account = self.run(spec, denoiser)
        seconds = time.perf_counter() - began
        shares = {part: spent / seconds for part, spent in stopwatch.seconds.items()}
        return Watched(account, {**shares, PARTS[-1]: 1.0 - sum(shares.values())})


def measure(case: Case, options: Options) -> Iterator[Measurement]:
    """Times of decodes and shares of them, their ratios to confidence's and the ideal ratios.

    The sampler is the measurement's mode.
    """
    decode = Decode.of(case)

    def row(spec: str, provider: str, metric: str, value: Quantiles) -> Measurement:
        return Measurement(NAME, provider, spec, "float32", case.config, metric, value)

    watched = {spec: decode.watched(spec) for spec in (RIVAL, *SAMPLERS)}
    rival = watched[RIVAL].account
    for spec, found in watched.items():
        if found.account.steps != rival.steps:
            raise WrongResultError(
                f"{spec} takes {found.account.steps} steps, {RIVAL} {rival.steps}"
            )
    calls = {spec: partial(decode.run, spec) for spec in watched}
    effort = QUICK if options.quick else FULL
    timings = interleave(calls, options.device, effort, warmed=True)
    for spec, timing in timings.items():
        yield row(spec, "decode", "time_ms", timing.quantiles)
        for part, share in watched[spec].shares.items():
            yield row(spec, part, "share", Quantiles.of([share]))
        if spec != RIVAL:
            ideal = watched[spec].account.flop_equiv / rival.flop_equiv
            yield row(spec, RATIO, "ratio", timing.over(timings[RIVAL]))
            yield row(spec, IDEAL, "ideal", Quantiles.of([ideal]))


def has_long_prompt(config: Config) -> bool:
    """Whether the prompt is at least LONG_PROMPT times as long as what is filled in."""
    masks = int(config["masks"])
    return int(config["L"]) - masks >= LONG_PROMPT * masks


def targets(measured: list[Measurement]) -> list[Target]:
    """Decodes within SLACK of their ideal, as limit over ratio; long prompts within theirs."""
    ideals = {
        (m.mode, shape_text(m.config)): m.value.p50
        for m in measured
        if m.metric == "ideal" and m.value is not None
    }
    found = []
    for m in measured:
        if m.metric != "ratio" or m.value is None:
            continue
        shape = shape_text(m.config)
        limit = SLACK * ideals[m.mode, shape]
        found.append(_target(f"{m.mode} within {SLACK}·ideal = {limit:.2f}: {shape}", m, limit))
        if has_long_prompt(m.config):
            claim = f"{m.mode} within {LONG_PROMPT_LIMIT}, long prompt: {shape}"
            found.append(_target(claim, m, LONG_PROMPT_LIMIT))
    return found


def _target(claim: str, measurement: Measurement, limit: float) -> Target:
    ratio = measurement.value
    assert ratio is not None
    margin = Quantiles(limit / ratio.p50, limit / ratio.p80, limit / ratio.p20)
    return Target(claim, 1.0, margin, headline=False)


def main(argv: list[str]) -> None:
    """Run the benchmark and print its tables."""
    options = parse_options(NAME, ["--device", "cpu", *argv])
    if options.device.type != "cpu":
        raise SystemExit(f"{NAME}: the aim is a CPU's; on a GPU there is python -m bench llm_step")
    outcome = run_cases(options, cases(options.quick), lambda case: measure(case, options))
    print_table("Milliseconds a decode, and shares", outcome.measurements, "time_ms", "share")
    print_table("Times a decode in confidence order", outcome.measurements, "ratio", "ideal")
    print_targets(targets(outcome.measurements))
    outcome.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
