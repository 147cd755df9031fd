"""Compile and load before the first request, or a CUDA graph, what calls to come will need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from boe_kernels._attention_plan import AttentionPlan, PlannedCall
from boe_kernels._dispatch import Decision, decide
from boe_kernels._triton import Launch, architecture_of, recording
from boe_kernels._vocabulary_plan import VocabularyPlan

Plan = AttentionPlan | VocabularyPlan


@dataclass(frozen=True)
class WarmupReport:
    """What a warm-up has done."""

    decisions: tuple[Decision, ...]
    """The path of every planned op; those that are not Triton's need no warm-up."""
    binaries: tuple[str, ...]
    """The kernels that are ready, with their constexprs and launch options, once each."""
    compiled: int
    """How many of them this process did not have: compiled, or loaded from Triton's cache on
    disk. 0 under Triton's interpreter."""
    seconds: float

    def __str__(self) -> str:
        count = len(self.binaries)
        lines = [
            f"{count} binaries ready, {self.compiled} of them new, in {self.seconds:.1f} s"
            if count
            else "nothing to compile",
            *(str(decision) for decision in self.decisions),
        ]
        return "\n".join([*lines, *(f"  {binary}" for binary in self.binaries)])


def warmup(
    *plans: Plan, device: torch.device | str | None = None, backend: str = "auto"
) -> WarmupReport:
    """Compile and load every Triton binary that the planned calls need, forward and backward.

    Afterwards such calls compile nothing: they can be captured in a CUDA graph at once, and
    no request waits for a compiler. Each binary is launched once, on zeros, on the current
    stream; the tensors are of the planned sizes (two canvases at most) and freed, and the
    call waits for the device. Paths other than those of Triton need no warm-up: where they
    run, on a CPU say, nothing is done, and the report names them.

    Not covered: tensors that do not begin at a multiple of 16 bytes, or whose rows lie apart
    by what 16 bytes do not divide; output gradients whose columns are apart (the gradient of
    a sum); what PyTorch and its libraries set up at their own first calls, so run a model
    once before it is captured.

    Args:
        plans: what is to come, :class:`AttentionPlan` or :class:`VocabularyPlan`.
        device: where it will run; by default the current GPU, or the CPU where there is none.
        backend: as the calls will have it.

    Raises:
        TypeError: a plan is none.
        ValueError: there is no plan, or ``backend`` names a path that cannot run.
        RuntimeError: a CUDA graph is being captured.
    """
    if not plans:
        raise ValueError("plans must hold at least one plan, got none")
    for plan in plans:
        if not isinstance(plan, AttentionPlan | VocabularyPlan):
            raise TypeError(
                "plans must be of AttentionPlan and VocabularyPlan, "
                f"got one of {type(plan).__name__}"
            )
    target = _device(device)
    began = time.perf_counter()
    decided: list[Decision] = []
    chosen: list[tuple[Plan, str, str]] = []
    for plan in plans:
        for op in plan.ops:
            dtype = plan.dtype_of(op)
            decision = decide(op, backend, target, dtype, plan.width_of_heads, plan.table)
            if decision not in decided:
                decided.append(decision)
            if decision.path in ("triton", "triton_fused"):
                chosen.append((plan, op, decision.path))
    binaries: dict[object, str] = {}
    compiled: list[object] = []
    if chosen:
        if target.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("warm up before a CUDA graph is captured, not meanwhile")
        architecture = architecture_of(target)
        calls: list[Callable[[torch.device], object]] = [*needed_calls(chosen, architecture)]
        calls += [partial(plan.check_values, op) for plan, op, _ in chosen]
        with torch.no_grad(), _compilations() as compiled:
            for call in calls:
                binaries |= _binaries_of(call, target, architecture)
        if target.type == "cuda":
            torch.cuda.synchronize(target)
    names = tuple(binaries.values())
    return WarmupReport(tuple(decided), names, len(compiled), time.perf_counter() - began)


def _binaries_of(
    call: Callable[[torch.device], object], target: torch.device, architecture: str
) -> dict[object, str]:
    """Make a call; the names of the binaries that it ran. Nothing of the call is held."""
    with recording(architecture, run=True) as launches:
        call(target)
    return {launch.signature: _name(launch) for launch in launches}


def needed_calls(chosen: Iterable[tuple[Plan, str, str]], architecture: str) -> list[PlannedCall]:
    """Of the calls of the plans' ops, those that need a binary which none before them needs.

    Args:
        chosen: plans, an op of each, and the path that the op takes.
    """
    known: set[object] = set()
    needed: list[PlannedCall] = []
    for plan, op, path in chosen:
        for call in plan.calls(op, path) if isinstance(plan, VocabularyPlan) else plan.calls(op):
            with recording(architecture) as launches:
                call(torch.device("meta"))
            signatures = {launch.signature for launch in launches}
            if not signatures <= known:
                known |= signatures
                needed.append(call)
    return needed


def _device(device: torch.device | str | None) -> torch.device:
    found = torch.device(
        device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    )
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _name(launch: Launch) -> str:
    options = ", ".join(f"{name}={value}" for name, value in launch.options.items())
    return f"{launch.kernel.__name__} ({options})"


@contextmanager
def _compilations() -> Iterator[list[object]]:
    """The kernels that Triton makes or loads a binary for."""
    from triton import knobs

    made: list[object] = []
    before = knobs.runtime.jit_post_compile_hook

    def note(*args: object, **facts: object) -> object:
        made.append(facts.get("repr"))
        return None if before is None else before(*args, **facts)

    knobs.runtime.jit_post_compile_hook = note
    try:
        yield made
    finally:
        knobs.runtime.jit_post_compile_hook = before
