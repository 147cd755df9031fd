"""Results of the fake task, for what is made of results."""

from __future__ import annotations

from functools import cache

from fake_task import FakeTask

from boe.evaluate import Comparison, Group, Setting, Study, analyse, run_study
from boe.evaluate.ablation import AXES, Ablation, ablation_of, study_of, variants_of

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
