"""Stop patterns: when a sequence ends, and what was paid until then."""

from __future__ import annotations

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from torch import Tensor

from boe import BoE, TokensPerStep, generate

# Position k writes id 1 + k mod 5; from left to right, but for position 2, which comes last.
CONFIDENCES = [0.9, 0.85, 0.3, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5]


def decode(stop: list[list[int]], canvas: Tensor | None = None, **options: object):
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    canvas = torch.full((10,), MASK) if canvas is None else canvas
    return generate(denoiser, canvas, "confidence", stop=stop, trajectory=True, **options).items


def test_a_sequence_ends_once_everything_up_to_the_pattern_is_written() -> None:
    item = decode([[4, 5]])[0]
    # Ids 4 5 stand at 3 and 4 after four steps, but position 2 before them is masked until
    # the very end.
    assert (item.end, item.account.nfe_forward) == (5, 10)
    order = [0, 1, 3, 4, 5, 6, 7, 8, 9, 2]
    assert [int(record.revealed) for record in item.trajectory] == order


def test_forwards_are_counted_to_there_and_the_rest_stays_masked() -> None:
    item = decode([[1, 2]])[0]
    assert item.ids.tolist() == [1, 2] + [MASK] * 8
    assert (item.end, item.account.nfe_forward, item.account.steps) == (2, 2, 2)


def test_the_first_of_several_patterns_ends_it() -> None:
    item = decode([[5], [2, 3, 4], [3, 4]], budget=TokensPerStep(10))[0]
    assert item.end == 4
    assert item.account.steps == 1


def test_a_single_eos_is_a_pattern_of_one() -> None:
    item = decode([[2]])[0]
    assert (item.end, item.account.steps) == (2, 2)


def test_a_pattern_in_the_prompt_ends_nothing() -> None:
    canvas = torch.tensor([1, 2] + [MASK] * 8)
    item = decode([[1, 2]], canvas)[0]
    # The same pattern comes again at 5 and 6.
    assert item.end == 7
    canvas = torch.tensor([MASK] * 2 + [4, 5] + [MASK] * 6)
    assert decode([[4, 5]], canvas)[0].end == 10


def test_a_pattern_may_begin_in_the_prompt_if_it_ends_in_what_was_written() -> None:
    canvas = torch.tensor([1] + [MASK] * 9)
    assert decode([[1, 2]], canvas)[0].end == 2


def test_rows_stop_for_themselves() -> None:
    stopping = torch.full((10,), MASK)
    prompted = torch.tensor([3] * 6 + [MASK] * 4)
    items = decode([[1, 2]], [stopping, prompted, stopping[:1]])
    assert [item.end for item in items] == [2, None, None]
    assert [item.account.steps for item in items] == [2, 4, 1]
    assert MASK not in items[1].ids.tolist()


def test_a_pattern_longer_than_the_canvas_ends_nothing() -> None:
    assert decode([list(range(1, 6)) * 3])[0].end is None


def test_without_patterns_nothing_ends_early() -> None:
    assert decode([])[0].end is None


def test_blocks_stop_too() -> None:
    item = decode([[4]], block_length=5)[0]
    assert (item.end, item.account.steps) == (4, 5)
    assert item.ids.tolist() == [1, 2, 3, 4, 5] + [MASK] * 5


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([[]], "stop must hold patterns of at least one id, got an empty one"),
        ([[1], [6]], r"stop must hold ids in \[0, 6\), got 6"),
        ([[MASK]], "stop must hold ids other than the mask, got 0"),
        ([[-1]], r"stop must hold ids in \[0, 6\), got -1"),
    ],
)
def test_patterns_that_cannot_be_written_are_refused(stop: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(stop)


@pytest.mark.parametrize("stop", [[1], ["a"], [[0.5]]])
def test_what_is_no_pattern_is_refused_by_name(stop: list) -> None:
    with pytest.raises(TypeError, match="stop must hold "):
        decode(stop)


def ends_at(wanted: dict[int, tuple[int, ...]]):
    """Ends a sequence at the first of its given ids that stands in what is written."""

    def stop_when(index: int, ids: list[int]) -> int | None:
        places = [ids.index(token) + 1 for token in wanted[index] if token in ids]
        return min(places, default=None)

    return stop_when


def test_the_caller_may_say_where_each_sequence_ends() -> None:
    canvas = torch.full((10,), MASK)
    items = decode([], [canvas, canvas], stop_when=ends_at({0: (2,), 1: (4,)}))
    # Position 3 is written before position 2, but what is shown ends at the first mask.
    assert [(item.end, item.account.nfe_forward) for item in items] == [(2, 2), (4, 10)]


def test_of_a_pattern_and_the_caller_the_earlier_end_counts() -> None:
    options = {"stop_when": ends_at({0: (4,)}), "budget": TokensPerStep(10)}
    assert decode([[2]], **options)[0].end == 2
    assert decode([[5]], **options)[0].end == 4


def test_the_caller_is_shown_padding_of_no_sequence() -> None:
    shown = []
    canvases = [torch.full((4,), MASK), torch.full((10,), MASK)]
    decode([], canvases, stop_when=lambda index, ids: shown.append((index, len(ids))))
    assert max(length for index, length in shown if index == 0) == 4
    assert max(length for index, length in shown if index == 1) == 10


@pytest.mark.parametrize("end", [0, 3])
def test_an_end_outside_what_is_written_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match=rf"a length in \[1, 1\] or None .* got {end}"):
        decode([], stop_when=lambda index, ids: end)


# --- what lies behind the end -----------------------------------------------------------


def decode_steered(canvas: Tensor, stop: list[list[int]], probes: str = "complement"):
    sampler = BoE(rho=0.3, tolerance=None, sure=None, probes=probes)
    denoiser = FakeDenoiser(table_of(CONFIDENCES))
    return generate(denoiser, canvas, sampler, stop=stop, trajectory=True).items[0]


@pytest.mark.parametrize("probes", ["complement", "masked"])
def test_masks_behind_a_written_pattern_are_no_probes_though_masks_be_left_before_it(
    probes: str,
) -> None:
    item = decode_steered(torch.full((10,), MASK), [[4, 5]], probes=probes)
    assert [int(record.revealed) for record in item.trajectory[:5]] == [0, 1, 3, 4, 5]
    named = [record.positions[record.parts["probe"]].tolist() for record in item.trajectory[:5]]
    assert max(named[3]) == 9, "4 is written, 5 is not"
    # Ids 4 5 stand at 3 and 4: only position 2, before them, can be part of the answer.
    assert named[4] == [2]


def test_a_pattern_of_the_prompt_leaves_the_masks_behind_it_to_be_probes() -> None:
    canvas = torch.tensor([MASK, 4, 5] + [MASK] * 7)
    item = decode_steered(canvas, [[4, 5]])
    assert item.trajectory[0].positions[item.trajectory[0].parts["probe"]].tolist()[-1] == 9
