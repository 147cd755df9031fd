"""Text tasks: problems, splits, judgement, training and shipped denoisers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from boe import TokensPerStep, generate
from boe.tasks import TASKS, Judgement
from boe.tasks.arithmetic.task import ArithmeticDifficulty, ArithmeticTask
from boe.tasks.checkpoints import load_denoiser
from boe.tasks.countdown.expressions import (
    expression_table,
    expression_text,
    problem_key,
)
from boe.tasks.countdown.few_shot import FewShotCountdownTask
from boe.tasks.countdown.task import CountdownDifficulty, CountdownTask
from boe.tasks.scoring.countdown import is_solution
from boe.tasks.splits import SPLITS
from boe.tasks.sudoku4.grids import count_solutions, is_complete, solved_grids
from boe.tasks.sudoku4.scattered import ScatteredSudoku4Task
from boe.tasks.sudoku4.task import Sudoku4Difficulty, Sudoku4Task
from boe.tasks.sums.few_shot import FewShotSumsTask
from boe.tasks.sums.task import SumsDifficulty, SumsTask
from boe.tasks.text.few_shot import SEPARATOR, SHOTS, FewShotTask
from boe.tasks.text.fitting import train_text_task
from boe.tasks.text.model import ModelShape, build_model
from boe.tasks.text.task import FILL, CharacterTask, TextProblem
from boe.tasks.text.vocabulary import (
    CHARACTERS,
    MASK_ID,
    PAD_ID,
    TOKENS,
    build_tokenizer,
    decode,
    encode,
)
from boe.training import TrainConfig, masked_diffusion_loss

TEXT_TASKS = [task for task in TASKS.values() if issubclass(task, CharacterTask)]
SETTINGS = [
    pytest.param(task, name, id=f"{task.name}-{name}")
    for task in TEXT_TASKS
    for name in task.difficulties
]
FLOORS = [
    pytest.param(Sudoku4Task, {"unique": 38, "hard": 36}, id="sudoku4"),
    pytest.param(ScatteredSudoku4Task, {"unique": 36, "hard": 34}, id="sudoku4-scattered"),
    pytest.param(CountdownTask, {"easy": 4, "hard": 1}, id="countdown"),
    pytest.param(FewShotCountdownTask, {"easy": 9, "hard": 5}, id="countdown-fewshot"),
    pytest.param(SumsTask, {"easy": 28, "hard": 14}, id="sums"),
    pytest.param(FewShotSumsTask, {"easy": 34, "hard": 25}, id="sums-fewshot"),
    pytest.param(ArithmeticTask, {"easy": 12, "hard": 6}, id="arithmetic"),
]
"""Of forty test items, how many the shipped denoiser must solve at one token per step."""

SHIPPED = [task for task in TEXT_TASKS if (task.weights / "model.safetensors").exists()]


def judge_text(task: CharacterTask, problem: TextProblem, answer: str) -> Judgement:
    item = replace(task.items(1, 0)[0], data=problem)
    canvas = torch.tensor(encode(problem.prompt) + [MASK_ID] * len(answer))
    fixed = ~task.fill_mask()
    text = problem.prompt + answer
    ids = torch.tensor([MASK_ID if c == FILL else encode(c)[0] for c in text])
    canvas = torch.where(fixed, ids, MASK_ID)
    return task.judge(replace(item, canvas=canvas), ids)


# --- vocabulary -------------------------------------------------------------------------


def test_text_is_encoded_character_by_character_and_back() -> None:
    assert decode(torch.tensor(encode(CHARACTERS))) == CHARACTERS
    assert decode([encode("7")[0], MASK_ID]) == "7_"
    with pytest.raises(ValueError, match="got 'x'"):
        encode("7x")
    for wrong in (PAD_ID, MASK_ID + 1):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            decode([wrong])


def test_the_tokenizer_agrees_with_the_vocabulary(tmp_path: Path) -> None:
    build_tokenizer(50).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = " 3,17=20:"
    assert tokenizer(text).input_ids == encode(text)
    assert tokenizer.decode(encode(text)) == text
    assert tokenizer("1[MASK]").input_ids == [*encode("1"), MASK_ID]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (PAD_ID, MASK_ID)
    assert (len(tokenizer), tokenizer.model_max_length) == (len(TOKENS), 50)


# --- items ------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "difficulty"), SETTINGS)
def test_items_are_different_numbered_problems_that_follow_the_template(
    task: type[CharacterTask], difficulty: str
) -> None:
    items = task(difficulty).items(40, 3)
    assert [item.number for item in items] == list(range(40))
    assert len({item.data.prompt for item in items}) == 40
    for item in items:
        assert item.canvas.dtype == torch.int64
        text = decode(item.canvas)
        assert len(text) == len(task.template)
        for given, pattern in zip(text, task.template, strict=True):
            assert (given == FILL) == (pattern == FILL)
            assert pattern in (FILL, "?", given)


@pytest.mark.parametrize(("task", "difficulty"), SETTINGS)
def test_the_reference_is_right_and_has_all_metrics_at_their_best(
    task: type[CharacterTask], difficulty: str
) -> None:
    setting = task(difficulty)
    for item in setting.items(40, 5):
        ids = torch.tensor(encode(item.data.prompt + item.data.reference))
        judgement = setting.judge(item, ids)
        assert judgement.correct
        assert judgement.metrics
        assert set(judgement.metrics.values()) == {1.0}


@pytest.mark.parametrize(("task", "difficulty"), SETTINGS)
def test_streams_of_different_splits_share_no_problem_whatever_their_seeds(
    task: type[CharacterTask], difficulty: str
) -> None:
    setting = task(difficulty)
    keys = {}
    for split in SPLITS:
        drawn = [
            setting.problems(150, torch.Generator().manual_seed(seed), split) for seed in (0, 1)
        ]
        keys[split] = set(setting.key(torch.cat(drawn)).tolist())
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.name)
def test_equal_seeds_give_equal_streams_and_more_items_continue_them(
    task: type[CharacterTask],
) -> None:
    few, more = task().items(3, 1), task().items(50, 1)
    assert [item.data for item in few] == [item.data for item in more[:3]]
    assert [item.data for item in task().items(3, 2)] != [item.data for item in few]
    assert [item.data for item in task().items(3, 1, "validation")] != [item.data for item in few]


def test_items_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="number of items must be at least 1, got 0"):
        CountdownTask().items(0, 0)
    with pytest.raises(ValueError, match=r"split must be one of .* got 'dev'"):
        CountdownTask().items(1, 0, "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"count must be at most about .* got 1000"):
        ArithmeticTask(ArithmeticDifficulty(1)).items(1000, 0)


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.name)
def test_difficulties_are_names_or_settings(task: type[CharacterTask]) -> None:
    assert task(task.difficulties["hard"]).items(2, 0)[1].data == task("hard").items(2, 0)[1].data
    with pytest.raises(ValueError, match=r"difficulty must be one of .*, got 'cruel'"):
        task("cruel")
    with pytest.raises(TypeError, match=r"difficulty must be a name or a .*, got int"):
        task(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArithmeticDifficulty(5), r"digits must be in \[1, 4\], got 5"),
        (lambda: SumsDifficulty(-1), "given must not be negative, got -1"),
        (lambda: SumsTask(SumsDifficulty(13)), "given must be below 13, the number of digits"),
        (lambda: CountdownDifficulty(2), r"largest must be in \[3, 99\], got 2"),
        (lambda: Sudoku4Difficulty(3), r"clues must be in \[4, 15\], got 3"),
        (lambda: Sudoku4Difficulty(16, unique=False), r"clues must be in \[0, 15\], got 16"),
        (lambda: ModelShape(0, 8), "layers must be at least 1, got 0"),
        (lambda: ModelShape(1, 10), "width must be a multiple of heads, got 10 and 4 heads"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_changed_prompt_is_refused() -> None:
    task = CountdownTask()
    item = task.items(1, 0)[0]
    ids = torch.tensor(encode(item.data.prompt + item.data.reference))
    ids[0] = encode("9")[0]
    with pytest.raises(ValueError, match="ids must be the canvas of item 0"):
        task.judge(item, ids)


# --- judgement of each task -------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "correct", "reference"),
    [
        ("20+17-3...", True, 1.0),
        ("17+20-3...", True, 0.0),
        ("17-3+20...", True, 0.0),
        ("20+17-3..3", False, 1.0),
        ("20+17+3...", False, 0.0),
        ("17*2......", False, 0.0),
        ("20+17-3+__", False, 1.0),
        ("..........", False, 0.0),
    ],
)
def test_countdown_takes_any_solution_and_tells_which_is_the_reference(
    answer: str, correct: bool, reference: float
) -> None:
    problem = TextProblem(" 3,17,20=34:", "20+17-3...")
    judgement = judge_text(CountdownTask(), problem, answer)
    assert judgement == Judgement(correct, {"reference": reference})


def test_a_multiplication_is_right_when_its_product_is() -> None:
    problem = TextProblem("0347*58=", "02776+017350=020126")
    task = ArithmeticTask()
    assert judge_text(task, problem, "02776+017350=020126").metrics["working"] == 1
    sloppy = judge_text(task, problem, "02777+017350=020126")
    assert sloppy == Judgement(True, {"digits": 15 / 16, "working": 0.0})
    assert not judge_text(task, problem, "02776+017350=020127").correct
    assert not judge_text(task, problem, "02776+017350=02012_").correct


@pytest.mark.parametrize(
    ("answer", "kept", "holds"),
    [
        ("3872+0551=04423", True, True),
        ("3871+0551=04422", True, True),
        ("3872+0551=04424", True, False),
        ("3772+0551=04323", False, True),
        ("387_+0551=04423", True, False),
        ("3.72+0551=04423", False, False),
        ("0870+0051=00000", True, False),
        ("0870+0051=921+0", True, False),  # four numbers
    ],
)
def test_a_sum_is_right_when_it_holds_and_keeps_the_given_digits(
    answer: str, kept: bool, holds: bool
) -> None:
    problem = TextProblem(".87.+..51=.....:", "3872+0551=04423")
    judgement = judge_text(SumsTask(), problem, answer)
    assert judgement == Judgement(kept and holds, {"kept": kept, "holds": holds})


@pytest.mark.parametrize(
    ("task", "answer"),
    [(FewShotCountdownTask, "3+17+20..."), (FewShotSumsTask, "50+50=100")],
)
def test_after_examples_the_last_problem_is_judged_by_its_own_tasks_rule(
    task: type[FewShotTask], answer: str
) -> None:
    few_shot, single = task("hard"), task.single("hard")
    right = 0
    for item in few_shot.items(20, 2):
        problem = replace(item.data, prompt=item.data.prompt.rpartition(SEPARATOR)[2])
        for text in (item.data.reference, answer):
            verdict = judge_text(few_shot, item.data, text)
            assert verdict == judge_text(single, problem, text)
            right += verdict.correct
    assert 20 <= right < 40


def test_a_grid_is_right_when_it_keeps_the_clues_and_breaks_no_rule() -> None:
    problem = TextProblem("1000000000000000=", "1234341221434321")
    task = Sudoku4Task("hard")
    assert judge_text(task, problem, problem.reference).metrics == {"blank_cells": 1.0}
    other = "1243342121344312"
    assert is_complete(other)
    assert judge_text(task, problem, other).correct
    assert judge_text(task, problem, other).metrics["blank_cells"] < 1
    assert not judge_text(task, problem, "2134341212434321").correct
    assert not judge_text(task, problem, "1234341221434312").correct
    assert not judge_text(task, problem, "123434122143432_").correct


def test_scattered_clues_are_laid_over_each_other() -> None:
    grids = ["0" * 16 for _ in range(8)]
    grids[2], grids[7] = "1" + "0" * 15, "0" * 15 + "1"
    problem = TextProblem(";".join(grids) + "=", "1234341221434321")
    task = ScatteredSudoku4Task()
    judgement = judge_text(task, problem, "1234341221434321")
    assert judgement == Judgement(True, {"blank_cells": 1.0})
    assert not judge_text(task, problem, "2134341212434321").correct
    assert judge_text(task, problem, "2134341212434321").metrics["blank_cells"] < 1


def test_answers_are_text_without_filling() -> None:
    item = CountdownTask().items(1, 0)[0]
    assert CountdownTask().answer(item.canvas) == "_" * 10
    ids = torch.tensor(encode(item.data.prompt + "1+2+3....."))
    assert CountdownTask().answer(ids) == "1+2+3"


# --- problems of each task --------------------------------------------------------------


def test_there_are_288_solved_grids_of_order_four() -> None:
    grids = solved_grids()
    assert grids.shape == (288, 16)
    assert len({tuple(grid) for grid in grids.tolist()}) == 288
    assert all(is_complete("".join(map(str, grid))) for grid in grids.tolist())
    assert int(count_solutions(torch.zeros(1, 16, dtype=torch.int64))) == 288


@pytest.mark.parametrize("name", list(Sudoku4Task.difficulties))
def test_sudoku_puzzles_have_their_clues_and_are_unique_where_promised(name: str) -> None:
    setting = Sudoku4Task.difficulties[name]
    for item in Sudoku4Task(name).items(30, 0):
        puzzle = torch.tensor([[int(digit) for digit in item.data.prompt[:16]]])
        assert int((puzzle > 0).sum()) == setting.clues
        assert (int(count_solutions(puzzle)) == 1) >= setting.unique


def test_every_canonical_expression_solves_its_problem_and_stands_once() -> None:
    table = expression_table(12).tolist()
    texts = [expression_text(*row[:4]) for row in table]
    assert len(set(texts)) == len(texts)
    for text, row in zip(texts[::7], table[::7], strict=True):
        assert is_solution(text, row[:3], row[4]), text
        assert 1 <= row[4] <= 99


def test_keys_of_countdown_problems_ignore_the_order_of_numbers() -> None:
    numbers = torch.tensor([[3, 17, 20], [20, 3, 17], [3, 17, 21]])
    keys = problem_key(numbers, torch.tensor([34, 34, 34]))
    assert keys[0] == keys[1] != keys[2]


def test_hard_countdown_problems_cannot_be_solved_by_sums_and_differences() -> None:
    for item in CountdownTask("hard").items(60, 0):
        shown, _, target = item.data.prompt.rstrip(":").partition("=")
        a, b, c = (int(number) for number in shown.split(","))
        reached = {abs(a + s * b + t * c) for s in (1, -1) for t in (1, -1)}
        assert int(target) not in reached


def test_multiplications_are_what_python_says() -> None:
    for item in ArithmeticTask("hard").items(30, 0):
        factors, answer = item.data.prompt.rstrip("="), item.data.reference
        first, second = (int(number) for number in factors.split("*"))
        partial, shifted, product = (int(number) for number in answer.replace("=", "+").split("+"))
        assert (partial, shifted) == (first * (second % 10), first * (second // 10) * 10)
        assert product == first * second


@pytest.mark.parametrize("name", list(SumsTask.difficulties))
def test_sums_are_what_python_says_and_show_as_many_digits_as_promised(name: str) -> None:
    for item in SumsTask(name).items(30, 0):
        first, second, total = map(int, item.data.reference.replace("=", "+").split("+"))
        assert first + second == total
        shown = [character for character in item.data.prompt if character.isdigit()]
        assert len(shown) == SumsTask.difficulties[name].given


FEW_SHOT = [
    pytest.param(task, name, id=f"{task.name}-{name}")
    for task in (FewShotCountdownTask, FewShotSumsTask)
    for name in task.difficulties
]


@pytest.mark.parametrize(("task", "name"), FEW_SHOT)
def test_examples_are_solved_training_problems_and_the_prompt_is_long(
    task: type[FewShotTask], name: str
) -> None:
    assert task.prompt_length() >= 8 * int(task.fill_mask().sum())
    single, few_shot = task.single(name), task(name)
    start = single.prompt_length()
    for item in few_shot.items(10, 0):
        *shown, prompt = item.data.prompt.split(SEPARATOR)[1:]
        assert len(shown) == SHOTS
        for text in shown:
            problem = TextProblem(text[:start], text[start:])
            assert judge_text(single, problem, text[start:]).correct
        assert len(prompt) == start
    problems = few_shot.problems(20, torch.Generator().manual_seed(0), "test")
    asked, *examples = problems.chunk(SHOTS + 1, dim=1)
    assert bool(single.in_split(single.key(asked), "test").all())
    assert all(bool(single.in_split(single.key(part), "train").all()) for part in examples)


def test_denoisers_of_examples_are_trained_on_all_of_a_canvas_each_at_its_own_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[torch.Tensor] = []

    def spy(model, ids, mask, *options):
        masks.append(mask)
        return masked_diffusion_loss(model, ids, mask, *options)

    monkeypatch.setattr("boe.training.masked_diffusion_loss", spy)
    monkeypatch.setattr(FewShotCountdownTask, "shape", ModelShape(1, 8, 2))
    config = TrainConfig(steps=1, batch_size=64, warmup_steps=1, precision="fp32")
    train_text_task(FewShotCountdownTask, config, tmp_path)
    masked = masks[0].view(64, SHOTS + 1, -1)
    single = masked[..., -len(CountdownTask.template) :]
    assert not bool(masked[..., 0].any())
    assert not bool((single & ~CountdownTask.fill_mask()).any())
    assert bool(single.any(dim=2).all())
    counts = single.sum(dim=2).double()
    assert abs(torch.corrcoef(counts.T).fill_diagonal_(0)).max() < 0.5
    assert counts.min() == 1
    assert counts.max() == 10


@pytest.mark.parametrize("name", list(ScatteredSudoku4Task.difficulties))
def test_every_clue_stands_in_one_of_eight_grids_and_the_prompt_is_long(name: str) -> None:
    task = ScatteredSudoku4Task(name)
    assert task.prompt_length() >= 8 * int(task.fill_mask().sum())
    for item in task.items(20, 0):
        grids = item.data.prompt.rstrip("=").split(";")
        shown = [[cell for cell in cells if cell != "0"] for cells in zip(*grids, strict=True)]
        assert max(map(len, shown)) == 1
        assert sum(map(len, shown)) == task.difficulty.clues
        for cells, solution in zip(shown, item.data.reference, strict=True):
            assert cells in ([], [solution])


# --- models -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.name)
def test_every_position_has_a_group_of_every_feature(task: type[CharacterTask]) -> None:
    groups = task.position_groups()
    assert all(len(group) == len(task.template) for group in groups)


def test_building_a_model_is_fixed_by_its_seed() -> None:
    shape, groups = ModelShape(1, 8, 2), [[0, 1, 2]]
    first, again = (build_model(shape, 3, groups, 1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_training_learns_saves_float16_and_loads_as_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArithmeticTask, "shape", ModelShape(1, 16, 2))
    losses: list[float] = []
    config = TrainConfig(steps=40, batch_size=16, warmup_steps=5, precision="fp32")
    train_text_task(ArithmeticTask, config, tmp_path, lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < sum(losses[:5])
    stored = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert stored.dtype == torch.float16
    denoiser = load_denoiser(tmp_path, MASK_ID, PAD_ID)
    assert denoiser.embedding_table.dtype == torch.float32
    assert denoiser.facts.max_length == len(ArithmeticTask.template)
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == MASK_ID
    with pytest.raises(FileNotFoundError, match="train it first"):
        load_denoiser(tmp_path / "nowhere", MASK_ID, PAD_ID)


def test_training_sees_training_problems_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    problems = CountdownTask.problems

    def spy(self, count, generator, split, chunk):
        asked.append(split)
        return problems(self, count, generator, split, chunk)

    monkeypatch.setattr(CountdownTask, "problems", spy)
    monkeypatch.setattr(CountdownTask, "shape", ModelShape(1, 8, 2))
    train_text_task(CountdownTask, TrainConfig(steps=2, batch_size=5, warmup_steps=1), tmp_path)
    assert set(asked) == {"train"}


# --- shipped denoisers ------------------------------------------------------------------


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_shipped_weights_are_small_readable_and_have_a_card(task: type[CharacterTask]) -> None:
    files = list(task.weights.iterdir())
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in files)
    card = (task.weights / "README.md").read_text()
    assert f"boe train {task.name} --steps {task.recipe.steps}" in card


@pytest.mark.parametrize(("task", "floors"), FLOORS)
def test_shipped_denoisers_solve_at_least_this_many_of_forty(
    task: type[CharacterTask], floors: dict[str, int]
) -> None:
    for name, floor in floors.items():
        setting = task(name)
        items = setting.items(40, 1)
        denoiser = setting.denoiser()
        result = generate(
            denoiser, [item.canvas for item in items], "confidence", budget=TokensPerStep(1)
        )
        right = [
            setting.judge(item, ids).correct
            for item, ids in zip(items, result.sequences, strict=True)
        ]
        assert sum(right) >= floor, (name, sum(right))
