"""Going back to a guess, against a search in plain Python and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from counted_rows import RAGGED, assert_equal, published, rows_run, steps_of
from fake_denoiser import MASK, ContextDenoiser
from published_checkpoints import BLOCK_LENGTHS
from torch import Tensor

import boe
from boe import Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.canvas import Canvas
from boe.decoding import Item
from boe.decoding.kv_cache import Kept
from boe.denoisers import Prediction
from boe.evaluate.record import decode
from boe.evaluate.settings import Setting
from boe.evaluate.study import Cell
from boe.samplers import SMC, Backtrack, Confidence, RemdmCap, Threshold, Verifier
from boe.tasks import TASKS

TASK = TASKS["countdown"]("hard")

Broken = Callable[[list[int]], bool]


def rule(broken: Broken) -> Callable[[Canvas], Tensor]:
    return lambda canvas: torch.tensor(
        [broken(ids.tolist()[:n]) for ids, n in zip(canvas.ids, canvas.lengths, strict=True)]
    )


def search(
    denoiser: ContextDenoiser, broken: Broken, length: int = 3, per_step: int = 1, **options
) -> Item:
    strategy = Strategy(Confidence(), backtrack=Backtrack(rule(broken), **options))
    canvas = torch.full((length,), MASK)
    budget = TokensPerStep(per_step)
    return generate(denoiser, canvas, strategy, budget=budget, trajectory=True).items[0]


# --- by hand ---------------------------------------------------------------------------


def chain(ids: list[int]) -> list[dict[int, float]]:
    """Id 1 or 2 in front, then certainly 3; after a 1 certainly 4 at the end, after a 2 5."""
    last = {1: {4: 1.0}, 2: {5: 1.0}}.get(ids[0], {4: 0.5, 5: 0.5})
    return [{1: 0.7, 2: 0.3}, {3: 1.0} if ids[0] else {3: 0.6, 6: 0.4}, last]


def test_what_follows_a_wrong_guess_is_taken_back_and_the_only_other_token_takes_its_place() -> (
    None
):
    denoiser = ContextDenoiser(3, chain)
    item = search(denoiser, lambda ids: ids[2] == 4)
    # Writing the 4 would break the rule: the guess of the 1 goes, and with it the 3.
    assert steps_of(item) == [({0: 1}, []), ({1: 3}, []), ({0: 2}, [1]), ({1: 3}, []), ({2: 5}, [])]
    assert item.ids.tolist() == [2, 3, 5]
    assert item.account.nfe_forward == item.account.steps == 5


def test_a_guess_that_breaks_the_rule_at_once_costs_no_second_forward() -> None:
    def three(ids: list[int]) -> list[dict[int, float]]:
        return [{1: 0.5, 2: 0.3, 3: 0.2}, {4: 0.4, 5: 0.35, 6: 0.25}]

    denoiser = ContextDenoiser(2, three)
    item = search(denoiser, lambda ids: ids[0] == 1, length=2)
    # Without the 1, position 0 has 0.6 and 0.4 for the others: it is still the surest.
    assert steps_of(item) == [({}, []), ({0: 2}, []), ({1: 4}, [])]
    assert item.account.nfe_forward == 2
    assert len(denoiser.canvases) == 2


def test_of_tokens_written_together_the_least_probable_is_excluded() -> None:
    def pair(ids: list[int]) -> list[dict[int, float]]:
        return [{1: 0.9, 2: 0.1}, {3: 0.6, 4: 0.2, 5: 0.2}, {6: 1.0}]

    item = search(ContextDenoiser(3, pair), lambda ids: ids[:2] == [1, 3], per_step=3)
    assert steps_of(item) == [({}, []), ({0: 1, 1: 4, 2: 6}, [])]


def test_what_the_model_is_sure_of_against_the_search_is_taken_for_wrong_without_a_rule() -> None:
    def stubborn(ids: list[int]) -> list[dict[int, float]]:
        if ids[0] == 0:
            return [{1: 0.6, 2: 0.4}, {3: 0.5, 4: 0.3, 5: 0.2}, {6: 0.5, 7: 0.5}]
        if ids[0] == 2:
            return [{2: 1.0}, {4: 1.0}, {6: 1.0}]
        # With a 1 in front the model wants the 3 that the rule forbids, the more it knows.
        share = 0.97 if ids[2] else 0.9
        return [{1: 1.0}, {3: share, 4: 0.6 - 0.6 * share, 5: 0.4 - 0.4 * share}, {6: 0.8, 7: 0.2}]

    def broken(ids: list[int]) -> bool:
        return ids[1] == 3

    steps = steps_of(search(ContextDenoiser(3, stubborn), broken, sure=0.95))
    # The 3 is refused; behind the guesses of 6 and 7 it has 0.97 again, so both are wrong, and
    # so is the 1 before them.
    assert steps[:3] == [({0: 1}, []), ({}, []), ({2: 6}, [])]
    assert steps[3:] == [({2: 7}, []), ({0: 2}, [2]), ({1: 4}, []), ({2: 6}, [])]
    patient = search(ContextDenoiser(3, stubborn), broken, sure=0.99)
    assert patient.ids.tolist() == [1, 4, 6]


def test_after_as_many_returns_as_the_limit_allows_the_decode_ends_without_the_rule() -> None:
    def open_to_all(ids: list[int]) -> list[dict[int, float]]:
        return [{token: (10 - token) / 45 for token in range(1, 10)}] * len(ids)

    for limit in (1, 2, 5):
        item = search(ContextDenoiser(3, open_to_all), lambda ids: ids[0] > 0, limit=limit)
        assert sum(not written for written, _ in steps_of(item)) == limit
        assert item.ids.tolist() == [1 + limit, 1, 1]


def test_what_is_broken_from_the_start_is_decoded_all_the_same() -> None:
    item = search(ContextDenoiser(3, chain), lambda ids: True, limit=4)
    assert MASK not in item.ids.tolist()


def test_what_was_certain_is_doubted_once_no_guess_is_left() -> None:
    def surer(ids: list[int]) -> list[dict[int, float]]:
        return [{1: 0.999, 2: 0.001}, {3: 0.97, 4: 0.03}, {5: 0.99, 6: 0.01}]

    # Nothing is a guess at 0.95; at 0.995 the 3 and the 5 are, and the 3 came last.
    denoiser = ContextDenoiser(3, surer)
    assert search(denoiser, lambda ids: ids[1] == 3).ids.tolist() == [1, 4, 5]
    item = search(denoiser, lambda ids: ids[1] > 0 and ids[2] == 5)
    assert steps_of(item)[:2] == [({0: 1}, []), ({2: 5}, [])]
    assert item.ids.tolist() == [1, 3, 6]
    item = search(denoiser, lambda ids: ids[1] > 0 and ids[0] == 1)
    assert item.ids.tolist()[0] == 2, "the surest goes last"


def test_the_only_token_that_is_allowed_is_no_guess() -> None:
    def last_choice(ids: list[int]) -> list[dict[int, float]]:
        # So far from 0 float32 makes less than 1 of the share of the only token.
        return [{1: 0.6, 2: 0.4}, {3: 5e-20}]

    item = search(ContextDenoiser(2, last_choice), lambda ids: True, length=2, sure=1.0)
    assert item.ids.tolist() == [2, 3]


def test_what_is_final_does_not_change_any_more() -> None:
    finals: list[tuple[int, list[int]]] = []

    def note(_: int, item: Item) -> None:
        finals.append((item.final, item.ids.tolist()))

    strategy = Strategy(Confidence(), backtrack=Backtrack(rule(lambda ids: ids[2] == 4)))
    canvas = torch.full((3,), MASK)
    item = generate(ContextDenoiser(3, chain), canvas, strategy, on_step=note).items[0]
    for final, ids in finals:
        assert ids[:final] == item.ids.tolist()[:final]
    # While the guess of the first id can be taken back nothing is final, then what is written.
    assert [final for final, _ in finals] == [0, 0, 1, 2, 3]


# --- against a search in plain Python --------------------------------------------------


@dataclass
class PlainSearch:
    """The docstring of :class:`Backtrack`, for one sequence of Countdown."""

    ids: Tensor
    limit: int
    sure: float
    threshold: float
    excluded: list[tuple[int, int]] = field(default_factory=list)
    stack: list[tuple[Tensor, list[tuple[int, int]], int, int, bool, float]] = field(
        default_factory=list
    )
    forwards: int = 0
    returns: int = 0
    lent: Tensor | None = None

    def run(self) -> None:
        denoiser = TASK.denoiser()
        mask = denoiser.facts.mask_id
        while (self.ids == mask).any():
            if self.lent is None:
                self.forwards += 1
                canvas = Canvas.of(self.ids[None])
                everywhere = torch.arange(len(self.ids))[None]
                self.lent = denoiser.predict(canvas, everywhere).logits[0]
            logits, self.lent = self.lent, None
            masks = [k for k, token in enumerate(self.ids.tolist()) if token == mask]
            raw = logits.float().softmax(dim=-1)
            left = logits.clone()
            for position, token in self.excluded:
                left[position, token] = -torch.inf
            p = left.float().softmax(dim=-1)
            refuted = any(
                sum(float(raw[k, t]) for at, t in self.excluded if at == k) >= self.sure
                for k in masks
            )
            surest = sorted(masks, key=lambda k: -float(p[k].max()))
            chosen = [k for k in surest if p[k].max() >= self.threshold] or surest[:1]
            before, after = self.ids, self.ids.clone()
            for k in chosen:
                after[k] = p[k].argmax()
            least = min(chosen, key=lambda k: float(p[k].max()))
            top = p[least].sort(descending=True).values
            if not refuted and top[1] > 0 and top[0] < 1 and self.returns < self.limit:
                settled = bool(top[1] / top[1:].sum() >= self.sure)
                token, share = int(after[least]), float(top[0])
                self.stack.append((before, list(self.excluded), least, token, settled, share))
            wrong = refuted or self.violated(after)
            if not (wrong and self.stack and self.returns < self.limit):
                self.ids = after
                continue
            while wrong and self.stack and self.returns < self.limit:
                doubt = 1 - self.sure
                while not any(one[-1] < 1 - doubt for one in self.stack):
                    doubt /= 10
                while self.stack[-1][-1] >= 1 - doubt:
                    self.stack.pop()
                self.ids, self.excluded, position, token, settled, _ = self.stack.pop()
                self.returns += 1
                self.excluded = [*self.excluded, (position, token)]
                present = torch.equal(self.ids, before)
                wrong = False
                if settled:
                    others = logits[position].clone() if present else self.again(position)
                    for at, other in self.excluded:
                        if at == position:
                            others[other] = -torch.inf
                    self.ids = self.ids.clone()
                    self.ids[position] = others.argmax()
                    wrong = self.violated(self.ids)
                elif present:
                    self.lent = logits

    def again(self, position: int) -> Tensor:
        """The logits at a position, seen before: not counted."""
        canvas, everywhere = Canvas.of(self.ids[None]), torch.arange(len(self.ids))[None]
        return TASK.denoiser().predict(canvas, everywhere).logits[0, position].clone()

    def violated(self, ids: Tensor) -> bool:
        return bool(TASK.violated(Canvas.of(ids[None]))[0])


@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_countdown_is_decoded_as_by_a_search_in_plain_python(threshold: float) -> None:
    items = TASK.items(24, 3, "validation")
    backtrack = Backtrack(TASK.violated, limit=12, sure=0.9)
    strategy = Strategy(Confidence(), count=Threshold(threshold), backtrack=backtrack)
    canvases = [item.canvas for item in items]
    result = generate(TASK.denoiser(), canvases, strategy)
    went_back = 0
    for canvas, item in zip(canvases, result.items, strict=True):
        plain = PlainSearch(canvas.clone(), 12, 0.9, threshold)
        plain.run()
        assert torch.equal(plain.ids, item.ids)
        assert plain.forwards == item.account.nfe_forward
        went_back += plain.returns > 0
    assert went_back > 12


def test_more_countdown_is_solved_than_without() -> None:
    items = TASK.items(60, 1, "validation")
    right = []
    for sampler in ("threshold", "threshold+backtrack"):
        records = decode(TASK.denoiser(), TASK, items, Cell(sampler, Setting(1), 0, sampler))
        right.append(sum(record.correct for record in records))
    assert right[1] > right[0] + 20


# --- with everything else --------------------------------------------------------------

SEARCHES = ("confidence", "boe:tolerance=none,sure=none,rho=0.6", "overlap+deadline", "klass")


@pytest.mark.parametrize("sampler", SEARCHES)
@pytest.mark.parametrize("per_step", [1, 3])
def test_each_row_of_a_batch_is_decoded_as_if_it_were_alone(sampler: str, per_step: int) -> None:
    items = TASK.items(6, 5, "validation")
    strategy = Strategy.of(sampler_from(f"{sampler}+backtrack:limit=8")).keeping_to(TASK.violated)
    canvases = [item.canvas for item in items]
    options = {"budget": TokensPerStep(per_step), "trajectory": True, "temperature": 0.7}
    together = generate(TASK.denoiser(), canvases, strategy, **options)
    assert any(len(r.remasked) for item in together.items for r in item.trajectory)
    for number, canvas in enumerate(canvases):
        alone = generate(TASK.denoiser(), canvas, strategy, item_ids=[number], **options).items[0]
        mine = together.items[number]
        assert torch.equal(mine.ids, alone.ids)
        assert mine.account.steps == alone.account.steps


class Bursts:
    """A rule that calls everything wrong three times in a row, every so often: decodes go back
    by three guesses, into blocks that were done."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, canvas: Canvas) -> Tensor:
        self.calls += 1
        return torch.full((canvas.batch,), self.calls % 9 >= 6)


def searching(sampler: str) -> Strategy:
    """Every token is a guess."""
    strategy = Strategy.of(sampler_from(f"{sampler}+backtrack:limit=10,sure=1"))
    return strategy.keeping_to(Bursts())


def went_far_back(item: Item) -> bool:
    return any(len(taken) > 3 for _, taken in steps_of(item))


@pytest.mark.parametrize("sampler", SEARCHES[:2])
@pytest.mark.parametrize("name", tuple(BLOCK_LENGTHS))
def test_the_exact_cache_finds_what_recomputing_finds(name: str, sampler: str) -> None:
    denoiser = published(name).denoiser
    options = {"trajectory": True, "budget": TokensPerStep(2)}
    without = generate(denoiser, RAGGED, searching(sampler), **options)
    assert all(went_far_back(item) for item in without.items[:2])
    cached = generate(denoiser, RAGGED, searching(sampler), kv_cache="exact", **options)
    for ours, theirs in zip(cached.items, without.items, strict=True):
        assert steps_of(ours) == steps_of(theirs)
        assert torch.equal(ours.ids, theirs.ids)


def test_what_is_kept_for_rows_that_go_back_is_run_again() -> None:
    kept = Kept((), None, leading=(8, 8, 4), since=(3, 2, 1))
    back = kept.back_to({0: 4, 2: 6})
    assert back.leading == (4, 8, 4)
    assert back.since == (0, 2, 0)


@pytest.mark.parametrize("cache", ["prefix", "delayed"])
def test_a_forward_after_a_return_is_whole_with_the_caches_that_approximate(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llada"
    counts = rows_run(name, monkeypatch)
    canvas = RAGGED[0]
    item = generate(
        published(name).denoiser,
        canvas,
        searching("confidence"),
        budget=TokensPerStep(2),
        block_length=4,
        kv_cache=cache,
        trajectory=True,
    ).items[0]
    steps = steps_of(item)
    assert went_far_back(item)
    # A step that neither writes nor takes back lends its logits to the next.
    asking = [True] + [bool(written or taken) for written, taken in steps[:-1]]
    forwards = iter(counts)
    for asks, (_, taken) in zip(asking, [({}, []), *steps[:-1]], strict=True):
        if asks:
            rows = next(forwards)
            assert rows == [len(canvas)] or not taken
    assert next(forwards, None) is None
    assert min(counts) < [len(canvas)]


def test_a_batch_that_does_not_fit_goes_on_in_halves_with_the_same_results() -> None:
    class Small(ContextDenoiser):
        def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
            if canvas.batch > 1 and (canvas.ids != MASK).sum() > 3:
                raise torch.OutOfMemoryError("too many")
            return super().predict(canvas, positions, keep)

    canvases = torch.full((3, 3), MASK)
    strategy = Strategy(Confidence(), backtrack=Backtrack(rule(lambda ids: ids[2] == 4)))
    split = generate(Small(3, chain), canvases, strategy, trajectory=True)
    assert_equal(split, generate(ContextDenoiser(3, chain), canvases, strategy, trajectory=True))


# --- options ---------------------------------------------------------------------------


def test_specifications_name_its_options() -> None:
    strategy = sampler_from("threshold:value=0.99+backtrack:limit=7,sure=0.9")
    assert strategy.backtrack == Backtrack(limit=7, sure=0.9)
    assert spec_of(strategy) == "confidence+threshold:value=0.99+backtrack:limit=7,sure=0.9"
    assert "backtrack" not in repr(Strategy(Confidence()))


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Backtrack(limit=0)
    with pytest.raises(ValueError, match=r"sure must be in \(0, 1\], got 1.5"):
        Backtrack(sure=1.5)
    with pytest.raises(ValueError, match=r"backtrack needs a rule, and this decode has no task"):
        generate(ContextDenoiser(3, chain), torch.full((3,), MASK), "confidence+backtrack")
    with pytest.raises(ValueError, match="backtrack needs a policy that ranks positions; mdlm"):
        sampler_from("mdlm+backtrack")
    with pytest.raises(ValueError, match="backtrack does not go with remask='remdm-cap'"):
        Strategy(Confidence(), remask=RemdmCap(), backtrack=Backtrack())
    for other in ({"verifier": Verifier()}, {"particles": SMC(every=2)}):
        with pytest.raises(ValueError, match="it does not go with verified"):
            Strategy(Confidence(), backtrack=Backtrack(), **other)


def test_a_rule_that_was_given_is_kept() -> None:
    own = rule(lambda ids: False)
    strategy = Strategy(Confidence(), backtrack=Backtrack(own)).keeping_to(TASK.violated)
    assert strategy.backtrack.violated is own
    missing = Strategy(Confidence(), verifier=Verifier()).keeping_to(own)
    assert missing == replace(missing, verifier=Verifier(own))
    assert boe.Strategy(Confidence()).keeping_to(own) == boe.Strategy(Confidence())
