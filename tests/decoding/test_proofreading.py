"""Blocks that are read again, by hand, against every token by itself, and on shipped models."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from counted_rows import RAGGED, prompt, published, steps_of
from fake_denoiser import (
    MASK,
    ContextDenoiser,
    Cramped,
    FakeDenoiser,
    JointDenoiser,
    table_of,
)
from published_checkpoints import BLOCK_LENGTHS
from tiny_models import MASK_ID, random_words, tiny_denoiser
from torch import Tensor

from boe import Strategy, TokensPerStep, generate, sampler_from, spec_of
from boe.canvas import Canvas
from boe.decoding import Generation, Item
from boe.decoding.forwards import Forwards
from boe.decoding.proofreading import Reading, read_again
from boe.decoding.rows import Row, blocks_of
from boe.denoisers import Denoiser, Prediction, UnsupportedModel
from boe.denoisers.transformers_model import TransformersDenoiser
from boe.samplers import P2, SMC, Backtrack, Confidence, Proofread, RemdmCap, Verifier
from boe.tasks import TASKS


def read(
    denoiser: Denoiser,
    canvas: Canvas,
    given: Tensor,
    guidance: float = 0.0,
    at_once: int = 100,
    **options: Any,
) -> Reading:
    """All that is not ``given``, read again."""
    strategy = Strategy(Confidence(), proofread=Proofread(**options))
    rows = []
    for number, (ids, kept) in enumerate(zip(canvas.sequences(), given, strict=True)):
        blocks = blocks_of(~kept[: len(ids)], TokensPerStep(1), None, strategy)
        masks = sum(block.masks for block in blocks)
        rows.append(Row(Item(ids), number, str(number), kept[: len(ids)], masks, blocks))
    assert strategy.proofread is not None
    ends = [None] * len(rows)
    return read_again(
        Forwards(denoiser, guidance), strategy.proofread, rows, canvas, given, ends, at_once
    )


def first_choices(denoiser: Denoiser, ids: Tensor, written: list[int], guidance: float) -> Tensor:
    """The likeliest token at each of ``written`` beside all the others of one sequence (L,)."""
    forwards = Forwards(denoiser, guidance)
    given = torch.ones(1, len(ids), dtype=torch.bool)
    given[0, written] = False
    found = []
    for position in written:
        without = ids.clone()
        without[position] = denoiser.facts.mask_id
        where = torch.tensor([[position]])
        found.append(forwards.predict(Canvas.of(without), given, where).logits[0, 0].argmax())
    return torch.stack(found)


def texts(name: str) -> tuple[Canvas, Tensor]:
    """Sequences of two lengths without masks, and which of their tokens are given."""
    denoiser = published(name).denoiser
    decoded = generate(denoiser, [prompt(6, 7, 1), prompt(3, 5, 2)], "random", seed=3)
    canvas = Canvas.of(decoded.sequences)
    given = torch.zeros(2, 13, dtype=torch.bool)
    given[0, :6] = given[1, :3] = True
    return canvas, given


# --- by hand ---------------------------------------------------------------------------

# Each position's likeliest id is 1, which nothing combines with the other's: (1, 1) is written
# at once, and impossible. Of the sequences (2, 1) and (3, 1) the first is found first.
CONTRADICTING = torch.zeros(3, 3)
CONTRADICTING[0, 1], CONTRADICTING[1, 0], CONTRADICTING[2, 0] = 0.4, 0.31, 0.29


def contradicted(rounds: int = 3, **options: Any) -> Item:
    strategy = Strategy(Confidence(), proofread=Proofread(rounds=rounds, context="full", **options))
    canvas = torch.full((2,), MASK)
    denoiser = JointDenoiser(CONTRADICTING)
    return generate(denoiser, canvas, strategy, budget=TokensPerStep(2), trajectory=True).items[0]


def test_tokens_that_contradict_each_other_are_written_again_one_by_one() -> None:
    item = contradicted()
    assert item.ids.tolist() == [2, 1]
    assert steps_of(item) == [({0: 1, 1: 1}, [0, 1]), ({1: 1}, []), ({0: 2}, [])]
    # Three steps, and two readings of two tokens.
    assert (item.account.steps, item.account.nfe_forward) == (3, 3 + 2 * 2)
    assert item.account.flop_equiv == 7


def test_a_block_is_read_no_more_often_than_asked() -> None:
    once = contradicted(rounds=1)
    assert once.ids.tolist() == [2, 1]
    assert once.account.nfe_forward == 3 + 2


def test_a_ratio_spares_what_is_nearly_the_first_choice() -> None:
    """0.31 and 0.29 beside a 1: at temperature 1 either is drawn, and neither is a mistake."""
    denoiser, canvas = JointDenoiser(CONTRADICTING), Canvas.of(torch.tensor([3, 1]))
    given = torch.zeros(1, 2, dtype=torch.bool)
    strict, _, _ = read(denoiser, canvas, given, context="full")
    lenient, _, _ = read(denoiser, canvas, given, context="full", ratio=0.9)
    assert strict.tolist() == [[True, False]]
    assert lenient.tolist() == [[False, False]]


def test_what_is_written_as_it_was_is_not_read_again() -> None:
    """The table says the same whatever is written: a drawn token is taken back and drawn again."""
    denoiser = FakeDenoiser(table_of([0.5]))
    strategy = "confidence+tokens:temperature=1+proofread:context=full,rounds=50"
    readings = []
    for seed in range(20):
        item = generate(
            denoiser, torch.full((1,), MASK), strategy, seed=seed, trajectory=True
        ).items[0]
        drawn = [int(step.tokens) for step in item.trajectory or []]
        # It ends with the first choice, or with a token that came twice running.
        assert drawn[-1] == 1 or drawn[-1] == drawn[-2]
        assert all(a != b for a, b in pairwise(drawn[:-1]))
        repeated = len(drawn) > 1 and drawn[-1] == drawn[-2]
        assert item.account.nfe_forward == len(drawn) + len(drawn) - repeated
        readings.append(len(drawn))
    assert max(readings) > 1, "no token was taken back"


def test_what_was_given_is_never_taken_back() -> None:
    """The first token is impossible beside the second, but it was there at the start."""
    item = generate(
        JointDenoiser(CONTRADICTING), torch.tensor([1, MASK]), "confidence+proofread:context=full"
    ).items[0]
    assert item.ids[0] == 1


# --- against every token by itself ------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("name", ["llada", "dream", "sdar"])
def test_a_full_context_asks_for_every_token_by_itself(name: str, guidance: float) -> None:
    denoiser = published(name).denoiser
    canvas, given = texts(name)
    doubted, forwards, rows = read(denoiser, canvas, given, guidance, context="full")
    for row, (ids, length) in enumerate(zip(canvas.ids, canvas.lengths, strict=True)):
        written = [p for p in range(length) if not given[row, p]]
        other = first_choices(denoiser, ids[:length], written, guidance) != ids[written]
        assert doubted[row, written].tolist() == other.tolist()
        assert int(doubted[row].sum()) == int(other.sum()), "what is given or padding is doubted"
        assert forwards[row] == len(written) * (2 if guidance else 1)
    assert bool(doubted.any())
    assert not bool(rows.any())


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_frozen_context_is_exact_in_a_model_of_one_layer(guidance: float) -> None:
    """There keys and values depend on nothing but a row's own token."""
    denoiser = tiny_denoiser("bert", 1)
    canvas = Canvas.of([random_words(16, [], seed=1), random_words(11, [], seed=2)])
    given = torch.zeros(2, 16, dtype=torch.bool)
    given[:, ::3] = True
    frozen = read(denoiser, canvas, given, guidance)
    full = read(denoiser, canvas, given, guidance, context="full")
    assert torch.equal(frozen[0], full[0])
    assert bool(full[0].any())
    passes = 2 if guidance else 1
    assert frozen[1].tolist() == [passes, passes]
    assert torch.equal(frozen[2], full[1]), "a row for every forward"


def test_shifted_logits_take_two_rows_for_a_token() -> None:
    canvas, given = texts("dream")
    _, forwards, rows = read(published("dream").denoiser, canvas, given)
    assert forwards.tolist() == [1, 1]
    assert rows.tolist() == [2 * 7, 2 * 5]


def test_few_canvases_at_once_find_the_same() -> None:
    denoiser = tiny_denoiser("modernbert", 2)
    canvas = Canvas.of([random_words(16, [], seed=k) for k in range(3)])
    given = torch.zeros(3, 16, dtype=torch.bool)
    whole = read(denoiser, canvas, given)
    for ours, theirs in zip(read(denoiser, canvas, given, at_once=7), whole, strict=True):
        assert torch.equal(ours, theirs)


# --- in a decode -----------------------------------------------------------------------


def decode(name: str, sampler: str, **options: Any) -> Generation:
    return generate(
        *(published(name).denoiser, RAGGED, sampler),
        **{"budget": TokensPerStep(4), "trajectory": True, "seed": 5, **options},
    )


@pytest.mark.parametrize("name", ["llada", "dream", "sdar"])
def test_sequences_do_not_depend_on_their_batch(name: str) -> None:
    together = decode(name, "confidence+proofread")
    alone = [
        generate(
            *(published(name).denoiser, canvas, "confidence+proofread"),
            budget=TokensPerStep(4),
            trajectory=True,
            seed=5,
        ).items[0]
        for canvas in RAGGED
    ]
    taken = [len(step.remasked) for item in together.items for step in item.trajectory or []]
    assert any(taken)
    for mine, other in zip(together.items, alone, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert mine.account.steps == other.account.steps
        assert mine.account.flop_equiv == pytest.approx(other.account.flop_equiv)


@pytest.mark.parametrize("name", tuple(BLOCK_LENGTHS))
def test_the_exact_cache_changes_nothing(name: str) -> None:
    options = {"seed": 1, "temperature": 1.0}
    without = decode(name, "confidence+proofread", **options)
    cached = decode(name, "confidence+proofread", kv_cache="exact", **options)
    assert any(taken for item in without.items for _, taken in steps_of(item))
    for mine, other in zip(cached.items, without.items, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert mine.account.steps == other.account.steps
        assert mine.account.flop_equiv < other.account.flop_equiv


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("cache", ["prefix", "delayed"])
def test_caches_are_exact_in_a_model_of_one_layer(cache: str, guidance: float) -> None:
    """So they must see what was taken back."""
    canvases = [random_words(12 + k, [1, 2, 4, 6, 7, 9], seed=k) for k in range(3)]
    options = {"budget": TokensPerStep(3), "block_length": 4, "guidance": guidance}
    run = partial(generate, tiny_denoiser("bert", 1), canvases, "confidence+proofread", **options)
    without, cached = run(trajectory=True), run(kv_cache=cache)
    assert any(taken for item in without.items for _, taken in steps_of(item))
    for mine, other in zip(cached.items, without.items, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert mine.account.steps == other.account.steps


def test_a_block_is_final_once_it_is_read() -> None:
    """And no token changes that was said to be final."""
    final: dict[int, list[Tensor]] = {}

    def note(number: int, item: Item) -> None:
        final.setdefault(number, []).append(item.ids[: item.final].clone())

    result = decode("llada", "confidence+proofread", block_length=4, on_step=note)
    assert any(len(step.remasked) for item in result.items for step in item.trajectory or [])
    for number, item in enumerate(result.items):
        for seen in final[number]:
            assert torch.equal(seen, item.ids[: len(seen)])
        assert len(final[number][-1]) == len(item.ids)


END = 9


def ended_early(changes: dict[int, tuple[int, int]]) -> tuple[Item, ContextDenoiser]:
    """Eight tokens at four a step: first 5, ?, 6, END, and then sevens, surer than anything.

    Args:
        changes: by position what is written there while the first token is masked, and what
            afterwards.
    """

    def tells(ids: list[int]) -> list[dict[int, float]]:
        started, ended = ids[0] != MASK, ids[3] != MASK
        told = [(5, 0.99), (1, 0.9), (6, 0.95), (END, 0.97)]
        for position, (before, after) in changes.items():
            told[position] = after if started else before, told[position][1]
        told += [(7, 0.999 if ended else 0.6)] * 4
        return [{token: share, 4: 1 - share} for token, share in told]

    denoiser = ContextDenoiser(8, tells)
    strategy = "confidence+proofread:context=full"
    result = generate(
        *(denoiser, torch.full((8,), MASK), strategy),
        budget=TokensPerStep(4),
        stop=[[END]],
        trajectory=True,
    )
    return result.items[0], denoiser


def test_what_ended_early_is_mended_before_anything_behind_its_end() -> None:
    item, denoiser = ended_early({1: (1, 2)})
    assert steps_of(item) == [({0: 5, 1: 1, 2: 6, 3: END}, [1]), ({1: 2}, [])]
    assert item.end == 4
    assert item.ids.tolist() == [5, 2, 6, END, MASK, MASK, MASK, MASK]
    # Read were the four tokens up to the end, twice, and nothing behind it.
    assert len(denoiser.canvases) == 2 + 2 * 1
    assert [c.batch for c in denoiser.canvases] == [1, 4, 1, 4]


def test_what_is_no_end_any_more_goes_on() -> None:
    item, _ = ended_early({1: (1, 2), 3: (END, 8)})
    first, *others = steps_of(item)
    assert first == ({0: 5, 1: 1, 2: 6, 3: END}, [1, 3])
    # One by one in front of the old end, then four at once.
    assert others == [({3: 8}, []), ({1: 2}, []), (dict.fromkeys(range(4, 8), 7), [])]
    assert item.end is None


def test_a_row_that_ends_before_its_block_has_nothing_to_read() -> None:
    def ends(number: int, ids: list[int]) -> int | None:
        return 3 if len(ids) >= 8 else None

    for context in ("frozen", "full"):
        item = generate(
            *(tiny_denoiser("bert", 1), random_words(12, list(range(2, 12)), seed=1)),
            f"confidence+proofread:context={context}",
            block_length=4,
            stop_when=ends,
        ).items[0]
        assert item.end == 3


def test_logits_that_are_nan_when_read_again_are_refused() -> None:
    class Failing(FakeDenoiser):
        def predict(self, canvas: Canvas, positions: Tensor, keep: str = "nothing") -> Prediction:
            prediction = super().predict(canvas, positions, keep)
            alone = (canvas.ids == MASK).sum(dim=1) == 1
            prediction.logits[alone] = torch.nan
            return prediction

    canvas = torch.full((3,), MASK)
    options = {"sampler": "confidence+proofread:context=full", "budget": TokensPerStep(3)}
    with pytest.raises(ValueError, match="sequence 0, position 0, are NaN where it is read again"):
        generate(Failing(table_of([0.5, 0.6, 0.7])), canvas, **options)
    kept = generate(Failing(table_of([0.5, 0.6, 0.7])), canvas, failures="keep", **options)
    assert kept.failed == [0]
    assert kept.sequences[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("where", "fit"), [("predict", 1), ("predict_changed", 4)])
def test_what_does_not_fit_is_read_in_parts(where: str, fit: int) -> None:
    """Fewer canvases at once go before fewer sequences, and steps keep their batch."""
    canvases = [random_words(12 + k, [1, 2, 4, 6, 7, 9], seed=k) for k in range(5)]
    options = {"budget": TokensPerStep(3)}
    whole = generate(tiny_denoiser("bert", 1), canvases, "confidence+proofread", **options)
    denoiser = tiny_denoiser("bert", 1)
    cramped = Cramped(denoiser, fit, where)
    parts = generate(denoiser, canvases, "confidence+proofread", **options)
    tried = [size for size in cramped.sizes if size > fit]
    assert tried == ([5, 2] if where == "predict" else [30, 22, 11, 5])
    for mine, other in zip(parts.items, whole.items, strict=True):
        assert torch.equal(mine.ids, other.ids)
        assert mine.account.nfe_forward == other.account.nfe_forward


def test_a_sequence_that_does_not_fit_to_be_read_fails_alone() -> None:
    canvases = [random_words(12, [1, 2, 4], seed=k) for k in range(2)]
    denoiser = tiny_denoiser("bert", 1)
    Cramped(denoiser, 0, "predict_changed")
    with pytest.raises(torch.OutOfMemoryError):
        generate(denoiser, canvases, "confidence+proofread")
    kept = generate(denoiser, canvases, "confidence+proofread", failures="keep")
    assert kept.failed == [0, 1]
    assert not any(bool((ids == MASK_ID).any()) for ids in kept.sequences), "what is there is kept"


# --- what it is for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "before", "after"), [("sums", 4, 36), ("sums-fewshot", 4, 36), ("sudoku4", 10, 25)]
)
def test_drafts_are_mended(task: str, before: int, after: int) -> None:
    """Right answers of forty, written four at a time in confidence order (docs/evidence.md)."""
    puzzles = TASKS[task]("hard")
    items = puzzles.items(40, seed=0, split="validation")
    right = []
    for sampler in ("confidence", "confidence+proofread"):
        result = generate(
            puzzles.denoiser(), [item.canvas for item in items], sampler, budget=TokensPerStep(4)
        )
        verdicts = [
            puzzles.judge(item, ids) for item, ids in zip(items, result.sequences, strict=True)
        ]
        right.append(sum(verdict.correct for verdict in verdicts))
    assert right[0] <= before
    assert right[1] >= after


# --- options ---------------------------------------------------------------------------


def test_it_is_written_as_it_is_read() -> None:
    spec = "confidence+eb:gamma=0.5+deadline+proofread:rounds=2,ratio=0.5,context=full"
    assert spec_of(sampler_from(spec)) == spec
    plain = sampler_from("confidence+proofread")
    assert plain == Strategy(Confidence(), proofread=Proofread())
    assert "proofread" not in repr(Strategy(Confidence())), "stored results go by this text"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"ratio": 0.0}, r"ratio must be in \(0, 1\], got 0.0"),
        ({"ratio": 1.5}, r"ratio must be in \(0, 1\], got 1.5"),
        ({"context": "half"}, "context must be one of frozen, full, got 'half'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Proofread(**options)


@pytest.mark.parametrize(
    "parts",
    [
        {"which": P2()},
        {"remask": RemdmCap()},
        {"particles": SMC()},
        {"verifier": Verifier()},
        {"backtrack": Backtrack()},
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="proofread takes tokens back when a block is written"):
        Strategy(**{"which": Confidence(), "proofread": Proofread(), **parts})


def test_a_model_that_cannot_be_run_on_some_rows_needs_the_full_context() -> None:
    denoiser: TransformersDenoiser = tiny_denoiser("bert", 2)
    denoiser.replay_refusal = "its rows depend on each other"
    canvas = random_words(9, [2, 5], seed=1)
    with pytest.raises(UnsupportedModel, match="context=full"):
        generate(denoiser, canvas, "confidence+proofread")
    generate(denoiser, canvas, "confidence+proofread:context=full")
