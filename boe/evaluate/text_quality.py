"""Measures of what a sampler writes on the whole, where no single answer is right.

- Generative perplexity: how surprising the texts are to a scorer, a causal language model
  that was trained on other text. Repetition lowers it, so it needs the next measure beside it.
- Unigram entropy: of each text's token counts, averaged (Table 4 of the TABES paper calls
  it predictive entropy).
- MAUVE (Pillutla et al., 2021): how much the texts' distribution overlaps with that of real
  text, from features of both, here the scorer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from boe.evaluate.bootstrap import mean_interval, percentile_interval, resampling_weights
from boe.evaluate.record import Record
from boe.evaluate.settings import Setting

MAUVE_SEED = 25
"""Of MAUVE's clustering; the library's own default."""


class ScoredText(Protocol):
    """What a scorer makes of one text; a feature is fp32 (D,)."""

    @property
    def tokens(self) -> int: ...
    @property
    def nats(self) -> float: ...
    @property
    def unigram_entropy(self) -> float: ...
    @property
    def feature(self) -> Tensor: ...


class Scorer(Protocol):
    """Whatever gives texts their likelihood, their unigram entropy and features for MAUVE."""

    def score(self, texts: Sequence[str]) -> Sequence[ScoredText]: ...


@dataclass(frozen=True)
class TextQuality:
    """The measures of a number of texts. Intervals are 95 %, bootstrap over texts.

    Attributes:
        perplexity: exp(Σ nats / Σ tokens).
        unigram_entropy: mean, nats.
        distinct: different texts over texts.
        mauve: in (0, 1]; ``None`` if it was not measured.
    """

    texts: int
    perplexity: float
    perplexity_interval: tuple[float, float]
    unigram_entropy: float
    unigram_entropy_interval: tuple[float, float]
    distinct: float
    mauve: float | None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TextQuality:
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        return cls(**tuples)


@dataclass(frozen=True)
class TextRow:
    """The texts of one sampler at one setting."""

    sampler: str
    setting: Setting
    quality: TextQuality


@dataclass(frozen=True)
class TextResults:
    """The texts of a comparison.

    Attributes:
        real: the measures of other real texts, as many as a sampler wrote: what can be
            hoped for. Their MAUVE is that of real text against real text.
    """

    real: TextQuality
    rows: tuple[TextRow, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "real": asdict(self.real),
            "rows": [
                {
                    "sampler": row.sampler,
                    "setting": row.setting.as_json(),
                    "quality": asdict(row.quality),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TextResults:
        """The results that :meth:`as_json` wrote."""
        return cls(
            TextQuality.from_json(content["real"]),
            tuple(
                TextRow(
                    row["sampler"],
                    Setting.from_json(row["setting"]),
                    TextQuality.from_json(row["quality"]),
                )
                for row in content["rows"]
            ),
        )


def text_results(
    records: Sequence[Record],
    scorer: Scorer,
    references: Sequence[str],
    others: Sequence[str],
    mauve: bool = True,
) -> TextResults:
    """The measures of every sampler at every setting, over items and seeds.

    Args:
        references: real texts, which MAUVE compares with.
        others: further real texts, for the row ``real``.
        mauve: whether to measure it.

    Raises:
        ModuleNotFoundError: MAUVE is asked for and mauve-text is missing.
    """
    if mauve:
        require_mauve()
    cells: dict[tuple[str, Setting], list[str]] = {}
    for record in records:
        cells.setdefault((record.sampler, record.setting), []).append(record.answer)
    against = _features(scorer.score(references)) if mauve else None
    most = max(map(len, cells.values()), default=len(others))
    # Texts that stand beside each other in a book are alike: take them from all over.
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    return TextResults(
        text_quality([others[k] for k in order[:most].tolist()], scorer, against),
        tuple(
            TextRow(sampler, setting, text_quality(texts, scorer, against))
            for (sampler, setting), texts in cells.items()
        ),
    )


def text_quality(
    texts: Sequence[str], scorer: Scorer, against: Tensor | None = None
) -> TextQuality:
    """The measures of ``texts``.

    Args:
        against: features of real texts (N, D) for MAUVE; it is not measured without.

    Raises:
        ValueError: no texts.
        ModuleNotFoundError: mauve-text is missing.
    """
    if not texts:
        raise ValueError("texts must hold at least one, got none")
    scored = scorer.score(texts)
    weights = resampling_weights(len(texts))
    nats = torch.tensor([text.nats for text in scored], dtype=torch.float64)
    tokens = torch.tensor([text.tokens for text in scored], dtype=torch.float64)
    low, high = percentile_interval((weights @ nats) / (weights @ tokens))
    entropy = [text.unigram_entropy for text in scored]
    return TextQuality(
        texts=len(texts),
        perplexity=math.exp(float(nats.sum() / tokens.sum())),
        perplexity_interval=(math.exp(low), math.exp(high)),
        unigram_entropy=sum(entropy) / len(entropy),
        unigram_entropy_interval=mean_interval(entropy, weights),
        distinct=len(set(texts)) / len(texts),
        mauve=None if against is None else mauve_of(_features(scored), against),
    )


def mauve_of(features: Tensor, against: Tensor) -> float:
    """MAUVE of the distributions behind features (N, D) and (M, D), by mauve-text.

    The library's own settings: min(N, M) / 10 clusters, scaling factor 5.

    Raises:
        ModuleNotFoundError: mauve-text is missing.
    """
    require_mauve()
    import mauve

    result = mauve.compute_mauve(
        p_features=features.double().numpy(),
        q_features=against.double().numpy(),
        seed=MAUVE_SEED,
        verbose=False,
    )
    return float(result.mauve)


def require_mauve() -> None:
    """Raise ``ModuleNotFoundError`` where mauve-text is not installed."""
    if find_spec("mauve") is None:
        raise ModuleNotFoundError(
            "MAUVE needs mauve-text: pip install '.[text]' in a checkout of boe; "
            "or leave it out (boe compare --no-mauve)"
        )


def _features(scored: Sequence[ScoredText]) -> Tensor:
    return torch.stack([text.feature for text in scored])
