"""The tasks' rules for partly written answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boe.canvas import Canvas
from boe.evaluate.record import decode
from boe.evaluate.settings import Setting
from boe.evaluate.study import Cell
from boe.tasks import TASKS
from boe.tasks.countdown.partial import breaks_rules
from boe.tasks.sudoku.grid import find_conflict
from boe.tasks.sudoku.task import SudokuTask
from boe.tasks.sudoku4.grids import solved_grids
from boe.tasks.sudoku4.task import Sudoku4Task
from boe.tasks.sums.columns import SumLayout
from boe.tasks.sums.task import SumsTask
from boe.tasks.text.vocabulary import MASK_ID, encode

RULED = ("sudoku4", "sudoku4-scattered", "countdown", "countdown-fewshot", "sums", "sums-fewshot")


def broken(task, ids: Tensor) -> list[bool]:
    return task.violated(Canvas(ids, (ids.shape[1],) * len(ids))).tolist()


@pytest.mark.parametrize("name", RULED)
def test_no_part_of_a_right_answer_breaks_a_rule(name: str) -> None:
    task = TASKS[name]("hard")
    problems = task.draw(64, torch.Generator().manual_seed(0))
    right = task.render(problems)
    masks = torch.rand(right.shape, generator=torch.Generator().manual_seed(1))
    for share in (0.0, 0.3, 0.6, 1.0):
        partly = torch.where(
            task.fill_mask() & (masks < share), task.denoiser().facts.mask_id, right
        )
        assert not any(broken(task, partly))


@pytest.mark.parametrize("name", ["sudoku4", "sudoku4-scattered"])
def test_a_full_grid_breaks_a_rule_exactly_where_the_judge_says_it_is_wrong(name: str) -> None:
    task = TASKS[name]("hard")
    items = task.items(40, seed=3)
    canvases = torch.stack([item.canvas for item in items])
    masked = task.fill_mask()
    # Solved grids, mostly of other puzzles, and random digits.
    grids = torch.cat((solved_grids()[::12][:20], torch.randint(1, 5, (20, 16))))
    digit = task.denoiser().facts.mask_id  # replaced below
    canvases[:, masked] = grids + Sudoku4Task("hard").render(torch.zeros(1, 32).long())[0, 0]
    assert not bool((canvases == digit).any())
    verdicts = [task.judge(item, ids).correct for item, ids in zip(items, canvases, strict=True)]
    assert [not v for v in verdicts] == broken(task, canvases)


def test_in_a_sudoku_a_digit_that_stands_twice_in_a_unit_is_found() -> None:
    task = SudokuTask("easy")
    item = task.items(1, seed=0)[0]
    generator = torch.Generator().manual_seed(0)
    ids = item.canvas.repeat(200, 1)
    for row in ids:
        empty = (row == 10).nonzero().flatten()
        cell = empty[torch.randint(len(empty), (3,), generator=generator)]
        row[cell] = torch.randint(1, 10, (3,), generator=generator)
    grids = torch.where(ids == 10, 0, ids).tolist()
    expected = [find_conflict(grid) is not None for grid in grids]
    assert True in expected
    assert False in expected
    assert broken(task, ids) == expected


@pytest.mark.parametrize(
    ("answer", "violated"),
    [
        ("__________", False),
        ("3+________", False),
        ("4+________", True),  # there is no 4
        ("1_________", False),  # may become 17
        ("17_3______", False),  # the 17 may go on, the 3 follows a mask
        ("_+3+3_____", False),  # the second 3 may go on
        ("_+3+3*____", True),  # there is one 3
        ("20+17-3...", False),
        ("20+17-3.._", False),
        ("20+17-3.1_", True),  # something behind the end
        ("20-17+3...", True),  # complete, and 6
        ("20+17-_...", False),
        ("17+20-3___", False),
        ("20/17-3..._"[:10], True),
    ],
)
def test_what_a_partly_written_expression_gets_wrong(answer: str, violated: bool) -> None:
    assert breaks_rules([3, 17, 20], 34, answer) == violated


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_sum_can_be_completed_exactly_where_trying_all_digits_completes_it(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = SumLayout(width)
    digits = layout.of(torch.randint(10**width, (400, 2), generator=generator))
    digits[::2, 2 * width :] = torch.randint(10, (200, width + 1), generator=generator)
    digits[::2, 2 * width] %= 2
    known = torch.rand(digits.shape, generator=generator) < torch.rand(400, 1, generator=generator)
    digits = torch.where(known, digits, -1)
    possible = layout.has_completion(digits).tolist()
    assert possible == [completes(row, width) for row in digits.tolist()]
    assert 50 < sum(possible) < 390


def completes(digits: list[int], width: int, place: int = 1, carry: int = 0) -> bool:
    """Whether the columns from ``place`` on can be filled in, by trying all digits."""
    if place > width:
        return digits[2 * width] in (-1, carry)
    first, second, total = (digits[end - place] for end in (width, 2 * width, 3 * width + 1))
    return any(
        completes(digits, width, place + 1, (a + b + carry) // 10)
        for a in (range(10) if first < 0 else [first])
        for b in (range(10) if second < 0 else [second])
        if total in (-1, (a + b + carry) % 10)
    )


@pytest.mark.parametrize(
    ("answer", "violated"),
    [
        ("____+____=_____", False),
        ("3___+____=_____", False),
        ("4___+____=_____", True),  # a 3 is given
        ("3___+____=2____", True),  # two summands never reach 20,000
        ("3___+____=1____", True),  # 3,999 + 5,499 do not reach 10,000
        ("3___+5___=0____", False),
        ("3__;+____=_____", True),
        ("3872+5400=09272", False),
        ("3872+5400=09273", True),
    ],
)
def test_what_a_partly_written_sum_gets_wrong(answer: str, violated: bool) -> None:
    text = "3...+54..=.....:" + answer
    ids = torch.tensor([[MASK_ID if c == "_" else encode(c)[0] for c in text]])
    assert broken(SumsTask("hard"), ids) == [violated]


def test_a_task_without_a_rule_says_so() -> None:
    with pytest.raises(ValueError, match="the task arithmetic has no rule for partly written"):
        TASKS["arithmetic"]("hard").violated(Canvas(torch.zeros(1, 4).long(), (4,)))


def test_a_study_puts_the_tasks_rule_in_for_verified() -> None:
    task = TASKS["sudoku4"]("hard")
    items = task.items(60, seed=1)
    right = []
    for sampler in ("entropy", "entropy+verified"):
        cell = Cell(sampler, Setting(4), 0, sampler)
        records = decode(task.denoiser(), task, items, cell)
        right.append(sum(record.correct for record in records))
    assert right[1] > right[0] + 10
