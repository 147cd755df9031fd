"""``entropy_stats`` against plain PyTorch, torch.distributions and torch.compile.

"ours" takes the path that is chosen by itself: on a CPU the native kernels, if they are
built. Then "library", our path of PyTorch's own kernels, is one of the rivals.

Times the statistics without gradient and the statistics with the entropy's gradient, at
256 rows of two vocabularies. Every provider is compared with float64 first; a case in
which one is wrong is not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.markup import escape
from torch import Tensor
from torch.distributions import Categorical

from bench.losses import print_losses
from bench.report import Target, console, find, print_table, print_targets, shape_text
from bench.results import Config, Measurement, Quantiles
from bench.session import Options, WrongResultError, parse_options, run_cases
from bench.timing import Effort, interleave, peak_extra_memory
from boe_kernels import Decision, decide, entropy_stats

NAME = "entropy"
FULL = Effort(seconds=10.0, least_rounds=5, most_rounds=60)
QUICK = Effort(seconds=0.2, least_rounds=3, most_rounds=5)
MODES = ("forward", "forward+backward")

# Relative error of each statistic, and of the gradient in the Frobenius norm, against
# float64. Gradients of bfloat16 logits are rounded to bfloat16.
STATS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}

# Of the random logits: entropies of 6 to 7 nats, about those of an undecided model.
LOGIT_SCALE = 3.0

# In float64 a whole case would take gigabytes.
EXACT_ROWS = 32

Provider = Callable[[Tensor], tuple[Tensor, ...]]
"""From logits (N, V) to statistics, the entropy first."""


@dataclass(frozen=True)
class Case:
    """Logits of one shape and dtype."""

    dtype: torch.dtype
    rows: int
    vocabulary: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def config(self) -> Config:
        return {"N": self.rows, "V": self.vocabulary}

    def __str__(self) -> str:
        return f"{self.dtype_name} {shape_text(self.config)}"


def ours(logits: Tensor) -> tuple[Tensor, ...]:
    """``boe_kernels.entropy_stats``."""
    return entropy_stats(logits)


def library(logits: Tensor) -> tuple[Tensor, ...]:
    """The same without a kernel of ours."""
    return entropy_stats(logits, backend="library")


def path_of_ours(logits: Tensor) -> Decision:
    return decide("entropy_stats", "auto", logits.device, logits.dtype)


def eager(logits: Tensor) -> tuple[Tensor, ...]:
    """The same five statistics in the fewest PyTorch calls."""
    z = logits.float()
    log_p = z.log_softmax(dim=-1)
    p = log_p.exp()
    top = p.detach().topk(2, dim=-1)
    argmax = top.indices[:, :1]
    lse = z.detach().gather(-1, argmax) - log_p.detach().gather(-1, argmax)
    entropy = -(p * log_p).sum(dim=-1)
    return entropy, lse[:, 0], top.values[:, 0], top.values[:, 1], argmax[:, 0]


def categorical(logits: Tensor) -> tuple[Tensor, ...]:
    """torch.distributions: the entropy and none of the other statistics."""
    return (Categorical(logits=logits.float(), validate_args=False).entropy(),)


def cases(quick: bool) -> list[Case]:
    """GPT-2's vocabulary with a mask token, and LLaDA's."""
    dtypes = (torch.float32, torch.bfloat16)
    if quick:
        return [Case(dtype, 16, 5003) for dtype in dtypes]
    return [Case(dtype, 256, size) for size in (50_258, 126_464) for dtype in dtypes]


def providers(logits: Tensor) -> tuple[dict[str, Provider], str | None]:
    """Every provider that runs here, and why torch.compile does not if it does not."""
    found: dict[str, Provider] = {"eager": eager, "categorical": categorical, "ours": ours}
    if path_of_ours(logits).path != "library":
        found["library"] = library
    # Forgets the shapes of earlier cases, which would count towards its limit.
    torch.compiler.reset()
    compiled = torch.compile(eager, dynamic=False)
    try:
        for mode in MODES:
            run(compiled, logits, torch.ones_like(logits[:, 0]), mode)
    except Exception as error:
        # Whatever stops the compiler, its first line is what the reader needs.
        return found, (str(error).strip() or repr(error)).splitlines()[0]
    return {**found, "compile": compiled}, None


def run(provider: Provider, logits: Tensor, upstream: Tensor, mode: str) -> tuple[Tensor, ...]:
    """The statistics, and with ``forward+backward`` the gradient of their entropy."""
    if mode == "forward":
        with torch.no_grad():
            return provider(logits)
    stats = provider(logits)
    weights = upstream.to(stats[0].dtype)
    return (*torch.autograd.grad(stats[0], logits, weights), *stats)


def verify(case: Case, found: dict[str, Provider], logits: Tensor, upstream: Tensor) -> None:
    """Compare the entropy and its gradient with float64, a block of rows at a time.

    Raises:
        WrongResultError: a provider is out of bounds.
    """
    results = {name: run(f, logits, upstream, "forward+backward") for name, f in found.items()}
    squared = dict.fromkeys(found, 0.0)
    norm = 0.0
    for start in range(0, case.rows, EXACT_ROWS):
        block = slice(start, start + EXACT_ROWS)
        z = logits.detach()[block].double().requires_grad_()
        log_p = z.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        (slope,) = torch.autograd.grad(entropy, z, upstream[block].double())
        norm += float(slope.square().sum())
        for name, (gradient, *stats) in results.items():
            squared[name] += float((gradient[block] - slope).square().sum())
            _verify_stats(name, z.detach(), entropy.detach(), [s.detach()[block] for s in stats])
    for name, wrong in squared.items():
        error = (wrong / norm) ** 0.5
        if not error <= GRADIENT_TOLERANCE[case.dtype]:
            raise WrongResultError(f"{name}: the gradient is off by {error:.1e}")


def _verify_stats(name: str, z: Tensor, entropy: Tensor, stats: Sequence[Tensor]) -> None:
    top = z.softmax(dim=-1).topk(2, dim=-1).values
    exact = {
        "the entropy": entropy,
        "the log-sum-exp": z.logsumexp(dim=-1),
        "top1": top[:, 0],
        "top2": top[:, 1],
        # Logits in bfloat16 tie: the argmax may be any of the largest.
        "the logit of the argmax": z.amax(dim=-1),
    }
    mine = list(stats)
    if len(mine) == len(exact):
        mine[-1] = z.gather(-1, mine[-1].unsqueeze(-1)).squeeze(-1)
    # Providers that give the entropy alone are compared in that alone.
    for (what, right), got in zip(exact.items(), mine, strict=False):
        error = float(((got - right).abs() / right.abs()).max())
        # Written so that NaN is refused too.
        if not error <= STATS_TOLERANCE:
            raise WrongResultError(f"{name}: {what} is off by {error:.1e}")


def measure(case: Case, options: Options) -> Iterator[Measurement]:
    """Times, memory and ratios in both modes."""

    def row(provider: str, mode: str, metric: str, value: Quantiles | None) -> Measurement:
        return Measurement(NAME, provider, mode, case.dtype_name, case.config, metric, value)

    random = torch.Generator().manual_seed(0)
    logits = LOGIT_SCALE * torch.randn(case.rows, case.vocabulary, generator=random)
    logits = logits.to(options.device, case.dtype).requires_grad_()
    upstream = torch.randn(case.rows, generator=random).to(options.device)
    console().print(escape(str(path_of_ours(logits))))
    found, no_compiler = providers(logits)
    if no_compiler is not None:
        console().print(f"[yellow]torch.compile is unavailable:[/] {escape(no_compiler)}")
    verify(case, found, logits, upstream)
    effort = QUICK if options.quick else FULL
    for mode in MODES:
        calls = {name: partial(run, f, logits, upstream, mode) for name, f in found.items()}
        timings = interleave(calls, options.device, effort)
        for provider, timing in timings.items():
            yield row(provider, mode, "time_ms", timing.quantiles)
        for rival in found:
            if rival != "ours":
                yield row(f"{rival}/ours", mode, "ratio", timings[rival].over(timings["ours"]))
        for provider, call in calls.items():
            memory = peak_extra_memory(call, options.device)
            yield row(provider, mode, "peak_memory_mb", Quantiles.of([memory]))
        if no_compiler is not None:
            # Empty rather than absent, so that no older number stands in their place.
            yield row("compile", mode, "time_ms", None)
            yield row("compile/ours", mode, "ratio", None)
            yield row("compile", mode, "peak_memory_mb", None)


def targets(measured: Sequence[Measurement]) -> list[Target]:
    """No rival is to be faster, whether or not it gives all the statistics.

    Eager PyTorch is to take three times as long where the gradient is wanted too.
    """
    found = []
    for case in cases(quick=False):
        for mode in MODES:
            for rival in ("eager", "categorical", "compile", "library"):
                ratio = find(measured, "ratio", f"{rival}/ours", mode, case.dtype_name, case.config)
                if rival == "eager" and mode == "forward+backward":
                    found.append(Target(f"{mode} 3 times as fast as eager: {case}", 3.0, ratio))
                    continue
                claim = f"{mode} no slower than {rival}: {case}"
                found.append(Target(claim, 1.0, ratio, headline=False))
    return found


def main(argv: list[str]) -> None:
    """Run the benchmark and print its tables."""
    options = parse_options(NAME, argv)
    outcome = run_cases(options, cases(options.quick), lambda case: measure(case, options))
    print_table("Milliseconds, p50", outcome.measurements, "time_ms", also="ratio")
    print_table("MiB held at most", outcome.measurements, "peak_memory_mb")
    print_targets(targets(outcome.measurements))
    print_losses(outcome.measurements)
    outcome.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
