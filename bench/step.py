"""One BoE step of a BERT-base-shaped model, relative to one forward in the same run.

A step is the prediction at the masked positions and the entropy gradient at the midpoint:
replay on a frozen context, where the active rows A are the masked ones, a quarter of them
candidates. Replay's ideal is 1 + 2·|A|/L forwards. Against it: the naive replay, which
keeps no sparsity but the rows (keys and values merged by ``index_copy``, PyTorch's own
attention), the late-bound engine at α = 0, and dense backwards through the whole canvas
at α = 0 (one forward) and at the midpoint (two).

On a CPU replay takes its products from oneDNN, which is quicker than what PyTorch's linear
layers use. Two more rows tell what that is worth: replay with PyTorch's products, and the
forward (which denoisers leave as the model has it) with oneDNN's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.report import Target, find, print_table, print_targets, shape_text
from bench.results import Config, Measurement, Quantiles
from bench.session import Options, WrongResultError, parse_options, run_cases
from bench.timing import Call, Effort, interleave
from boe.canvas import Canvas
from boe.denoisers.adjoint import soft_canvas
from boe.denoisers.attention_modes import AttentionMode, LayerCall
from boe.denoisers.base import EntropyGradient, GradientRequest, required_keep, take_rows
from boe.denoisers.frozen_products import FrozenProducts
from boe.denoisers.transformers_model import TransformersDenoiser
from boe_kernels import _products

NAME = "step"
SLACK = 1.10
LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH = 12, 768, 12, 30_522, 512
MASK_ID = 103
FULL = Effort(seconds=40.0, least_rounds=5, most_rounds=15)
QUICK = Effort(seconds=0.2, least_rounds=2, most_rounds=3)


@dataclass(frozen=True)
class Case:
    """A canvas of ``length`` with ``active`` masks, all of whose rows are active."""

    length: int
    active: int
    layers: int = LAYERS

    @property
    def config(self) -> Config:
        return {"layers": self.layers, "width": WIDTH, "L": self.length, "A": self.active}

    @property
    def ideal(self) -> float:
        return 1 + 2 * self.active / self.length

    def __str__(self) -> str:
        return shape_text(self.config)


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case(64, 16, layers=2)]
    return [Case(LENGTH, LENGTH // share) for share in (16, 8, 4, 2, 1)]


def build_denoiser(layers: int, device: torch.device) -> TransformersDenoiser:
    """BERT of random weights: speed does not depend on them."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
    )
    torch.manual_seed(0)
    return TransformersDenoiser(BertForMaskedLM(config).to(device), MASK_ID)


@dataclass
class Step:
    """The inputs of one step, and the step in each provider's way."""

    denoiser: TransformersDenoiser
    canvas: Canvas
    positions: Tensor
    candidates: Tensor
    probes: Tensor

    @classmethod
    def of(cls, case: Case, denoiser: TransformersDenoiser) -> Step:
        generator = torch.Generator().manual_seed(case.active)
        ids = torch.randint(1000, VOCABULARY, (1, case.length), generator=generator)
        masked = torch.randperm(case.length, generator=generator)[: case.active].sort().values
        ids[0, masked] = MASK_ID
        shuffled = masked[torch.randperm(case.active, generator=generator)]
        cut = max(1, case.active // 4)
        device = denoiser.device
        return cls(
            denoiser,
            Canvas.of(ids.to(device)),
            masked.unsqueeze(0).to(device),
            shuffled[:cut].sort().values.unsqueeze(0).to(device),
            shuffled[cut:].sort().values.unsqueeze(0).to(device),
        )

    def request(self, alpha: float, active: Tensor, **options: str) -> GradientRequest:
        return GradientRequest(
            self.candidates,
            self.probes,
            active,
            alpha=alpha,
            **options,  # type: ignore[arg-type]
        )

    def forward(self) -> Tensor:
        return self.denoiser.predict(self.canvas, self.positions).logits

    def onednn_forward(self) -> Tensor:
        with FrozenProducts():
            return self.forward()

    def plain_replay(self) -> EntropyGradient:
        with patch.object(_products, "_has_onednn", lambda: False):
            return self.replay()

    def replay(self, alpha: float = 0.5) -> EntropyGradient:
        prediction = self.denoiser.predict(
            self.canvas, self.positions, required_keep("replay", False)
        )
        return self.denoiser.entropy_gradient(prediction, self.request(alpha, self.positions))

    def late(self) -> EntropyGradient:
        prediction = self.denoiser.predict(
            self.canvas, self.positions, required_keep("late", False)
        )
        request = self.request(0.0, self.positions, engine="late")
        return self.denoiser.entropy_gradient(prediction, request)

    def naive_replay(self, alpha: float = 0.5) -> Tensor:
        """Rows replayed through PyTorch's attention over merged copies of keys and values."""
        prediction = self.denoiser.predict(
            self.canvas, self.positions, required_keep("replay", False)
        )
        request = self.request(alpha, self.positions)
        with torch.no_grad():
            embeds, _ = soft_canvas(self.denoiser, prediction, request)
        leaf = take_rows(embeds, self.positions).requires_grad_()
        entropy = self.denoiser.summed_entropy(
            leaf,
            _MergeAndAttend(prediction.state.layers, self.positions[0]),
            torch.searchsorted(self.positions, self.probes),
            position_ids=self.positions,
        )
        (gradient,) = torch.autograd.grad(entropy.sum(), leaf)
        return take_rows(gradient, torch.searchsorted(self.positions, self.candidates))

    def dense(self, alpha: float) -> Tensor:
        """A backward through every row by PyTorch's attention; at α > 0 a second forward."""
        embeds = self.denoiser.embedding(self.canvas.ids)
        if alpha:
            keep = required_keep("replay", False)
            prediction = self.denoiser.predict(self.canvas, self.positions, keep)
            request = self.request(alpha, self.positions)
            with torch.no_grad():
                embeds, _ = soft_canvas(self.denoiser, prediction, request)
        leaf = embeds.detach().requires_grad_()
        # At α = 0 the one forward also serves the prediction, so its head has every row.
        rows = self.probes if alpha else self.positions
        entropy = self.denoiser.summed_entropy(leaf, _Dense(), rows, canvas=self.canvas)
        (gradient,) = torch.autograd.grad(entropy.sum(), leaf)
        return take_rows(gradient, self.candidates)


class _Dense(AttentionMode):
    """PyTorch's attention and its dense backward."""

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        return scaled_dot_product_attention(call.q, call.k, call.v, scale=call.scale)


class _MergeAndAttend(AttentionMode):
    """Live rows merged into the recorded keys and values by ``index_copy``."""

    def __init__(self, layers: list[LayerCall], rows: Tensor) -> None:
        self.layers = iter(layers)
        self.rows = rows

    def attend(self, call: LayerCall) -> Tensor:
        assert call.q is not None
        recorded = next(self.layers)
        keys = recorded.k.index_copy(2, self.rows, call.k)
        values = recorded.v.index_copy(2, self.rows, call.v)
        return scaled_dot_product_attention(call.q, keys, values, scale=call.scale)


def verify(step: Step) -> None:
    """Refuse a case in which replay is not the gradient it claims to be."""
    expected, mine = step.late().gradient, step.replay(alpha=0.0).gradient
    pairs = [
        ("replay at α = 0 against late binding", mine, expected),
        ("replay against naive replay", step.replay().gradient, step.naive_replay()),
    ]
    if step.positions.shape[1] == step.canvas.length:
        pairs.append(("replay of all rows against dense", step.replay().gradient, step.dense(0.5)))
    for what, got, right in pairs:
        error = float((got - right).norm() / right.norm())
        if not error <= 1e-3:
            raise WrongResultError(f"{what}: off by {error:.1e}")


def measure(case: Case, options: Options) -> Iterator[Measurement]:
    """Times of a forward and of each kind of step, and their ratios to the forward."""
    step = Step.of(case, build_denoiser(case.layers, options.device))
    verify(step)
    calls: dict[str, Call] = {
        "forward": step.forward,
        "forward, oneDNN": step.onednn_forward,
        "replay": step.replay,
        "replay, PyTorch's products": step.plain_replay,
        "naive_replay": step.naive_replay,
        "late, α=0": step.late,
        "dense, α=0": partial(step.dense, 0.0),
        "dense, α=0.5": partial(step.dense, 0.5),
    }
    timings = interleave(calls, options.device, QUICK if options.quick else FULL)

    def row(provider: str, metric: str, value: Quantiles) -> Measurement:
        return Measurement(NAME, provider, "step", "float32", case.config, metric, value)

    for provider, timing in timings.items():
        yield row(provider, "time_ms", timing.quantiles)
        if provider != "forward":
            yield row(f"{provider}/forward", "ratio", timing.over(timings["forward"]))


def targets(measured: list[Measurement]) -> list[Target]:
    """Replay within SLACK of its ideal, as ideal·SLACK over the measured ratio."""
    found = []
    for case in cases(quick=False):
        ratio = find(measured, "ratio", "replay/forward", "step", "float32", case.config)
        limit = case.ideal * SLACK
        margin = None if ratio is None else Quantiles.of([limit / ratio.p50])
        claim = f"replay within (1 + 2·|A|/L)·{SLACK:.2f} = {limit:.3f} forwards: {case}"
        found.append(Target(claim, 1.0, margin))
    return found


def main(argv: list[str]) -> None:
    """Run the benchmark and print its tables."""
    options = parse_options(NAME, argv)
    outcome = run_cases(options, cases(options.quick), lambda case: measure(case, options))
    print_table("Milliseconds, p50", outcome.measurements, "time_ms")
    print_table("Times one forward", outcome.measurements, "ratio")
    print_targets(targets(outcome.measurements))
    outcome.exit()


if __name__ == "__main__":
    main(sys.argv[1:])
