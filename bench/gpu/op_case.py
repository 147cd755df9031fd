"""Cases of the ops that are one function of tensors: what is drawn, checked and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.gpu.benchmark import Machine, Task, time_task
from bench.gpu.launches import Contestant, reason
from bench.gpu.roofline import Work
from bench.report import shape_text
from bench.results import Config, Measurement
from bench.session import WrongResultError
from bench.timing import Call

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]

# Relative error in the Frobenius norm. bfloat16 logits or products are rounded on the way.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class OpCase:
    """A shape of an op.

    Attributes:
        name: of the benchmark.
        draw: inputs of the functions, those that get gradients first, and last the gradient
            of the functions' first output.
        leaves: how many inputs get gradients; 0 for an op that is measured forward only.
        functions: the contestants, from all inputs but the last to outputs.
        truth: the same on inputs in float64.
        part: what of the inputs the truth is computed from.
        part_of_result: the part of an output or gradient that depends on those.
        work: by mode, what has to be done.
    """

    name: str
    dtype: torch.dtype
    config: Config
    draw: Callable[[torch.device], Tensors]
    leaves: int
    functions: Mapping[str, Function]
    truth: Function
    part: Callable[[Tensors], Tensors]
    part_of_result: Callable[[Tensor], Tensor]
    work: Mapping[str, tuple[Work, ...]]
    with_ratios: bool = True

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.dtype_name} {shape_text(self.config)}"


def measure(case: OpCase, machine: Machine) -> Iterator[Measurement]:
    """Times of every contestant in every mode."""
    inputs = _leaves(case, case.draw(machine.device))
    right = _truth(case, inputs)
    excluded: dict[str, str] = {}
    for name, function in case.functions.items():
        try:
            _verify(case, name, function, inputs, right)
        except Exception as error:
            excluded[name] = reason(error, machine.device)
    held = 2 * sum(x.numel() * x.element_size() for x in inputs)
    del inputs, right
    for mode, work in case.work.items():
        task = Task(
            mode,
            floor=sum(machine.ceilings.floor(part) for part in work),
            touched=sum(part.bytes for part in work),
            held=held,
        )
        contestants = {
            name: Contestant(partial(_bind, case, function, mode), nullcontext)
            for name, function in case.functions.items()
        }
        yield from time_task(
            case.name,
            case,
            task,
            contestants,
            lambda: _leaves(case, case.draw(machine.device)),
            machine,
            excluded=excluded,
            with_ratios=case.with_ratios,
        )


def rows_of(count: int) -> tuple[Callable[[Tensors], Tensors], Callable[[Tensor], Tensor]]:
    """``part`` and ``part_of_result`` where the first input and all results go by rows."""

    def part(inputs: Tensors) -> Tensors:
        first, *rest, upstream = inputs
        return first[:count], *rest, upstream[:count]

    return part, lambda result: result[:count]


def everything() -> tuple[Callable[[Tensors], Tensors], Callable[[Tensor], Tensor]]:
    """``part`` and ``part_of_result`` of ops whose truth is computed as a whole."""
    return lambda inputs: inputs, lambda result: result


def _leaves(case: OpCase, inputs: Tensors) -> Tensors:
    for x in inputs[: case.leaves]:
        x.requires_grad_()
    return inputs


def _bind(case: OpCase, function: Function, mode: str, inputs: Tensors) -> Call:
    if mode == "forward":
        return partial(_without_graph, function, inputs[:-1])
    if mode == "forward+backward":
        return partial(_run, case, function, inputs)
    out = function(*inputs[:-1])[0]
    upstream = inputs[-1].to(out.dtype)
    return partial(torch.autograd.grad, out, inputs[: case.leaves], upstream, retain_graph=True)


@torch.no_grad()
def _without_graph(function: Function, inputs: Tensors) -> Tensors:
    return function(*inputs)


def _run(case: OpCase, function: Function, inputs: Tensors) -> Tensors:
    """Outputs, and gradients of the first of them."""
    outputs = function(*inputs[:-1])
    if not case.leaves:
        return outputs
    leaves = inputs[: case.leaves]
    return (*outputs, *torch.autograd.grad(outputs[0], leaves, inputs[-1].to(outputs[0].dtype)))


def _truth(case: OpCase, inputs: Tensors) -> Tensors:
    part = tuple(x.detach().double() if x.is_floating_point() else x for x in case.part(inputs))
    return tuple(x.detach() for x in _run(case, case.truth, _leaves(case, part)))


def _verify(case: OpCase, name: str, function: Function, inputs: Tensors, right: Tensors) -> None:
    results = _run(case, function, inputs)
    if case.leaves:
        # Rivals that give fewer outputs are compared in what they give.
        outputs, gradients = results[: -case.leaves], results[-case.leaves :]
        pairs = [*zip(outputs, right, strict=False)]
        pairs += zip(gradients, right[-case.leaves :], strict=True)
    else:
        pairs = [*zip(results, right, strict=False)]
    for number, (mine, exact) in enumerate(pairs):
        # Which of two equal numbers is the largest is nobody's fault.
        if not exact.is_floating_point():
            continue
        mine = case.part_of_result(mine.detach()).double()
        finite = exact.isfinite()
        difference = torch.where(finite, mine - exact, 0.0).norm()
        error = float(difference / torch.where(finite, exact, 0.0).norm())
        # Written so that NaN is refused too.
        if not error <= TOLERANCE[case.dtype] or not torch.equal(mine.isinf(), exact.isinf()):
            raise WrongResultError(f"{name}: result {number} is off by {error:.1e}")
