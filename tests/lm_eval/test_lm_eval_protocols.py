"""The task files: they load, ask what the protocol asks, and score by its rules."""

from __future__ import annotations

import json
import lzma
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from boe.lm_eval import PROTOCOLS
from boe.lm_eval.protocols import d1, embedded, pc_sampler
from boe.tasks.text.task import CharacterTask
from boe.tasks.text.vocabulary import END

STORED = Path(__file__).parents[1] / "data" / "d1" / "generations_256.json.xz"


class Quoting(LM):
    """Answers each prompt with the stored generation of the item that it ends with."""

    tokenizer_name = "none"

    def __init__(self, generations: dict[str, str]) -> None:
        super().__init__()
        self.generations = generations
        self.prompts: list[str] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [self.generations[item_of(request.args[0])] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def item_of(prompt: str) -> str:
    return prompt.removesuffix("<reasoning>").rstrip().rpartition("\n\n")[2]


def evaluate(lm: LM, task: str, **metadata: Any) -> dict[str, Any]:
    manager = TaskManager(
        include_path=str(PROTOCOLS), include_defaults=False, metadata=metadata or None
    )
    return simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)


@pytest.fixture(scope="module")
def stored() -> dict[str, list[dict[str, Any]]]:
    return json.loads(lzma.decompress(STORED.read_bytes()))


def test_d1s_countdown_scores_its_stored_answers_as_published(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    rows = stored["countdown"]
    lines = [
        json.dumps({"input": ",".join(map(str, row["truth"][0])), "output": str(row["truth"][1])})
        for row in rows
    ]
    (tmp_path / "countdown_cd3_test.jsonl").write_text("\n".join(lines))
    generations = {
        f"Numbers: {row['truth'][0]}\nTarget: {row['truth'][1]}": row["generation"] for row in rows
    }
    results = evaluate(Quoting(generations), "boe_d1_countdown", d1_data=str(tmp_path))
    assert results["results"]["boe_d1_countdown"]["acc,none"] == pytest.approx(50 / 256)


def test_d1s_sudoku_scores_its_stored_answers_as_published(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    rows = stored["sudoku"]
    lines = [f"{row['puzzle']},{row['truth']}" for row in rows]
    (tmp_path / "4x4_test_sudoku.csv").write_text("Puzzle,Solution\n" + "\n".join(lines))
    generations = {
        f"Solve the following Sudoku puzzle: {row['puzzle']}": row["generation"] for row in rows
    }
    lm = Quoting(generations)
    results = evaluate(lm, "boe_d1_sudoku", d1_data=str(tmp_path))["results"]["boe_d1_sudoku"]
    assert round(100 * results["blank_cells,none"], 2) == 6.69
    assert results["acc,none"] == 0.0
    assert all(prompt.endswith("<reasoning>") for prompt in lm.prompts)


def test_d1s_gsm8k_and_math500_score_their_stored_answers_as_published(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    # d1 stored no truth where it could not read it, and counts these as wrong.
    rated = [row for row in stored["gsm8k"] if row["truth"] is not None]
    gsm8k = [
        {"question": f"number {k}", "answer": f"So it is.\n#### {row['truth']:,}"}
        for k, row in enumerate(rated)
    ]
    math500 = [
        {"problem": f"number {k}", "answer": row["truth"]}
        for k, row in enumerate(stored["math500"])
    ]
    for name, rows, right in (("gsm8k", gsm8k, 863), ("math500", math500, 162)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        kept = rated if name == "gsm8k" else stored[name]
        generations = {f"number {k}": row["generation"] for k, row in enumerate(kept)}
        results = evaluate(Quoting(generations), f"boe_d1_{name}", d1_data=str(tmp_path))
        value = results["results"][f"boe_d1_{name}"]["acc,none"]
        assert value == pytest.approx(right / len(rows))


def test_d1_evaluates_256_of_500_puzzles_drawn_by_numpys_legacy_generator(tmp_path: Path) -> None:
    puzzles = [f"{k:016d}".translate(str.maketrans("56789", "12341")) for k in range(500)]
    text = "\n".join(f"{puzzle},{puzzle.replace('0', '1')}" for puzzle in puzzles)
    (tmp_path / "4x4_test_sudoku.csv").write_text(f"Puzzle,Solution\n{text}\n")
    documents = d1.sudoku(d1_data=str(tmp_path))["test"]
    chosen = np.random.RandomState(42).choice(500, 256, replace=False)
    assert documents["puzzle"][:] == [puzzles[k] for k in chosen]


def test_own_instructions_can_be_replaced_by_the_published_ones(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.txt").write_text("The published text.\n")
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "How many?", "answer": "#### 1,200"}')
    (document,) = d1.gsm8k(d1_data=str(tmp_path), d1_prompts=str(tmp_path))["test"]
    assert document == {"prompt": "The published text.\n\nHow many?", "truth": "1200"}
    with pytest.raises(FileNotFoundError, match=r"must hold math500\.txt"):
        d1.math500(d1_data=str(tmp_path), d1_prompts=str(tmp_path))


def test_items_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs countdown_cd3_test.jsonl: .*\"d1_data\": \"DIR\""):
        d1.countdown()
    with pytest.raises(FileNotFoundError, match=r"pc_data must hold 4x4_test_sudoku\.csv"):
        pc_sampler.sudoku(pc_data=str(tmp_path))


def test_pc_sampler_shows_five_solved_grids_and_opens_the_answer(tmp_path: Path) -> None:
    (tmp_path / "4x4_test_sudoku.csv").write_text(
        "Puzzle,Solution\n3102200002100320,3142243142131324\n"
    )
    solved = "\n3142\n2431\n4213\n1324\n</answer>"

    class Solver(Quoting):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.prompts += [request.args[0] for request in requests]
            return [solved for _ in requests]

    lm = Solver({})
    results = evaluate(lm, "boe_pc_sudoku", pc_data=str(tmp_path))
    assert results["results"]["boe_pc_sudoku"]["acc,none"] == 1.0
    (prompt,) = lm.prompts
    assert prompt.count("</answer>") == 5
    assert prompt.rpartition("Puzzle:\n")[2].split() == ["3102", "2000", "0210", "0320", "<answer>"]


def test_pc_sampler_counts_the_reference_solution_only(tmp_path: Path) -> None:
    item = {"numbers": [3, 17, 20], "target": 34, "reference": "20+17-3"}
    (tmp_path / "countdown.jsonl").write_text(json.dumps(item))
    (document,) = pc_sampler.countdown(pc_data=str(tmp_path))["test"]
    assert document["prompt"].count("Solution:") == 4
    assert document["prompt"].endswith("Numbers: 3, 17, 20\nTarget: 34\nSolution:")
    assert pc_sampler.score_countdown(document, ["It is 20 + 17 - 3."]) == {"acc": 1.0}
    assert pc_sampler.score_countdown(document, ["17+20-3"]) == {"acc": 0.0}


def test_pc_sampler_asks_mathematics_with_four_solved_problems(tmp_path: Path) -> None:
    item = {"problem": "What is 1/3 of 6?", "answer": "2"}
    (tmp_path / "math500.jsonl").write_text(json.dumps(item))
    (document,) = pc_sampler.math500(pc_data=str(tmp_path))["test"]
    assert document["prompt"].count("Solution:") == 5
    assert pc_sampler.score_math500(document, ["so \\boxed{ 2 }"]) == {"acc": 1.0}


def test_pc_sampler_runs_code_in_the_sandbox(tmp_path: Path) -> None:
    problem = {
        "prompt": 'def twice(x):\n    """Two times x."""\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "twice",
    }
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(problem))
    (document,) = pc_sampler.humaneval(pc_data=str(tmp_path))["test"]
    answer = "```python\ndef twice(x):\n    return {}\n```"
    assert pc_sampler.score_humaneval(document, [answer.format("2 * x")]) == {"acc": 1.0}
    assert pc_sampler.score_humaneval(document, [answer.format("x")]) == {"acc": 0.0}
    task = {
        "prompt": "Write a function to double.",
        "code": "import math\ndef helper(): ...\ndef twice(x, y=1):\n    return 2 * x",
        "test_imports": [],
        "test_list": ["assert twice(2) == 4"],
    }
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task))
    (document,) = pc_sampler.mbpp(pc_data=str(tmp_path))["test"]
    assert "Signature: def twice(x, y=1):" in document["prompt"]
    assert pc_sampler.score_mbpp_answer(document, [answer.format("2 * x")]) == {"acc": 1.0}
    with pytest.raises(ValueError, match="defines no function"):
        pc_sampler.signature("x = 1")


def test_lm_eval_asks_before_it_lets_code_be_run(tmp_path: Path) -> None:
    problem = {"prompt": "def f():\n", "test": "", "entry_point": "f"}
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(problem))
    with pytest.raises(ValueError, match="marked as unsafe"):
        evaluate(Quoting({}), "boe_pc_humaneval", pc_data=str(tmp_path))


@pytest.mark.parametrize("name", sorted(embedded.TEXT_TASKS))
def test_embedded_tasks_judge_by_their_own_rules(name: str) -> None:
    task: type[CharacterTask] = embedded.TEXT_TASKS[name]
    difficulty = next(iter(task.difficulties))
    (document,) = embedded.documents(name, difficulty, boe_items=1)["test"]
    reference = document["reference"]
    assert embedded.verdict(document, [reference]) == {"acc": 1.0}
    assert embedded.verdict(document, [reference + "123"]) == {"acc": 1.0}
    assert embedded.verdict(document, [reference.rstrip(END)]) == {"acc": 1.0}
    assert embedded.verdict(document, [""]) == {"acc": 0.0}


@pytest.mark.parametrize("name", ["sudoku4", "countdown"])
def test_task_files_of_embedded_tasks_ask_for_as_much_as_there_is_to_fill_in(name: str) -> None:
    manager = TaskManager(
        include_path=str(PROTOCOLS), include_defaults=False, metadata={"boe_items": 2}
    )
    task = manager.load([f"boe_{name}"])["tasks"][f"boe_{name}"]
    documents = list(task.test_docs())
    assert len(documents) == 2
    length = task.config.generation_kwargs["max_gen_toks"]
    assert {len(document["reference"]) for document in documents} == {length}


def test_every_task_file_names_functions_that_exist() -> None:
    for path in PROTOCOLS.glob("*.yaml"):
        for line in path.read_text().splitlines():
            if "!function" in line:
                module, _, name = line.rpartition(" ")[2].rpartition(".")
                assert callable(getattr(import_module(module), name)), path
