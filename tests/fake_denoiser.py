"""Denoisers with which everything can be done by hand.

:class:`FakeDenoiser`'s predictions and influences are a table, whatever the canvas holds;
:class:`JointDenoiser`'s are the exact conditionals of a joint distribution,
:class:`ContextDenoiser`'s what a function tells from the canvas.
:class:`Cramped` makes any other one run out of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import Denoiser, DenoiserFacts, EntropyGradient, GradientRequest, Prediction

MASK = 0


class FakeDenoiser(Denoiser):
    """Logits ``table`` (L, V) by position, whatever the canvas holds; id 0 is the mask.

    Args:
        influence: (L,), the token influence score of each position.
        forwards: what a gradient says that it spent.
    """

    def __init__(
        self,
        table: Tensor,
        influence: Tensor | None = None,
        *,
        forwards: int = 0,
        bridge_scores: Tensor | None = None,
        max_length: int | None = None,
    ) -> None:
        self.table = table
        self.influence = torch.zeros(len(table)) if influence is None else influence
        self.forwards = forwards
        self.bridges = bridge_scores
        self.facts = DenoiserFacts(
            mask_id=MASK, vocab_size=table.shape[1], suppressed_ids=(MASK,), max_length=max_length
        )
        self.canvases: list[Canvas] = []
        self.keeps: list[str] = []
        self.requests: list[GradientRequest] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def embedding_table(self) -> Tensor:
        return torch.eye(self.table.shape[1])

    def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
        self.canvases.append(Canvas(canvas.ids.clone(), canvas.lengths))
        self.keeps.append(keep)
        logits = self.table[positions.clamp_min(0)].clone()
        logits[..., MASK] = -torch.inf
        return Prediction(canvas, logits, positions, keep)

    def entropy_gradient(self, prediction: Prediction, request: GradientRequest) -> EntropyGradient:
        self.requests.append(request)
        score = self.influence[request.candidates.clamp_min(0)] * (request.candidates >= 0)
        rows = (request.active >= 0).sum(dim=1)
        return EntropyGradient(
            gradient=-score.unsqueeze(-1),
            delta=torch.ones_like(score).unsqueeze(-1),
            surrogate=torch.zeros(len(score)),
            forwards=self.forwards,
            backwards=1,
            replayed_rows=rows,
            backward_rows=rows,
        )

    def bridge_scores(
        self, prediction: Prediction, request: GradientRequest, rule: str
    ) -> tuple[Tensor, int]:
        assert self.bridges is not None
        shape = (prediction.canvas.batch, -1)
        return self.bridges[: prediction.canvas.length].expand(shape), int(rule == "hidden_change")


class JointDenoiser(FakeDenoiser):
    """The ideal denoiser of a joint distribution over sequences of L ids from 1 … V − 1.

    A position is predicted from what is observed at the others, so observed positions have
    predictions too.

    Args:
        joint: probabilities (V − 1, …, V − 1), one dimension per position.
    """

    def __init__(self, joint: Tensor) -> None:
        length, ids = joint.dim(), joint.shape[0]
        super().__init__(torch.zeros(length, ids + 1, dtype=torch.float64))
        grid = torch.meshgrid(*[torch.arange(1, ids + 1)] * length, indexing="ij")
        self.sequences = torch.stack([axis.flatten() for axis in grid], dim=1)
        self.probabilities = joint.double().flatten() / joint.double().sum()

    def conditionals(self, ids: Tensor) -> Tensor:
        """p(x_j = v | the observed others), (N, L, V), for ids (N, L)."""
        agrees = (ids[:, None] == MASK) | (ids[:, None] == self.sequences)
        misses = (~agrees).sum(dim=2, keepdim=True)
        alike = misses - (~agrees).long() == 0  # where only position j itself differs
        weights = alike * self.probabilities[:, None]
        one_hot = torch.nn.functional.one_hot(self.sequences, self.facts.vocab_size).double()
        p = torch.einsum("nsl,slv->nlv", weights.double(), one_hot)
        return p / p.sum(dim=2, keepdim=True)

    def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
        self.canvases.append(Canvas(canvas.ids.clone(), canvas.lengths))
        assert not canvas.padded
        logits = self.conditionals(canvas.ids).log()
        at = positions.clamp_min(0).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        return Prediction(canvas, logits.gather(1, at), positions, keep)


class ContextDenoiser(FakeDenoiser):
    """Logits by position that ``tells`` from everything that the canvas holds."""

    def __init__(self, length: int, tells: Callable[[list[int]], list[dict[int, float]]]) -> None:
        super().__init__(torch.zeros(length, 10, dtype=torch.float64))
        self.tells = tells

    def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
        self.canvases.append(Canvas(canvas.ids.clone(), canvas.lengths))
        p = torch.zeros(*positions.shape, 10, dtype=torch.float64)
        for row, (ids, length) in enumerate(zip(canvas.ids.tolist(), canvas.lengths, strict=True)):
            told = self.tells(ids[:length])
            for slot, position in enumerate(positions[row].tolist()):
                for token, share in told[max(position, 0)].items():
                    p[row, slot, token] = share
        return Prediction(canvas, p.log(), positions, keep)


class Cramped:
    """Makes a denoiser run out of memory as soon as a call has more rows than fit."""

    def __init__(self, denoiser: Denoiser, rows: int, *methods: str) -> None:
        self.sizes: list[int] = []
        for name in methods:
            setattr(denoiser, name, self._limited(getattr(denoiser, name), rows))

    def _limited(self, method: Callable, rows: int) -> Callable:
        def limited(first, *rest: object):
            canvases = [each for each in (first, *rest) if isinstance(each, Canvas)]
            canvas = canvases[0] if canvases else first.canvas
            self.sizes.append(canvas.batch)
            if canvas.batch > rows:
                raise torch.OutOfMemoryError("no memory")
            return method(first, *rest)

        return limited


def table_of(confidences: list[float], vocabulary: int = 6) -> Tensor:
    """Logits (L, V): position k gives id 1 + k mod (V − 1) the k-th probability, others share."""
    table = torch.zeros(len(confidences), vocabulary, dtype=torch.float64)
    for k, top in enumerate(confidences):
        rest = (1 - top) / (vocabulary - 2)
        table[k, 1:] = torch.tensor(rest, dtype=torch.float64).log()
        table[k, 1 + k % (vocabulary - 1)] = torch.tensor(top, dtype=torch.float64).log()
    return table
