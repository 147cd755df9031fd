"""Delayed caching: what is run, what it computes, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import published_references
import pytest
import torch
from counted_rows import RAGGED, assert_equal, prompt, published, rows_run
from published_checkpoints import MASK
from torch import Tensor

from boe import TokensPerStep, generate
from boe.canvas import Canvas
from boe.decoding import Item
from boe.decoding.kv_cache import Due, Kept, RunPlan, due_rows
from boe.denoisers import windowed
from boe.samplers import (
    Clock,
    Confidence,
    DelayedCache,
    Strategy,
)
from boe.samplers.particles import SMC
from boe_kernels import pad_rows

CLOCK = Clock(index=1, total=3, planned=3, change=1, left=2, masks=3, start=3, end=6, plan=(1,) * 3)
DECISIVE = "rho=0.6,tolerance=none,sure=none"


def reads_of(item: Item, canvas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per forward: the ids that it saw, and the positions that it was asked about."""
    ids, seen = canvas.clone(), []
    for record in item.trajectory or []:
        seen.append((ids.clone(), record.positions))
        ids[record.revealed] = record.tokens
        ids[record.remasked] = MASK
    assert torch.equal(ids, item.ids)
    return seen


def due_of(item: Item, canvas: Tensor, shift: int = 0, observes: bool = False) -> list[set[int]]:
    """The rows that each forward has to run, by the rule, from the trajectory alone.

    A policy that ``observes`` looks at the predictions of what was written, too.
    """
    due: list[set[int]] = []
    known: list[int] | None = None
    for ids, positions in reads_of(item, canvas):
        now = ids.tolist()
        if known is None:
            due.append(set(range(len(now))))
        else:
            masked = {k for k, token in enumerate(now) if token == MASK}
            changed = {k for k, token in enumerate(now) if token != known[k]}
            asked = {max(k + shift, 0) for k in positions.tolist()}
            written = set((canvas == MASK).nonzero().flatten().tolist()) if observes else set()
            due.append(masked | changed | asked | written)
        known = now
    return due


class KeptAttention:
    """The references' attention, in which rows that are not ``due`` keep the keys and values
    that they had when they last were."""

    def __init__(self, layers: int) -> None:
        self.layers, self.kept, self.call = layers, {}, 0
        self.due: set[int] = set()
        self.attention = published_references.attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        layer = self.call % self.layers
        self.call += 1
        if layer in self.kept:
            fresh = torch.tensor([row in self.due for row in range(k.shape[2])])[:, None]
            k, v = (
                torch.where(fresh, new, old)
                for old, new in zip(self.kept[layer], (k, v), strict=True)
            )
        self.kept[layer] = (k, v)
        return self.attention(q, k, v, *rest)


def entropy_of(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=-1)
    return -(p * p.clamp_min(1e-300).log()).sum(dim=-1)


# --- what is computed -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler", "block_length"),
    [
        ("llada", "confidence", None),
        ("dream", "confidence", None),
        ("mdlm", "confidence", None),
        ("dream", "confidence", 4),
        ("llada", "p2", None),
        ("dream", "remdm-cap:eta=0.3", None),
        ("llada", "remdm-rescale:eta=0.9", 6),
        ("llada", f"boe:{DECISIVE}", None),
        ("dream", f"boe:alpha=0,{DECISIVE}", 4),
        ("llada", "lookahead:context=frozen,rho=0.5", None),
    ],
)
@pytest.mark.parametrize("canvas", ["behind", "between"])
def test_steps_see_keys_and_values_from_the_forward_after_each_tokens_writing(
    name: str, sampler: str, block_length: int | None, canvas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the hand-written networks, with the rows that are due by the rule."""
    model, start = published(name), prompt(6, 9, 4)
    if canvas == "between":
        start = torch.cat([start[6:9], start[:3], start[9:], start[3:6]])
    item = generate(
        model.denoiser,
        [start],
        sampler,
        budget=TokensPerStep(2),
        block_length=block_length,
        kv_cache="delayed",
        trajectory=True,
    ).items[0]
    taken_back = sum(len(record.remasked) for record in item.trajectory)
    assert (taken_back > 0) == sampler.startswith(("p2", "remdm"))
    assert (item.account.n_backward > 0) == sampler.startswith("boe")
    attention, shift = KeptAttention(3), model.denoiser.facts.logits_shift
    monkeypatch.setattr(published_references, "attention", attention)
    valid, stale = torch.ones(1, len(start), dtype=torch.bool), 0.0
    due = due_of(item, start, shift, observes=sampler == "p2")
    for record, rows, (ids, _) in zip(item.trajectory, due, reads_of(item, start), strict=True):
        attention.due = rows
        at = (record.positions + shift).clamp_min(0)
        logits = model.logits(model.embeds(ids[None]), valid)[0, at]
        torch.testing.assert_close(
            record.entropy.double(), entropy_of(logits), rtol=1e-9, atol=1e-9
        )
        now = model.denoiser.predict(Canvas.of(ids), record.positions[None]).logits[0]
        keep = [v for v in range(now.shape[-1]) if v != MASK]
        stale = max(stale, float((now - logits)[:, keep].abs().max()))
    if name != "mdlm":  # whose adaptive norms are nearly closed at random weights
        assert stale > 1e-3, "it is an approximation"


def test_guidance_keeps_the_same_rows_of_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, start, weight = published("llada"), prompt(6, 7, 4), 0.7
    item = generate(
        model.denoiser, [start], "confidence", guidance=weight, kv_cache="delayed", trajectory=True
    ).items[0]
    branches = [KeptAttention(3), KeptAttention(3)]
    valid = torch.ones(1, len(start), dtype=torch.bool)
    due = due_of(item, start)
    for record, rows, (ids, _) in zip(item.trajectory, due, reads_of(item, start), strict=True):
        z = []
        for branch, attention in enumerate(branches):
            attention.due = rows
            monkeypatch.setattr(published_references, "attention", attention)
            shown = ids.clone()
            if branch:
                shown[start != MASK] = MASK
            z.append(model.logits(model.embeds(shown[None]), valid)[0, record.positions])
        # Both have −∞ at the mask.
        guided = torch.where(z[0] == -torch.inf, z[0], z[0] + weight * (z[0] - z[1]))
        torch.testing.assert_close(
            record.entropy.double(), entropy_of(guided), rtol=1e-9, atol=1e-9
        )
    assert item.account.nfe_forward == 2 * len(due)
    assert item.account.flop_equiv == pytest.approx(2 * sum(map(len, due)) / len(start))


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("llada", "confidence", {}),
        ("dream", "confidence", {"block_length": 4}),
        ("llada", "remdm-cap", {"seed": 5}),
        ("llada", "p2", {"seed": 5}),
        ("llada", f"boe:{DECISIVE}", {}),
        ("llada", f"boe:guidance_gradient=combined,{DECISIVE}", {"guidance": 0.7}),
        ("mdlm", "lookahead:context=frozen", {}),
        ("llada", "confidence", {"kv_cache": "prefix", "block_length": 4}),
    ],
)
def test_refreshed_at_every_forward_a_cache_is_none_at_all(
    name: str, sampler: str, options: dict[str, Any]
) -> None:
    cached = {"kv_cache": "delayed", "cache_refresh": 1, **options}
    plain = {**options, "kv_cache": "none"}
    denoiser = published(name).denoiser
    ours, theirs = (
        generate(denoiser, RAGGED, sampler, trajectory=True, budget=TokensPerStep(2), **chosen)
        for chosen in (cached, plain)
    )
    assert_equal(ours, theirs)


def test_the_first_step_is_that_of_a_decode_without_a_cache() -> None:
    denoiser = published("llada").denoiser
    ours, theirs = (
        generate(denoiser, RAGGED, "entropy", kv_cache=kind, trajectory=True)
        for kind in ("delayed", "none")
    )
    for mine, other in zip(ours.items, theirs.items, strict=True):
        assert torch.equal(mine.trajectory[0].entropy, other.trajectory[0].entropy)
        assert not torch.equal(mine.trajectory[2].entropy, other.trajectory[2].entropy)


# --- what is run and charged ----------------------------------------------------------


def test_a_forward_runs_the_masked_rows_and_those_just_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = rows_run("llada", monkeypatch)
    denoiser, canvas = published("llada").denoiser, prompt(6, 5, 4)
    item = generate(denoiser, [canvas], "confidence", kv_cache="delayed").items[0]
    expected = [11, 4 + 1, 3 + 1, 2 + 1, 1 + 1]
    assert counts == [[rows] for rows in expected]
    assert item.account.nfe_forward == 5
    assert item.account.flop_equiv == pytest.approx(sum(expected) / 11)


def test_blocks_to_come_are_run_as_masks_and_refreshes_run_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = rows_run("llada", monkeypatch)
    denoiser, canvas = published("llada").denoiser, prompt(6, 6, 4)
    options: dict[str, Any] = {"kv_cache": "delayed", "block_length": 2}
    generate(denoiser, [canvas], "confidence", **options)
    assert counts == [[12], [5 + 1], [4 + 1], [3 + 1], [2 + 1], [1 + 1]]
    counts.clear()
    generate(denoiser, [canvas], "confidence", cache_refresh=3, **options)
    assert counts == [[12], [5 + 1], [4 + 1], [12], [2 + 1], [1 + 1]]


def test_a_refreshed_prefix_cache_runs_everything_every_so_many_forwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = rows_run("llada", monkeypatch)
    denoiser, canvas = published("llada").denoiser, prompt(6, 9, 4)
    options: dict[str, Any] = {"kv_cache": "prefix", "block_length": 6, "cache_refresh": 4}
    generate(denoiser, [canvas], "confidence", **options)
    # Of the two blocks, of 6 and of 3, each begins with a whole forward of its own.
    assert counts == [[15], *[[9]] * 3, [15], [9], [15], [3], [3]]


def test_a_written_row_is_run_once_more_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, canvas = published("llada").denoiser, prompt(4, 7, 2)
    run, ran = denoiser.run, []

    def spying(embeds: Tensor, mode: Any, *args: Any, **kwargs: Any) -> Any:
        rows = getattr(mode, "rows", torch.arange(11)[None])
        ran.append(set(rows[0].tolist()))
        return run(embeds, mode, *args, **kwargs)

    monkeypatch.setattr(denoiser, "run", spying)
    item = generate(denoiser, [canvas], "entropy", kv_cache="delayed", trajectory=True).items[0]
    assert ran == due_of(item, canvas)
    for step, record in enumerate(item.trajectory[:-1]):
        written = int(record.revealed)
        assert [written in rows for rows in ran[step + 1 :]] == [
            True,
            *[False] * (len(ran) - step - 2),
        ]


@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("confidence", {}),
        ("confidence", {"cache_refresh": 3, "block_length": 4}),
        ("remdm-cap:eta=0.3", {"seed": 3}),
        # Unchanged rows lend their prediction and run nothing, each in steps of its own.
        ("mdlm:steps=30", {"seed": 3, "cache_refresh": 4}),
        ("lookum:paths=2", {"seed": 1}),
        (f"boe:{DECISIVE}", {}),
    ],
)
def test_a_sequence_gets_and_costs_in_a_batch_what_it_does_alone(
    name: str, sampler: str, options: dict[str, Any]
) -> None:
    denoiser = published(name).denoiser
    fixed = {"kv_cache": "delayed", "trajectory": True, **options}
    together = generate(denoiser, RAGGED, sampler, **fixed)
    for k, canvas in enumerate(RAGGED):
        alone = generate(denoiser, [canvas], sampler, item_ids=[k], **fixed).items[0]
        mine = together.items[k]
        assert torch.equal(mine.ids, alone.ids)
        assert mine.account.nfe_forward == alone.account.nfe_forward
        assert mine.account.flop_equiv == pytest.approx(alone.account.flop_equiv)
        for one, two in zip(mine.trajectory, alone.trajectory, strict=True):
            torch.testing.assert_close(
                one.entropy.double(), two.entropy.double(), rtol=1e-9, atol=1e-9
            )


def test_rows_that_lend_their_prediction_are_run_again_when_they_have_changed() -> None:
    """Costs by the rule: a step whose prediction was lent runs nothing and forgets nothing."""
    denoiser, canvas = published("llada").denoiser, prompt(6, 9, 4)
    options: dict[str, Any] = {"kv_cache": "delayed", "trajectory": True, "seed": 3}
    item = generate(denoiser, [canvas], "mdlm:steps=30", **options).items[0]
    records = item.trajectory
    changed = [k for k, record in enumerate(records) if len(record.revealed)]
    # Forwards: the first step's, and one after each step that wrote something.
    asked = [0, *(k + 1 for k in changed if k + 1 < len(records))]
    masks = [len(records[k].positions) for k in asked]
    written = [len(records[k - 1].revealed) for k in asked[1:]]
    with_masks = [(m, w) for m, w in zip(masks[1:], written, strict=True) if m]
    assert len(asked) < len(records)
    assert item.account.nfe_forward == 1 + len(with_masks)
    rows = len(canvas) + sum(m + w for m, w in with_masks)
    assert item.account.flop_equiv == pytest.approx(rows / len(canvas))


def test_what_changes_while_a_sequence_runs_nothing_is_run_in_its_next_forward() -> None:
    facts, cache = published("llada").denoiser.facts, DelayedCache()
    first = Canvas.of([prompt(3, 3, 1), prompt(3, 3, 2)])
    ids = first.ids.clone()
    ids[:, 4] = 1
    kept, canvas = Kept((), first.ids, (0, 0), (1, 1)), Canvas.of(ids)
    for spared in ([True, False], [False, False]):
        due = due_rows(cache, facts, canvas, kept, canvas.masked(MASK))
        assert due.tolist() == [[False] * 3 + [True] * 3] * 2
        rows = Due(pad_rows(due), [3, 3])
        plan = RunPlan.of(cache, facts, [CLOCK, CLOCK], canvas, kept, rows, spared)
        assert plan.counts == [0 if spare else 3 for spare in spared]
        assert [set(run) for run in plan.rows.tolist()] == [
            {-1} if spare else {3, 4, 5} for spare in spared
        ]
        left = plan.left(cache, canvas, kept, (), spared)
        after = due_rows(cache, facts, canvas, left, canvas.masked(MASK))
        assert after[:, 4].tolist() == spared
        assert left.since == tuple(1 if spare else 2 for spare in spared)


# --- what goes wrong in between -------------------------------------------------------


@pytest.mark.parametrize("kv_cache", ["prefix", "delayed"])
def test_a_forward_that_ran_out_of_memory_half_way_leaves_no_trace(
    kv_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some layers' keys and values were written already when the step is made again."""
    denoiser, attention, calls = published("llada").denoiser, windowed.active_row_attention, 0
    options: dict[str, Any] = {"kv_cache": kv_cache, "trajectory": True, "block_length": 6}
    undisturbed = generate(denoiser, RAGGED, "confidence", **options)

    def scarce(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:  # the third forward of some rows, in its second layer of three
            raise torch.OutOfMemoryError("too much")
        return attention(*args, **kwargs)

    monkeypatch.setattr(windowed, "active_row_attention", scarce)
    disturbed = generate(denoiser, RAGGED, "confidence", **options)
    assert calls > 8
    for mine, other in zip(disturbed.items, undisturbed.items, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert mine.account.flop_equiv == pytest.approx(other.account.flop_equiv)
        for one, two in zip(mine.trajectory, other.trajectory, strict=True):
            torch.testing.assert_close(
                one.entropy.double(), two.entropy.double(), rtol=1e-9, atol=1e-9
            )


def test_particles_start_anew_when_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = rows_run("llada", monkeypatch)
    strategy = Strategy(Confidence(), particles=SMC(2, every=3), cache=DelayedCache())
    canvas = prompt(4, 6, 3)
    item = generate(published("llada").denoiser, [canvas], strategy, temperature=1.0).items[0]
    assert bool((item.ids != MASK).all())
    assert counts == [[rows] * 2 for rows in (10, 5 + 1, 4 + 1, 10, 2 + 1, 1 + 1)]
