"""How much attention the keys of a canvas get from given query rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from allocations import AllocationRecorder
from dense_attention import DTYPES, random_qkv, visible_keys
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import active_query_forward, attention_mass
from boe_kernels.attention_mass import op

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

BACKENDS = ("library", "reference")
# Rows of three canvases: some, one, none; padding anywhere.
RAGGED = torch.tensor([[5, -1, 1, 13, -1], [-1, -1, 7, -1, -1], [-1, -1, -1, -1, -1]])


def blind_canvas(length: int) -> Tensor:
    """Real keys of three canvases: one lacks a few, one has none, one has all."""
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[0, [0, 5, length - 1]] = False
    mask[1] = False
    return mask


def scores(
    q: Tensor, k: Tensor, scale: float, visible: Tensor, key_bias: Tensor | None = None
) -> Tensor:
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    s = (q @ keys.transpose(-1, -2)) * scale
    if key_bias is not None:
        s = s + key_bias.to(q.dtype)[:, None, None]
    return s.masked_fill(~visible, -torch.inf)


@dataclass(frozen=True)
class Problem:
    """Query rows of a canvas with the log-sum-exps of their attention."""

    q_rows: Tensor
    k: Tensor
    lse_rows: Tensor
    weights: Tensor | None
    rows: Tensor
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        rows: Tensor,
        batch: int = 2,
        heads: tuple[int, int] = (2, 1),
        length: int = 40,
        width: int = 8,
        dtype: torch.dtype = torch.float32,
        weighted: bool = False,
        mask: Tensor | None = None,
        scale: float = 0.3,
        bias: Tensor | None = None,
        **hidden: int,
    ) -> Problem:
        q, k, *_ = random_qkv(batch, heads, length, None, width, dtype)
        rows = rows.expand(batch, -1)
        q_rows = torch.stack([q[b][:, members] for b, members in enumerate(rows.clamp_min(0))])
        options = {"key_padding_mask": mask, "key_bias": bias, "scale": scale, **hidden}
        weights = None
        if weighted:
            generator = torch.Generator().manual_seed(2)
            weights = torch.randn(rows.shape, generator=generator)
        case = cls(q_rows, k, torch.empty(0), weights, rows, options)
        s = scores(q_rows.double(), k.double(), scale, case.visible(), bias)
        kept = torch.promote_types(dtype, torch.float32)
        return replace(case, lse_rows=s.logsumexp(dim=-1).to(kept))

    def visible(self) -> Tensor:
        hidden = (self.options.get(name) for name in ("window", "block_size"))
        mask = self.options["key_padding_mask"]
        return visible_keys(self.rows.clamp_min(0), self.k.shape[2], mask, *hidden)

    def run(self, backend: str = "auto") -> Tensor:
        return attention_mass(
            self.q_rows,
            self.k,
            self.lse_rows,
            self.weights,
            row_idx=self.rows,
            backend=backend,
            **self.options,
        )

    def by_hand(self, dtype: torch.dtype) -> Tensor:
        """Row by row, in ``dtype``."""
        scale, bias = self.options["scale"], self.options["key_bias"]
        s = scores(self.q_rows.to(dtype), self.k.to(dtype), scale, self.visible(), bias)
        mass = torch.zeros(self.k.shape[0], self.k.shape[2], dtype=dtype)
        for b, members in enumerate(self.rows.tolist()):
            for r, row in enumerate(members):
                if row < 0:
                    continue
                weight = 1.0 if self.weights is None else self.weights[b, r].item()
                for h, lse in enumerate(self.lse_rows[b, :, r].to(dtype)):
                    if lse > -torch.inf:
                        mass[b] += weight * (s[b, h, r] - lse).exp()
        return mass

    def check(self, backend: str) -> None:
        actual, dtype = self.run(backend), torch.promote_types(self.k.dtype, torch.float32)
        q, k = self.q_rows.double(), self.k.double()
        # exp turns the rounding of a score into as many roundings of a probability.
        size = max(1.0, largest(q.abs().sum(-1)) * largest(k) * abs(self.options["scale"]))
        count = self.rows.shape[1] * q.shape[1]
        truth, plain = self.by_hand(torch.float64), self.by_hand(dtype)
        assert_as_accurate("mass", actual, truth, plain, FORWARD_FACTOR, size * count)

    def with_padding(self, junk: float) -> Problem:
        padding = self.rows < 0
        return replace(
            self,
            q_rows=self.q_rows.masked_fill(padding[:, None, :, None], junk),
            lse_rows=self.lse_rows.masked_fill(padding[:, None], junk),
            weights=self.weights.masked_fill(padding, junk),
        )

    def strided(self) -> Problem:
        def apart(x: Tensor) -> Tensor:
            return torch.stack([x, x], dim=-1)[..., 0]

        q_rows = self.q_rows.transpose(1, 2).contiguous().transpose(1, 2)
        inputs = map(apart, (self.k, self.lse_rows, self.weights, self.rows))
        return Problem(q_rows, *inputs, self.options)

    def canvas(self, b: int) -> Problem:
        one = slice(b, b + 1)
        mask = self.options["key_padding_mask"]
        return Problem(
            self.q_rows[one],
            self.k[one],
            self.lse_rows[one],
            self.weights[one],
            self.rows[one],
            {**self.options, "key_padding_mask": None if mask is None else mask[one]},
        )


# --- definition ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 129], ids="L={}".format)
def test_the_mass_is_what_its_definition_says(length, dtype, backend):
    case = Problem.of(torch.arange(0, length, 3), heads=(4, 2), length=length, dtype=dtype)
    case.check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "restrictions",
    [
        {},
        {"mask": blind_canvas(40)},
        {"window": 5},
        {"block_size": 9},
        {"mask": blind_canvas(40), "window": 3, "block_size": 4},
        {"scale": -0.4},
    ],
    ids=["none", "padding", "window", "blocks", "all of them", "negative scale"],
)
def test_ragged_rows_are_right_whatever_hides_keys(restrictions, weighted, backend):
    Problem.of(RAGGED, batch=3, heads=(4, 2), weighted=weighted, **restrictions).check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mass_of_all_rows_sums_to_their_number(backend):
    case = Problem.of(torch.arange(40), heads=(4, 2))
    torch.testing.assert_close(case.run(backend).sum(dim=1), torch.full((2,), 4 * 40.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_rows_than_a_block_holds_are_right(backend):
    Problem.of(torch.arange(150), length=150, batch=1).check(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_positions_are_right(backend):
    case = Problem.of(torch.arange(7))
    actual = attention_mass(
        case.q_rows, case.k, case.lse_rows, scale=case.options["scale"], backend=backend
    )
    assert torch.equal(actual, case.run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_no_mass(backend):
    case = Problem.of(torch.zeros(0, dtype=torch.int64))
    assert torch.equal(case.run(backend), torch.zeros(2, 40))


def test_it_takes_what_the_forward_of_attention_leaves():
    q, k, v, _ = random_qkv(heads=(4, 2), length=30)
    _, lse = active_query_forward(q, k, v)
    rows = torch.tensor([[3, 7], [29, -1]])
    take = rows.clamp_min(0)
    q_rows, lse_rows = (
        torch.stack([x[b][:, members] for b, members in enumerate(take)]) for x in (q, lse)
    )
    actual = attention_mass(q_rows, k, lse_rows, row_idx=rows)
    torch.testing.assert_close(actual.sum(dim=1), torch.tensor([8.0, 4.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_what_padding_holds_does_not_matter(junk, backend):
    case = Problem.of(RAGGED, batch=3, weighted=True)
    assert torch.equal(case.with_padding(junk).run(backend), case.run(backend))


# --- memory and repetition ----------------------------------------------------------


def test_the_scores_of_one_block_of_rows_are_all_that_is_held():
    case = Problem.of(torch.arange(512), batch=1, heads=(4, 2), length=512)
    with AllocationRecorder((case.q_rows, case.k, case.lse_rows)) as recorder:
        case.run("library")
    size, what = recorder.largest()
    assert size <= 4 * 64 * 512, what


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_give_the_same_as_their_copies(backend):
    case = Problem.of(RAGGED, batch=3, weighted=True)
    assert torch.equal(case.strided().run(backend), case.run(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated_runs_give_the_same_bits_and_so_does_a_canvas_alone(backend):
    case = Problem.of(RAGGED, batch=3, heads=(4, 2), weighted=True, mask=blind_canvas(40))
    together = case.run(backend)
    assert torch.equal(case.run(backend), together)
    for b in range(3):
        assert torch.equal(case.canvas(b).run(backend), together[b : b + 1])


# --- in PyTorch ---------------------------------------------------------------------


def test_the_operator_passes_opcheck():
    case = Problem.of(RAGGED, batch=3, weighted=True, mask=blind_canvas(40))
    inputs = (case.q_rows, case.k, case.lse_rows, case.weights, case.rows)
    torch.library.opcheck(op.forward_op.op, (*inputs, blind_canvas(40), 0.3, 5, None, "library"))


def test_it_compiles_into_one_graph(fresh_compiler):
    case = Problem.of(RAGGED, batch=3, weighted=True, window=5)
    compiled = torch.compile(case.run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), case.run())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_passes(backend):
    case = Problem.of(torch.arange(3))
    leaves = [x.requires_grad_() for x in (case.q_rows, case.k, case.lse_rows)]
    assert all(x.requires_grad for x in leaves)
    assert not case.run(backend).requires_grad


# --- bad input ----------------------------------------------------------------------


def arguments(**changes: object) -> dict[str, Any]:
    case = Problem.of(torch.arange(3))
    given = {"q_rows": case.q_rows, "k": case.k, "lse_rows": case.lse_rows, "row_idx": case.rows}
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q_rows": 1}, TypeError, "q_rows must be a tensor, got int"),
        ({"q_rows": torch.zeros(2, 2, 3)}, ValueError, "q_rows must have 4 dimensions"),
        ({"k": torch.zeros(2, 3, 40, 8)}, ValueError, "multiple of those of k, got 2 and 3"),
        ({"k": torch.zeros(2, 1, 40, 8).double()}, TypeError, "k must have the dtype of q_rows"),
        ({"lse_rows": torch.zeros(2, 2, 4)}, ValueError, "lse_rows must have shape .B, Hq, S."),
        ({"lse_rows": torch.zeros(2, 2, 3).long()}, TypeError, "lse_rows must be float64"),
        ({"weights": torch.zeros(3)}, ValueError, "weights must have shape .B, S."),
        ({"weights": [1.0]}, TypeError, "weights must be a tensor, got list"),
        ({"row_idx": torch.arange(4)}, ValueError, "row_idx must have shape"),
        ({"row_idx": torch.tensor([0, 1, 40])}, IndexError, r"row_idx must hold rows in \[0, 40\)"),
        ({"row_idx": torch.tensor([0, 1, 1])}, ValueError, "row_idx must not name a row twice"),
        ({"row_idx": torch.ones(40, dtype=torch.bool)}, TypeError, "row_idx must be int64"),
        ({"key_padding_mask": torch.ones(2, 40)}, TypeError, "key_padding_mask must be bool"),
        ({"window": -1}, ValueError, "window must be at least 0, got -1"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"row_idx": None, "window": 2}, ValueError, "row_idx is needed with window"),
        ({"row_idx": None, "block_size": 2}, ValueError, "row_idx is needed with block_size"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    given = arguments(**changes)
    with pytest.raises(error, match=message):
        attention_mass(given.pop("q_rows"), given.pop("k"), given.pop("lse_rows"), **given)


def test_the_scale_is_one_over_the_root_of_the_head_dimension_by_default():
    given = arguments()
    actual = attention_mass(**given)
    assert torch.equal(actual, attention_mass(**given, scale=1 / math.sqrt(8)))
