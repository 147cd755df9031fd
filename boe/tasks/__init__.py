"""What samplers are judged on."""

from boe.tasks.base import Task, TaskItem
from boe.tasks.sudoku.task import SudokuTask

TASKS: dict[str, type[SudokuTask]] = {SudokuTask.name: SudokuTask}
"""Tasks by name; each takes a difficulty."""

__all__ = ["TASKS", "SudokuTask", "Task", "TaskItem"]
