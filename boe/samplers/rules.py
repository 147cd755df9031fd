"""The rule of a task, which tells of an unfinished answer whether it is wrong already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from boe.canvas import Canvas

Violated = Callable[[Canvas], Tensor]
"""Tells of each canvas, bool (B,), whether what is written in it breaks a rule already. Masks
break none."""


@dataclass(frozen=True)
class Ruled:
    """A part of a strategy that keeps to a rule.

    Attributes:
        violated: the rule. ``None`` stands for that of the task, in specification strings:
            ``boe compare``, ``boe eval`` and ``boe watch`` put it in; :func:`boe.generate`
            refuses it.
    """

    violated: Violated | None = None

    name: ClassVar[str]

    def checked(self) -> Violated:
        """The rule, whose answers are checked: it may be anybody's own.

        Raises:
            ValueError: there is none.
        """
        if self.violated is None:
            raise ValueError(
                f"{self.name} needs a rule, and this decode has no task to take it from: put "
                f"{type(self).__name__}(violated) into the strategy"
            )
        return partial(_answer, self.violated)


def _answer(violated: Violated, canvas: Canvas) -> Tensor:
    found: object = violated(canvas)
    if not isinstance(found, Tensor):
        raise TypeError(f"violated must return a bool tensor (B,), got {type(found).__name__}")
    if found.dtype != torch.bool or tuple(found.shape) != (canvas.batch,):
        raise ValueError(
            f"violated must return bool of shape (B,) = ({canvas.batch},), "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found
