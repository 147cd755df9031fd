"""Token Influence Scores, gated, penalised and normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import TisScores, tis_scores
from boe_kernels.tis_scores import GATES, NORMALISATIONS, op

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
POSITIONS, WIDTH, VOCABULARY = 11, 20, 50
CANDIDATES = {
    "ragged": torch.tensor([[1, 4, 9, -1, -1], [10, 3, 2, 1, 0], [-1, 7, -1, -1, -1]]),
    "shared": torch.tensor([5, 0, 10]),
    "none": torch.zeros(0, dtype=torch.int64),
    "all padding": torch.full((3, 2), -1),
    "all positions": torch.arange(POSITIONS).flip(0),
}


@dataclass(frozen=True)
class Step:
    """What the scores of one decoding step are computed from."""

    gradient: Tensor
    delta: Tensor
    entropy: Tensor
    candidates: Tensor
    remaining: Tensor

    def __call__(self, backend: str = "auto", **options: object) -> TisScores:
        return tis_scores(
            self.gradient,
            self.delta,
            self.entropy,
            self.candidates,
            self.remaining,
            vocabulary=VOCABULARY,
            backend=backend,
            **options,
        )

    def to(self, dtype: torch.dtype) -> Step:
        return Step(
            self.gradient.to(dtype),
            self.delta.to(dtype),
            self.entropy.to(torch.promote_types(dtype, torch.float32)),
            self.candidates,
            self.remaining.to(torch.promote_types(dtype, torch.float32)),
        )


def step(candidates: str = "ragged", dtype: torch.dtype = torch.float32) -> Step:
    generator = torch.Generator().manual_seed(0)
    chosen = CANDIDATES[candidates]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = chosen.shape[-1]
    return Step(
        draw(3, count, WIDTH),
        draw(3, count, WIDTH),
        # From 0 to ln V and, by rounding, above.
        draw(3, POSITIONS).sigmoid() * math.log(VOCABULARY) * 1.1,
        chosen,
        torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64),
    ).to(dtype)


def by_hand(
    case: Step,
    dtype: torch.dtype,
    gate: str = "none",
    penalty: float = 0.0,
    floor: float = 0.0,
    anneal: bool = False,
    normalise: str = "none",
) -> TisScores:
    """Eqs. 14, 15, 18 and 19, candidate by candidate, in ``dtype``."""
    score = torch.full((3, POSITIONS), -torch.inf, dtype=dtype)
    influence = torch.zeros(3, POSITIONS, dtype=dtype)
    entropy = case.entropy.to(dtype)
    gates = (1 - entropy / math.log(VOCABULARY)).clip(0, 1)
    remaining = case.remaining.to(dtype)[:, None]
    strength = penalty * remaining if anneal else penalty
    penalties = strength * (floor * remaining - entropy).relu() ** 2
    for b, members in enumerate(case.candidates.expand(3, -1).tolist()):
        places = [place for place in members if place >= 0]
        for c, place in enumerate(members):
            if place >= 0:
                g, d = case.gradient[b, c].to(dtype), case.delta[b, c].to(dtype)
                influence[b, place] = -torch.dot(g, d)
        tis = influence[b, places]
        if places and normalise == "zscore":
            deviation = tis.std(correction=0)
            tis = (tis - tis.mean()) / (deviation if deviation > 0 else 1.0)
        elif places and normalise == "minmax":
            spread = tis.max() - tis.min()
            tis = (tis - tis.min()) / (spread if spread > 0 else 1.0)
        for place, value in zip(places, tis, strict=True):
            gated = gate == "paper" or (gate == "positive" and value > 0)
            score[b, place] = value * (gates[b, place] if gated else 1.0) - penalties[b, place]
    return TisScores(score, influence, gates, penalties * torch.ones_like(gates))


def assert_follow_definition(case: Step, backend: str, **options: object) -> None:
    actual = case(backend, **options)
    kept = torch.promote_types(case.gradient.dtype, torch.float32)
    truth, plain = (by_hand(case, dtype, **options) for dtype in (torch.float64, kept))
    # The largest partial sum that an influence may come from; a z-score divides it by less.
    products = case.gradient.double().abs() * case.delta.double().abs()
    size = largest(products.sum(dim=-1)) + largest(case.entropy) ** 2
    scored = truth.score > -torch.inf
    assert torch.equal(actual.score > -torch.inf, scored)
    for name in TisScores._fields:
        values = [getattr(result, name)[scored] for result in (actual, truth, plain)]
        assert_as_accurate(name, *values, FORWARD_FACTOR, size)
    for name in ("influence", "gate", "penalty"):
        values = [getattr(result, name) for result in (actual, truth, plain)]
        assert_as_accurate(name, *values, FORWARD_FACTOR, size)


# --- definition ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("gate", GATES)
def test_the_scores_follow_their_definition(gate, normalise, dtype, backend):
    assert_follow_definition(
        step(dtype=dtype), backend, gate=gate, normalise=normalise, penalty=0.4, floor=2.5
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_any_set_of_candidates_is_scored(candidates, normalise, backend):
    assert_follow_definition(
        step(candidates), backend, gate="paper", normalise=normalise, penalty=0.1, floor=1.0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_annealed_penalty_shrinks_with_its_weight_too(backend):
    options = {"penalty": 0.4, "floor": 2.5}
    assert_follow_definition(step(), backend, anneal=True, **options)
    annealed, plain = (step()(backend, anneal=a, **options).penalty for a in (True, False))
    assert torch.equal(annealed[0], plain[0]), "all is left of the first canvas"
    assert (annealed[1:] <= plain[1:]).all()
    assert (annealed[1:] < plain[1:]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_papers_gate_scales_negative_scores_too_and_the_positive_gate_does_not(backend):
    none, paper, positive = (step()(backend, gate=gate) for gate in ("none", "paper", "positive"))
    negative = (none.score < 0) & (none.score > -torch.inf)
    assert negative.any()
    assert torch.equal(positive.score[negative], none.score[negative])
    assert torch.equal(positive.score[~negative], paper.score[~negative])
    assert (paper.score[negative] > none.score[negative]).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_equal_influences_normalise_to_zero(normalise, backend):
    case = step("shared")
    case = replace(case, gradient=torch.ones_like(case.gradient), delta=torch.ones_like(case.delta))
    scores = case(backend, normalise=normalise).score
    assert torch.equal(scores[scores > -torch.inf], torch.zeros(9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_canvas_of_no_positions_has_no_scores(normalise, backend):
    nothing = torch.zeros(3, 0)
    scores = tis_scores(
        *(nothing[..., None], nothing[..., None], nothing, torch.zeros(3, 0).long(), torch.ones(3)),
        vocabulary=9,
        normalise=normalise,
        backend=backend,
    )
    assert scores.score.shape == (3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_candidate_is_normalised_to_zero(backend):
    case = step()
    for normalise in ("zscore", "minmax"):
        assert float(case(backend, normalise=normalise).score[2, 7]) == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_padding_may_hold_anything(normalise, backend):
    case = step()
    padding = (case.candidates < 0).unsqueeze(-1)
    spoilt = replace(
        case,
        gradient=case.gradient.masked_fill(padding, torch.nan),
        delta=case.delta.masked_fill(padding, torch.inf),
    )
    for actual, expected in zip(
        spoilt(backend, normalise=normalise), case(backend, normalise=normalise), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_nan_is_not_hidden_and_stays_in_its_canvas(normalise, backend):
    case = step()
    gradient = case.gradient.clone()
    gradient[1, 2, 3] = torch.nan
    actual = replace(case, gradient=gradient)(backend, normalise=normalise).score
    expected = case(backend, normalise=normalise).score
    # The third candidate of the second canvas; normalised, it spoils the other four.
    spoilt = [2] if normalise == "none" else [0, 1, 2, 3, 10]
    assert actual[1].isnan().nonzero().flatten().tolist() == spoilt
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_canvas_is_the_same_alone_as_in_the_batch(normalise, backend):
    case = step()
    together = case(backend, normalise=normalise, gate="positive")
    for b in range(3):
        one = slice(b, b + 1)
        alone = tis_scores(
            case.gradient[one],
            case.delta[one],
            case.entropy[one],
            case.candidates[one],
            case.remaining[one],
            vocabulary=VOCABULARY,
            normalise=normalise,
            gate="positive",
            backend=backend,
        )
        for value, whole in zip(alone, together, strict=True):
            assert torch.equal(value, whole[one])


LAYOUTS = {
    "gradient": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "delta": lambda x: x[:, :1].expand_as(x),
    "entropy": lambda x: x.T.contiguous().T,
    "candidates": lambda x: x.T.contiguous().T,
    "remaining": lambda x: torch.stack((x, x), dim=-1)[:, 0],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strided_argument_gives_the_same_as_its_contiguous_copy(name, backend):
    strided = LAYOUTS[name](getattr(step(), name))
    assert not strided.is_contiguous()
    actual = replace(step(), **{name: strided})(backend, normalise="zscore")
    expected = replace(step(), **{name: strided.contiguous()})(backend, normalise="zscore")
    for value, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-5, atol=1e-6)


# --- arguments and registration -----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"gradient": [0.0]}, {}, TypeError, "gradient must be a tensor, got list"),
        ({"gradient": torch.zeros(3, 5)}, {}, ValueError, "gradient must have 3 dimensions"),
        ({"delta": torch.zeros(3, 5, 1)}, {}, ValueError, "delta must have shape .*gradient"),
        ({"delta": step().delta.double()}, {}, TypeError, "delta must have the dtype of gradient"),
        ({"entropy": torch.zeros(2, 11)}, {}, ValueError, r"entropy must have shape \(B, P\)"),
        ({"candidates": torch.zeros(3, 4).long() - 1}, {}, ValueError, r"shape \(\.\.\., C\)"),
        ({"candidates": torch.full((3, 5), 3)}, {}, ValueError, "must not name a row twice"),
        ({"candidates": torch.arange(5) + 7}, {}, IndexError, r"rows in \[0, 11\)"),
        ({"candidates": torch.ones(11).bool()}, {}, TypeError, "candidates must be int64"),
        ({"remaining": torch.ones(2)}, {}, ValueError, r"remaining must have shape \(B,\)"),
        ({}, {"gate": "soft"}, ValueError, "gate must be one of positive, paper, none"),
        ({}, {"normalise": "rank"}, ValueError, "normalise must be one of none, zscore, minmax"),
        ({}, {"penalty": -1.0}, ValueError, r"penalty must be finite and not negative, got -1\.0"),
        ({}, {"penalty": "a"}, TypeError, "penalty must be a number, got str"),
        ({}, {"floor": math.nan}, ValueError, "floor must be finite and not negative, got nan"),
    ],
)
def test_a_wrong_argument_is_refused_and_named(changes, options, error, message):
    with pytest.raises(error, match=message):
        replace(step(), **changes)(**options)


def test_a_vocabulary_without_entropy_is_refused():
    case = step()
    with pytest.raises(ValueError, match="vocabulary must be at least 2, got 1"):
        tis_scores(
            case.gradient, case.delta, case.entropy, case.candidates, case.remaining, vocabulary=1
        )


def test_no_gradient_passes():
    case = step()
    scores = replace(case, gradient=case.gradient.requires_grad_())()
    assert not any(value.requires_grad for value in scores)


def opcheck_arguments(path: str) -> tuple[object, ...]:
    case = step()
    tensors = (case.gradient, case.delta, case.entropy, case.candidates, case.remaining)
    return (*tensors, VOCABULARY, "positive", 0.2, 0.3, True, "zscore", path)


def test_the_operator_passes_opcheck():
    torch.library.opcheck(op.forward_op.op, opcheck_arguments("library"))
