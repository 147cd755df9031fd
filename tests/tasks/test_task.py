"""The Sudoku task: items, judgement and the user's puzzles."""

from __future__ import annotations

import pytest
import torch

from boe import TokensPerStep, generate
from boe.tasks import TASKS, SudokuTask
from boe.tasks.sudoku.grid import parse_grid, unique_solution
from boe.tasks.sudoku.model import MASK_ID, training_signatures
from boe.tasks.sudoku.puzzles import symmetry_signature, validation_signatures
from boe.tasks.sudoku.task import puzzle_item, read_puzzle

SOLVED = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"
CLUES = "0" * 40 + SOLVED[40:]
FIRST_HARD = "000900360000000008054000710000003000000100006039007004000004070040560080062700503"


def test_the_task_is_registered_by_its_name() -> None:
    assert TASKS["sudoku"] is SudokuTask


def test_items_are_numbered_masked_and_fixed_by_the_seed() -> None:
    task = SudokuTask("easy")
    items = task.items(3, 1)
    assert [item.number for item in items] == [0, 1, 2]
    for item in items:
        assert item.canvas.shape == (81,)
        assert int((item.canvas == MASK_ID).sum()) == 81 - 36
        assert [0 if i == MASK_ID else i for i in item.canvas.tolist()] == list(item.data)
    again = SudokuTask("easy").items(3, 1)
    assert all(torch.equal(a.canvas, b.canvas) for a, b in zip(items, again, strict=True))


def test_more_items_continue_the_same_stream() -> None:
    task = SudokuTask("open")
    few, more = task.items(2, 4), task.items(5, 4)
    assert [item.data for item in more[:2]] == [item.data for item in few]


def test_validation_puzzles_are_symmetric_forms_of_reserved_grids_that_no_test_puzzle_is() -> None:
    reserved = validation_signatures()
    assert not reserved & training_signatures()
    task = SudokuTask("easy")
    drawn = task.items(3, 0, "validation") + task.items(3, 1, "validation")
    assert len({item.data for item in drawn}) == 6
    for item in drawn:
        assert symmetry_signature(unique_solution(item.data)) in reserved
    for item in task.items(3, 0):
        assert symmetry_signature(unique_solution(item.data)) not in reserved
    again = SudokuTask("easy").items(3, 0, "validation")
    assert [item.data for item in again] == [item.data for item in drawn[:3]]
    open_puzzles = SudokuTask("open").items(2, 0, "validation")
    assert all(81 - item.data.count(0) == 20 for item in open_puzzles)


def test_the_test_stream_is_the_one_that_published_figures_are_about() -> None:
    first = SudokuTask("hard").items(1, 0)[0].data
    assert "".join(map(str, first)) == FIRST_HARD


def test_splits_that_sudoku_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="sudoku has no training puzzles"):
        SudokuTask().items(1, 0, "train")
    with pytest.raises(ValueError, match="split must be one of"):
        SudokuTask().items(1, 0, "dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_evaluation_grid_is_a_training_grid_in_disguise(seed: int) -> None:
    banned = training_signatures()
    assert len(banned) > 1000

    for item in SudokuTask("easy").items(8, seed):
        assert symmetry_signature(unique_solution(item.data)) not in banned


def test_the_judge_wants_the_clues_kept_and_no_rule_broken() -> None:
    task = SudokuTask()
    item = puzzle_item(0, parse_grid(CLUES))
    right = torch.tensor([int(d) for d in SOLVED])
    assert task.judge(item, right).correct
    assert task.answer(right) == SOLVED
    wrong = right.clone()
    wrong[[0, 1]] = wrong[[1, 0]]
    assert not task.judge(item, wrong).correct
    unfinished = right.clone()
    unfinished[0] = MASK_ID
    assert not task.judge(item, unfinished).correct
    assert task.answer(unfinished) == "0" + SOLVED[1:]


def test_a_valid_grid_that_changes_the_clues_is_wrong() -> None:
    relabelled = torch.tensor([int(d) % 9 + 1 for d in SOLVED])
    assert not SudokuTask().judge(puzzle_item(0, parse_grid(CLUES)), relabelled).correct


def test_read_puzzle_wants_a_solvable_puzzle_with_something_to_do() -> None:
    assert read_puzzle(CLUES) == parse_grid(CLUES)
    with pytest.raises(ValueError, match="the puzzle has no empty cell"):
        read_puzzle(SOLVED)
    with pytest.raises(ValueError, match="the puzzle has no solution"):
        read_puzzle("123456780" + "000000009" + "0" * 63)
    with pytest.raises(ValueError, match="81 cells"):
        read_puzzle("12")


@pytest.mark.parametrize("count", [0, -3])
def test_no_puzzles_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"number of puzzles must be at least 1, got {count}"):
        SudokuTask().items(count, 0)


def test_an_unknown_difficulty_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"difficulty must be one of easy, .*got 'cruel'"):
        SudokuTask("cruel")


@pytest.mark.parametrize("sampler", ["confidence", "boe"])
def test_the_shipped_model_solves_most_easy_puzzles(sampler: str) -> None:
    task = SudokuTask("easy")
    items = task.items(8, 1)
    canvases = [item.canvas for item in items]
    result = generate(task.denoiser(), canvases, sampler, budget=TokensPerStep(3))
    right = sum(task.judge(a, b).correct for a, b in zip(items, result.sequences, strict=True))
    assert right >= 5


def test_the_denoiser_is_loaded_once_and_writes_digits_only() -> None:
    task = SudokuTask()
    assert task.denoiser() is task.denoiser()
    assert task.denoiser().facts.suppressed_ids == (0, MASK_ID)
    assert task.denoiser().facts.max_length == 81
