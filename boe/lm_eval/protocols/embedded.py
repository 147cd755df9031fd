"""This package's own text tasks, on which the denoisers that come with it can be run."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from boe.lm_eval.protocols.sources import as_test_set
from boe.tasks import TASKS
from boe.tasks.text.task import CharacterTask, TextProblem
from boe.tasks.text.vocabulary import END

TEXT_TASKS: dict[str, type[CharacterTask]] = {
    name: task for name, task in TASKS.items() if issubclass(task, CharacterTask)
}


def documents(
    boe_task: str, boe_difficulty: str, boe_items: int = 256, boe_seed: int = 0, **others: Any
) -> dict[str, Dataset]:
    """Test problems of a task, with the prompt and a right answer of each."""
    items = TEXT_TASKS[boe_task](boe_difficulty).items(boe_items, boe_seed)
    return as_test_set(
        [
            {
                "task": boe_task,
                "difficulty": boe_difficulty,
                "prompt": item.data.prompt,
                "reference": item.data.reference,
            }
            for item in items
        ]
    )


def verdict(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is right by the task's own rule; behind its end come more ends."""
    task = TEXT_TASKS[doc["task"]](doc["difficulty"])
    length = len(doc["reference"])
    answer = results[0][:length].ljust(length, END)
    judgement = task.check(TextProblem(doc["prompt"], doc["reference"]), answer)
    return {"acc": float(judgement.correct)}
