"""Prose: what samplers write is judged by how much it is like real text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from boe.denoisers.transformers_model import TransformersDenoiser
from boe.tasks.base import Judgement, Task, TaskItem
from boe.tasks.checkpoints import load_denoiser
from boe.tasks.prose.corpus import MASK_ID, PAD_ID
from boe.tasks.prose.fitting import DENOISER_RECIPE, LENGTH, SCORER_FOLDER, TEXTS_FILE
from boe.tasks.prose.scorer import ScoredText, Scorer, load_scorer
from boe.tasks.splits import Split, check_split, seed_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOUNDS_FILE = "bounds.json"
_COVERED = 0.95


@dataclass(frozen=True)
class ProseDifficulty:
    """Which tokens are given.

    Attributes:
        before, after: how many at the start and at the end of the text.
    """

    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.before + self.after >= LENGTH:
            raise ValueError(
                f"before and after must leave some of {LENGTH} tokens to fill in, "
                f"got {self.before} and {self.after}"
            )


@dataclass(frozen=True)
class Bounds:
    """Between what real text lies: of 95 % of it, so that 2.5 % are below and above.

    Attributes:
        nats: negative log-likelihood per token, by the scorer.
        unigram_entropy: nats.
    """

    nats: tuple[float, float]
    unigram_entropy: tuple[float, float]

    @classmethod
    def of(cls, scored: list[ScoredText]) -> Bounds:
        """The bounds of the given texts."""
        tails = torch.tensor([(1 - _COVERED) / 2, (1 + _COVERED) / 2], dtype=torch.float64)

        def between(values: list[float]) -> tuple[float, float]:
            low, high = torch.tensor(values, dtype=torch.float64).quantile(tails).tolist()
            return low, high

        return cls(
            between([text.nats / text.tokens for text in scored]),
            between([text.unigram_entropy for text in scored]),
        )

    def hold(self, text: ScoredText) -> bool:
        """Whether ``text`` lies within both."""
        low, high = self.nats
        least, most = self.unigram_entropy
        return low <= text.nats / text.tokens <= high and least <= text.unigram_entropy <= most

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Bounds:
        content = json.loads(path.read_text())
        return cls(**{name: (low, high) for name, (low, high) in content.items()})


@dataclass(frozen=True)
class ProseText:
    """What an item's text was in the source, and how much of it is given."""

    ids: Tensor
    difficulty: ProseDifficulty


class ProseTask(Task):
    """Write 64 tokens (about 210 characters) of English prose, the King James Bible's.

    There is no right answer. ``correct`` says whether a text passes for real: its
    likelihood under a scorer trained on other chapters, and the entropy of its tokens'
    counts, both lie where those of 95 % of real text do. Neither repetition nor gibberish
    does. What samplers write on the whole is measured by ``boe compare`` (generative
    perplexity, unigram entropy, MAUVE). Where something is given, ``recovered`` is the share
    of filled-in tokens that are those of the source.

    Samplers that take the most probable token write the same text for every item at
    ``hard``, where nothing is given: measure them at a temperature.

    Args:
        difficulty: a name out of ``difficulties``, or settings.
        weights: a folder as ``boe train prose`` makes it; the shipped one by default.
    """

    name = "prose"
    difficulties: ClassVar[Mapping[str, ProseDifficulty]] = {
        "easy": ProseDifficulty(before=16, after=16),
        "medium": ProseDifficulty(before=16),
        "hard": ProseDifficulty(),
    }
    recipe = DENOISER_RECIPE
    weights: ClassVar[Path] = Path(__file__).parent / "weights"

    def __init__(
        self, difficulty: str | ProseDifficulty = "hard", weights: Path | None = None
    ) -> None:
        if isinstance(difficulty, str):
            if difficulty not in self.difficulties:
                raise ValueError(
                    f"difficulty must be one of {', '.join(self.difficulties)}, got {difficulty!r}"
                )
            difficulty = self.difficulties[difficulty]
        self.difficulty = difficulty
        self._folder = self.weights if weights is None else weights

    def items(self, count: int, seed: int, split: Split = "test") -> list[TaskItem]:
        """The first ``count`` texts of the split in an order that ``seed`` fixes.

        Raises:
            ValueError: ``count`` is not positive or more than there are texts, or the split
                is "train", whose text is not shipped.
        """
        if count < 1:
            raise ValueError(f"the number of items must be at least 1, got {count}")
        texts = self.texts(split)
        if count > len(texts):
            raise ValueError(
                f"count must be at most {len(texts)}, the number of {split} texts, got {count}"
            )
        stream = torch.Generator().manual_seed(seed_of("boe/task", self.name, split, seed))
        order = torch.randperm(len(texts), generator=stream)[:count]
        return [
            TaskItem(number, self._masked(ids), ProseText(ids, self.difficulty))
            for number, ids in enumerate(texts[order])
        ]

    def judge(self, item: TaskItem, ids: Tensor) -> Judgement:
        """The verdict on the filled-in canvas ``ids`` (L,).

        Raises:
            ValueError: ``ids`` changes what was given.
        """
        open_places = item.canvas == MASK_ID
        if ids.shape != item.canvas.shape or not torch.equal(
            ids[~open_places], item.canvas[~open_places]
        ):
            raise ValueError(f"ids must be the canvas of item {item.number} with masks filled in")
        finished = not bool((ids == MASK_ID).any())
        passes = finished and self._bounds.hold(self.scorer().score([self.answer(ids)])[0])
        if bool(open_places.all()):
            return Judgement(passes)
        agreeing = (ids == item.data.ids)[open_places]
        return Judgement(passes, {"recovered": float(agreeing.double().mean())})

    def answer(self, ids: Tensor) -> str:
        """The whole text, what was given included; ``[MASK]`` where nothing was written."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def references(self, split: Split = "test") -> list[str]:
        """Real texts of a canvas's length, which no model was trained on."""
        return [self.answer(ids) for ids in self.texts(split)]

    def scorer(self) -> Scorer:
        """The causal model that judges texts, loaded once per task object."""
        return self._scorer

    def denoiser(self) -> TransformersDenoiser:
        return self._denoiser

    def _masked(self, ids: Tensor) -> Tensor:
        place = torch.arange(len(ids))
        given = self.difficulty
        open_places = (place >= given.before) & (place < len(ids) - given.after)
        return torch.where(open_places, MASK_ID, ids)

    def texts(self, split: Split) -> Tensor:
        """All texts of a split, int64 (N, L).

        Raises:
            ValueError: the split is "train", whose text is not shipped.
        """
        check_split(split)
        if split == "train":
            raise ValueError("split must be validation or test: training text is not shipped")
        return self._stored[split].long()

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        if not (self._folder / TEXTS_FILE).exists():
            raise FileNotFoundError(f"{self._folder} holds no {TEXTS_FILE}: train the task first")
        return load_file(self._folder / TEXTS_FILE)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    def bounds(self) -> Bounds:
        """Between what real text lies; written once by training."""
        return self._bounds

    @cached_property
    def _bounds(self) -> Bounds:
        return Bounds.read(self._folder / BOUNDS_FILE)

    @cached_property
    def _scorer(self) -> Scorer:
        return load_scorer(self._folder / SCORER_FOLDER, self._tokenizer, LENGTH)

    @cached_property
    def _denoiser(self) -> TransformersDenoiser:
        return load_denoiser(self._folder, MASK_ID, PAD_ID)
