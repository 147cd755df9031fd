"""Results of the fake task, for what is made of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from fake_task import FakeTask
from torch import Tensor

from boe.evaluate import Comparison, Group, Setting, Study, analyse, run_study
from boe.evaluate.ablation import Ablation, ablation_of, study_of, variants_of
from boe.evaluate.ablation_axes import AXES
from boe.evaluate.text_quality import text_results

BASE = "boe:tolerance=none,rho=0.5"


@cache
def fake_comparison(traced: int = 0, *samplers: str) -> Comparison:
    names = samplers or ("confidence", BASE, "boe:tolerance=none,rho=0.75")
    study = Study(
        task="fake",
        difficulty="hard",
        groups=(Group(names, (Setting(1), Setting(2))),),
        items=6,
        traced=traced,
    )
    return analyse(run_study(study, FakeTask()))


@cache
def fake_ablation() -> Ablation:
    axes = [axis for axis in AXES if axis.name in ("rho", "active", "alpha")]
    variants = variants_of(BASE, axes)
    bare = Study("fake", "hard", (Group((BASE,), (Setting(1),)),), items=6)
    run = run_study(study_of(BASE, variants, bare), FakeTask())
    return ablation_of(BASE, axes, variants, analyse(run))


@dataclass(frozen=True)
class Scored:
    tokens: int
    nats: float
    unigram_entropy: float
    feature: Tensor


class LetterScorer:
    """A token per letter; "a" costs 1 nat, any other letter 3."""

    def score(self, texts: Sequence[str]) -> list[Scored]:
        return [
            Scored(
                len(text),
                sum(1.0 if letter == "a" else 3.0 for letter in text),
                float(len(set(text))),
                torch.tensor([text.count("a"), text.count("b"), float(len(text))]),
            )
            for text in texts
        ]


@cache
def prose_comparison() -> Comparison:
    """The fake comparison with its answers measured as if they were prose, without MAUVE."""
    bare = fake_comparison()
    texts = text_results(bare.records, LetterScorer(), ["ab"], ["ab", "ba", "bb"] * 4, mauve=False)
    return replace(bare, text=texts)
