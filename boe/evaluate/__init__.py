"""Judging samplers on tasks, with costs and statistics."""

from boe.evaluate.comparison import Comparison, analyse
from boe.evaluate.record import Record
from boe.evaluate.running import Run, run_study
from boe.evaluate.settings import Setting
from boe.evaluate.store import RecordStore
from boe.evaluate.stored import comparison_from_json
from boe.evaluate.study import Group, Study

__all__ = [
    "Comparison",
    "Group",
    "Record",
    "RecordStore",
    "Run",
    "Setting",
    "Study",
    "analyse",
    "comparison_from_json",
    "run_study",
]
