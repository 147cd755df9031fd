"""Judging samplers on tasks, with costs and statistics."""

from boe.evaluate.comparison import Comparison, compare
from boe.evaluate.record import Record, evaluate

__all__ = ["Comparison", "Record", "compare", "evaluate"]
