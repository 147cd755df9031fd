"""ActiveQueryAttention against dense attention and against splitting the rows by hand.

Times the forward, the backward alone and both, at batch 1. The full sweep over |A| is
run at L = 1024 and the sweep over L at |A| = 64. A case whose results are wrong is not
timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.attention_providers import TIMED, Inputs, Provider, dense, math
from bench.attention_truth import Truth
from bench.losses import print_losses
from bench.report import Target, find, print_table, print_targets, shape_text
from bench.results import Config, Measurement, Quantiles
from bench.session import Options, parse_options, run_cases
from bench.timing import Call, Effort, Timing, interleave, peak_extra_memory

NAME = "attention"
FULL = Effort(seconds=2.0, least_rounds=5, most_rounds=60)
QUICK = Effort(seconds=0.2, least_rounds=3, most_rounds=5)

WIDTHS = (64, 128)
DTYPES = (torch.float32, torch.bfloat16)

# The L×L matrices of `math` take gigabytes beyond this.
LONGEST_MATH = 2048


@dataclass(frozen=True)
class Case:
    """One shape: ``length`` queries and keys, ``active`` of them active."""

    dtype: torch.dtype
    width: int
    length: int
    active: int
    q_heads: int = 8
    kv_heads: int = 8
    batch: int = 1

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def config(self) -> Config:
        return {
            "B": self.batch,
            "H": self.q_heads,
            "Hkv": self.kv_heads,
            "d": self.width,
            "L": self.length,
            "A": self.active,
        }

    def __str__(self) -> str:
        return f"{self.dtype_name} {shape_text(self.config)}"

    def inputs(self, device: torch.device) -> Inputs:
        """Random tensors and a random set of active rows, the same on every run."""
        # Drawn where they are used: large cases would take seconds to travel.
        random = torch.Generator(device).manual_seed(0)

        def draw(heads: int) -> Tensor:
            shape = (self.batch, heads, self.length, self.width)
            return torch.randn(shape, generator=random, device=device).to(self.dtype)

        order = torch.randperm(self.length, generator=random, device=device)
        return Inputs(
            q=draw(self.q_heads).requires_grad_(),
            k=draw(self.kv_heads).requires_grad_(),
            v=draw(self.kv_heads).requires_grad_(),
            dout=draw(self.q_heads),
            active=order[: self.active].sort().values,
            inactive=order[self.active :].sort().values,
        )


def cases(quick: bool) -> list[Case]:
    """The sweeps: over |A| at one L, over L at one |A|, and grouped heads."""
    if quick:
        plain = [Case(dtype, 64, length, 16) for dtype in DTYPES for length in (128, 256)]
        return [*plain, Case(torch.float32, 128, 128, 16, q_heads=28, kv_heads=4)]
    found = []
    for dtype in DTYPES:
        for width in WIDTHS:
            found += [Case(dtype, width, 1024, active) for active in (16, 32, 64, 128, 256, 512)]
            found += [Case(dtype, width, length, 64) for length in (512, 2048, 4096)]
        found += [Case(dtype, 128, 1024, active, 28, 4) for active in (64, 256)]
    return found


def gradients(out: Tensor, inputs: Inputs, dout: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs.leaves, dout, retain_graph=keep)


def verify(inputs: Inputs) -> None:
    """Compare every provider with float64.

    Raises:
        WrongResultError: one is wrong.
    """
    truth = Truth(inputs)
    for name, provider in TIMED.items():
        out = provider(inputs)
        # Dense sends the gradient of every row; the others must drop it by themselves.
        dout = inputs.masked_dout if provider is dense else inputs.dout
        truth.compare(name, out, *gradients(out, inputs, dout))


def measure(case: Case, options: Options) -> Iterator[Measurement]:
    """Times, ratios and, at |A| = 64, the memory that a backward takes."""

    def row(provider: str, mode: str, metric: str, value: Quantiles) -> Measurement:
        return Measurement(NAME, provider, mode, case.dtype_name, case.config, metric, value)

    inputs = case.inputs(options.device)
    verify(inputs)
    effort = QUICK if options.quick else FULL
    timings: dict[str, dict[str, Timing]] = {}
    for mode, calls in _calls(inputs).items():
        timings[mode] = interleave(calls, options.device, effort)
        for provider, timing in timings[mode].items():
            yield row(provider, mode, "time_ms", timing.quantiles)
    for mode in ("backward", "forward+backward"):
        for rival in ("dense", "two_call"):
            ratio = timings[mode][rival].over(timings[mode]["ours"])
            yield row(f"{rival}/ours", mode, "ratio", ratio)
    # At fixed |A| over all L; elsewhere it would repeat itself.
    if case.active == 64 or options.quick:
        for provider, attend in _measured_for_memory(case).items():
            memory = peak_extra_memory(_backward(attend, inputs), options.device)
            yield row(provider, "backward", "peak_memory_mb", Quantiles.of([memory]))


def _calls(inputs: Inputs) -> dict[str, dict[str, Call]]:
    """What is timed, by mode and provider. Forwards are those of training."""
    return {
        "forward": {name: partial(f, inputs) for name, f in TIMED.items()},
        "backward": {name: _backward(f, inputs) for name, f in TIMED.items()},
        "forward+backward": {name: partial(_both, f, inputs) for name, f in TIMED.items()},
    }


def _both(provider: Provider, inputs: Inputs) -> tuple[Tensor, ...]:
    return gradients(provider(inputs), inputs, inputs.dout)


def _backward(provider: Provider, inputs: Inputs) -> Call:
    """The backward alone, of a forward that is run here."""
    out = provider(inputs)
    return partial(gradients, out, inputs, inputs.dout, keep=True)


def _measured_for_memory(case: Case) -> dict[str, Provider]:
    holds_matrix = case.length <= LONGEST_MATH and case.q_heads == case.kv_heads
    return {**TIMED, "math": math} if holds_matrix else TIMED


def targets(measured: Sequence[Measurement], options: Options) -> list[Target]:
    """What the op is for: much faster than dense, never slower than by hand, no L²."""

    def speed_up(rival: str, mode: str, case: Case) -> Quantiles | None:
        return find(measured, "ratio", f"{rival}/ours", mode, case.dtype_name, case.config)

    found = []
    # Against dense the bar was set on a CPU; on a GPU the active backward is bound by
    # reading k and v, and the ratio that can be reached depends on L.
    if options.device.type == "cpu":
        for width in WIDTHS:
            case = Case(torch.float32, width, 1024, 64)
            for mode, least in (("backward", 9.0), ("forward+backward", 2.6)):
                claim = f"{mode} faster than dense: {case}"
                found.append(Target(claim, least, speed_up("dense", mode, case)))
    for case in cases(quick=False):
        for mode in ("backward", "forward+backward"):
            claim = f"{mode} no slower than two_call: {case}"
            found.append(Target(claim, 1.0, speed_up("two_call", mode, case), headline=False))
    return found + [_memory_target(measured, dtype, width) for dtype in DTYPES for width in WIDTHS]


def _memory_target(measured: Sequence[Measurement], dtype: torch.dtype, width: int) -> Target:
    """At fixed |A| memory grows no faster than the gradients of k and v: no L² in it."""
    short, long = Case(dtype, width, 512, 64), Case(dtype, width, 4096, 64)
    least, most = (
        find(measured, "peak_memory_mb", "ours", "backward", case.dtype_name, case.config)
        for case in (short, long)
    )
    linear = None
    if least is not None and most is not None:
        linear = Quantiles.of([long.length / short.length * least.p50 / most.p50])
    claim = f"backward's memory grows no faster than L, 512 to 4096: {short.dtype_name} d={width}"
    return Target(claim, 1.0, linear)


def main(argv: list[str]) -> None:
    """Run the benchmark and print its tables."""
    options = parse_options(NAME, argv)
    outcome = run_cases(options, cases(options.quick), lambda case: measure(case, options))
    print_table("Milliseconds, p50", outcome.measurements, "time_ms", also="ratio")
    print_table("MiB held by a backward, at most", outcome.measurements, "peak_memory_mb")
    print_targets(targets(outcome.measurements, options))
    print_losses(outcome.measurements)
    outcome.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
