"""Text tasks of a fixed layout: a template says what is given and what is to be filled in."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from boe.denoisers.transformers_model import TransformersDenoiser
from boe.tasks.base import Judgement, Task, TaskItem
from boe.tasks.checkpoints import load_denoiser
from boe.tasks.splits import Split, check_split, in_split, seed_of
from boe.tasks.text.model import ModelShape
from boe.tasks.text.vocabulary import END, MASK_ID, PAD_ID, decode

FILL = "_"
GIVEN = "?"
_CHUNK = 512
_BARREN_CHUNKS = 100

D = TypeVar("D")


@dataclass(frozen=True)
class TextProblem:
    """A problem as text: the prompt, and a right answer of the answer region's length."""

    prompt: str
    reference: str


class CharacterTask(Task, Generic[D]):
    """A task whose canvases are texts of one length, one token per character.

    A subclass gives the template, the difficulties and four functions: what to draw, what
    identifies a problem, how it is written, and when an answer is right. Splits, streams,
    canvases, training and the model card follow from these.

    Args:
        difficulty: a name out of ``difficulties``, or settings of that type.

    Class attributes:
        name: in :data:`boe.tasks.TASKS` and on the command line.
        template: the canvas, a character per position: ``_`` is to be filled in, ``?`` is
            given and differs between problems, anything else stands there in every problem.
            All before the first ``_`` is the prompt, the rest the answer region.
        difficulties: named settings.
        training_mix: the difficulties that a training batch is made of, in equal shares.
        shape, recipe: of the embedded denoiser.
        weights: the checkpoint shipped with the package, in transformers' format.
        texts: the canvas consists of so many texts of equal length, each of which could be
            an item's but for what is given; the denoiser is trained on all of them.
    """

    template: ClassVar[str]
    training_mix: ClassVar[tuple[str, ...]]
    shape: ClassVar[ModelShape]
    weights: ClassVar[Path]
    texts: ClassVar[int] = 1

    def __init__(self, difficulty: str | D = "hard") -> None:
        if isinstance(difficulty, str):
            if difficulty not in self.difficulties:
                raise ValueError(
                    f"difficulty must be one of {', '.join(self.difficulties)}, got {difficulty!r}"
                )
            self.difficulty: D = self.difficulties[difficulty]  # type: ignore[assignment]
        else:
            expected = type(next(iter(self.difficulties.values())))
            if not isinstance(difficulty, expected):
                raise TypeError(
                    f"difficulty must be a name or a {expected.__name__}, "
                    f"got {type(difficulty).__name__}"
                )
            self.difficulty = difficulty

    # --- what a subclass gives ------------------------------------------------------------

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """At most ``count`` random problems of this difficulty, int64 (N, K)."""

    @abstractmethod
    def key(self, problems: Tensor) -> Tensor:
        """What identifies each problem, int64 (N,); problems with equal keys share a split."""

    @abstractmethod
    def render(self, problems: Tensor) -> Tensor:
        """Ids of each problem with a right answer, int64 (N, L)."""

    @abstractmethod
    def check(self, problem: TextProblem, answer: str) -> Judgement:
        """The verdict on the text of an answer region, in which ``_`` was not filled in."""

    @classmethod
    def position_groups(cls) -> list[list[int]]:
        """Per feature of a position, such as its row, each position's group.

        Position embeddings start as sums of a vector per group. The default features are
        the field (a run of positions of one kind in the template) and the distance from
        the field's right end, where numbers have their units.
        """
        kinds = [c if c in (FILL, GIVEN) else "literal" for c in cls.template]
        fields = [0]
        for before, kind in pairwise(kinds):
            fields.append(fields[-1] + (kind != before))
        places = [fields[k:].count(field) - 1 for k, field in enumerate(fields)]
        return [fields, places]

    # --- what follows ---------------------------------------------------------------------

    @classmethod
    def fill_mask(cls) -> Tensor:
        """bool (L,): the positions to fill in."""
        return torch.tensor([character == FILL for character in cls.template])

    @classmethod
    def prompt_length(cls) -> int:
        """Number of positions before the first one to fill in."""
        return cls.template.index(FILL)

    def in_split(self, keys: Tensor, split: Split) -> Tensor:
        """Which of the problems with these keys (N,) are of ``split``, bool (N,)."""
        return in_split(keys, split, self.name)

    def problems(
        self, count: int, generator: torch.Generator, split: Split, chunk: int = _CHUNK
    ) -> Tensor:
        """``count`` problems of ``split``, int64 (count, K), drawn ``chunk`` at a time."""
        parts: list[Tensor] = []
        have = barren = 0
        while have < count:
            drawn = self.draw(chunk, generator)
            drawn = drawn[self.in_split(self.key(drawn), split)]
            parts.append(drawn)
            have += len(drawn)
            barren = 0 if len(drawn) else barren + 1
            if barren == _BARREN_CHUNKS:
                raise ValueError(f"no {split} problem of {self.name} has {self.difficulty}")
        return torch.cat(parts)[:count]

    def items(self, count: int, seed: int, split: Split = "test") -> list[TaskItem]:
        """The first ``count`` different problems of the stream that ``seed`` and ``split`` fix.

        Raises:
            ValueError: ``count`` is not positive, there is no such split, or it does not
                have so many problems of this difficulty.
        """
        if count < 1:
            raise ValueError(f"the number of items must be at least 1, got {count}")
        check_split(split)
        stream = torch.Generator().manual_seed(
            seed_of("boe/task", self.name, self.difficulty, split, seed)
        )
        seen: set[int] = set()
        chosen: list[Tensor] = []
        barren = 0
        while len(chosen) < count:
            drawn = self.draw(_CHUNK, stream)
            keys = self.key(drawn)
            before = len(chosen)
            for row in self.in_split(keys, split).nonzero().flatten().tolist():
                if int(keys[row]) not in seen:
                    seen.add(int(keys[row]))
                    chosen.append(drawn[row])
            barren = 0 if len(chosen) > before else barren + 1
            if barren == _BARREN_CHUNKS:
                raise ValueError(
                    f"count must be at most about {len(chosen)}, the number of {split} problems "
                    f"of {self.name} with {self.difficulty}, got {count}"
                )
        rendered = self.render(torch.stack(chosen[:count]))
        return [self._item(number, ids) for number, ids in enumerate(rendered)]

    def _item(self, number: int, ids: Tensor) -> TaskItem:
        text = decode(ids)
        split_at = self.prompt_length()
        problem = TextProblem(text[:split_at], text[split_at:])
        return TaskItem(number, torch.where(self.fill_mask(), MASK_ID, ids), problem)

    def judge(self, item: TaskItem, ids: Tensor) -> Judgement:
        """The verdict on the filled-in canvas ``ids`` (L,).

        Raises:
            ValueError: ``ids`` changes what was given.
        """
        given = ~self.fill_mask()
        if ids.shape != item.canvas.shape or not torch.equal(ids[given], item.canvas[given]):
            raise ValueError(f"ids must be the canvas of item {item.number} with masks filled in")
        return self.check(item.data, decode(ids[self.prompt_length() :]))

    def answer(self, ids: Tensor) -> str:
        return decode(ids[self.prompt_length() :]).split(END)[0]

    def denoiser(self) -> TransformersDenoiser:
        return self._denoiser

    @cached_property
    def _denoiser(self) -> TransformersDenoiser:
        return load_denoiser(self.weights, MASK_ID, PAD_ID)
