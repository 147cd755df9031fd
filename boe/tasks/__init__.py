"""What samplers are judged on."""

from boe.tasks.arithmetic.task import ArithmeticTask
from boe.tasks.base import Judgement, Task, TaskItem
from boe.tasks.countdown.few_shot import FewShotCountdownTask
from boe.tasks.countdown.task import CountdownTask
from boe.tasks.prose.task import ProseTask
from boe.tasks.splits import Split
from boe.tasks.sudoku.task import SudokuTask
from boe.tasks.sudoku4.scattered import ScatteredSudoku4Task
from boe.tasks.sudoku4.task import Sudoku4Task
from boe.tasks.sums.few_shot import FewShotSumsTask
from boe.tasks.sums.task import SumsTask

EmbeddedTask = (
    SudokuTask
    | Sudoku4Task
    | ScatteredSudoku4Task
    | CountdownTask
    | FewShotCountdownTask
    | SumsTask
    | FewShotSumsTask
    | ArithmeticTask
    | ProseTask
)

TASKS: dict[str, type[EmbeddedTask]] = {
    task.name: task
    for task in (
        *(SudokuTask, Sudoku4Task, ScatteredSudoku4Task),
        *(CountdownTask, FewShotCountdownTask, SumsTask, FewShotSumsTask),
        *(ArithmeticTask, ProseTask),
    )
}
"""Tasks by name. Each takes a difficulty: a key of its ``difficulties``, "hard" by default."""

__all__ = [
    "TASKS",
    "ArithmeticTask",
    "CountdownTask",
    "FewShotCountdownTask",
    "FewShotSumsTask",
    "Judgement",
    "ProseTask",
    "ScatteredSudoku4Task",
    "Split",
    "Sudoku4Task",
    "SudokuTask",
    "SumsTask",
    "Task",
    "TaskItem",
]
