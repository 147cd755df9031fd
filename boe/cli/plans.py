"""Plans: studies in TOML files, so that evidence can be committed and repeated.

``kind`` is "compare" (the default), "ablate" or "fidelity"; the other keys are the options
of that command.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boe.arguments import check_whole
from boe.evaluate.ablation import variants_of
from boe.evaluate.ablation_axes import Axis, custom_axis, usual_axes
from boe.evaluate.comparison import check_references
from boe.evaluate.fidelity.study import SCORES, FidelityStudy
from boe.evaluate.fidelity.truth import TruthOptions
from boe.evaluate.study import Group, Study, settings_of

_STUDY = ("task", "difficulty", "items", "seed", "split", "seeds", "batch", "traced", "timings")
_SETTINGS = ("tokens_per_step", "steps", "cosine", "block_length", "temperature", "top_p")
_GROUP = ("samplers", "curve", "rival")
_TRUTH = ("mass", "max_tokens", "grid", "chunk")


@dataclass(frozen=True)
class ComparePlan:
    study: Study
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblatePlan:
    """``study`` has the base alone; the variants follow from it."""

    study: Study
    base: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class FidelityPlan:
    """``task`` with ``difficulty``, or ``model`` with ``text`` and ``length``."""

    study: FidelityStudy
    task: str | None = None
    difficulty: str = "hard"
    order: str = "confidence"
    model: str | None = None
    text: Path | None = None
    length: int = 128


Plan = ComparePlan | AblatePlan | FidelityPlan


def read_plan(path: Path) -> Plan:
    """A plan from a TOML file.

    Raises:
        ValueError: no TOML, an unknown key or a value that does not fit; the message names
            the file.
    """
    try:
        content = tomllib.loads(path.read_text())
        return plan_of(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def plan_of(content: Mapping[str, Any]) -> Plan:
    """A plan from its keys."""
    kinds: dict[str, Callable[[Mapping[str, Any]], Plan]]
    kinds = {"compare": _compare, "ablate": _ablate, "fidelity": _fidelity}
    kind = content.get("kind", "compare")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]({name: value for name, value in content.items() if name != "kind"})


def axes_of(base: str, vary: Mapping[str, Any] | None) -> tuple[Axis, ...]:
    """Axes over options with the given values, as text; the base's usual ones by default."""
    if vary is None:
        return usual_axes(base)
    return tuple(custom_axis(name, [str(v) for v in values]) for name, values in vary.items())


def _compare(content: Mapping[str, Any]) -> ComparePlan:
    _check(content, (*_STUDY, "reference", "group"))
    groups = []
    tables = content.get("group", [])
    if not isinstance(tables, list):
        raise ValueError("group must be written [[group]], each with its samplers")
    for group in tables:
        _check(group, (*_SETTINGS, "guidance", *_GROUP))
        samplers = _listed(group, "samplers", str)
        options = {k: v for k, v in group.items() if k not in _GROUP}
        rival = group.get("rival", True)
        if not isinstance(rival, bool):
            raise ValueError(f"rival must be true or false, got {rival!r}")
        groups.append(Group(samplers, settings_of(_plain(options)), group.get("curve"), rival))
    named = content.get("reference", [])
    listed = {"reference": [named] if isinstance(named, str) else named}
    study = _study(content, tuple(groups))
    references = _listed(listed, "reference", str)
    check_references(study, references)
    return ComparePlan(study, references)


def _ablate(content: Mapping[str, Any]) -> AblatePlan:
    _check(content, (*_STUDY, *_SETTINGS, "base", "vary"))
    base, vary = content.get("base", "boe"), content.get("vary")
    if not isinstance(vary, dict | None):
        raise ValueError(f"vary must be a table of options with their values, got {vary!r}")
    axes = axes_of(base, None if vary is None else {n: _listed(vary, n) for n in vary})
    options = {name: content[name] for name in _SETTINGS if name in content}
    variants_of(base, axes)
    study = _study(content, (Group((base,), settings_of(_plain(options))),))
    return AblatePlan(study, base, axes)


def _fidelity(content: Mapping[str, Any]) -> FidelityPlan:
    own = ("scores", "fractions", "canvases", "candidates", "rho", "seed")
    where = ("task", "difficulty", "order", "model", "text", "length")
    _check(content, (*own, *where, *_TRUTH))
    return fidelity_plan(
        {name: content[name] for name in own if name in content},
        {name: content[name] for name in where if name in content},
        {name: content[name] for name in _TRUTH if name in content},
    )


def fidelity_plan(
    own: Mapping[str, Any], where: Mapping[str, Any], truth: Mapping[str, Any]
) -> FidelityPlan:
    """A plan from the study's options, where its canvases are from, and the truth's options.

    Raises:
        ValueError: not exactly one of task and model, or a model without text.
    """
    if ("task" in where) == ("model" in where):
        raise ValueError("fidelity needs either a task, or a model with a text")
    if "model" in where and "text" not in where:
        raise ValueError("fidelity of a model needs a text")
    places: dict[str, Any] = {**where}
    if "task" in where:
        places.setdefault("difficulty", "hard")
        places.setdefault("order", "confidence")
        source = f"{places['task']}, {places['difficulty']}, decoded in {places['order']} order"
    else:
        places["text"] = Path(where["text"])
        places.setdefault("length", 128)
        source = f"{places['model']} on {places['text'].name}, {places['length']} tokens"
    options: dict[str, Any] = {"scores": SCORES, **own}
    for name, kind in (("scores", str), ("fractions", float)):
        if name in options:
            options[name] = _listed(options, name, kind)
    study = FidelityStudy(source, **options, truth=TruthOptions(**truth))
    return FidelityPlan(study, **places)


def _study(content: Mapping[str, Any], groups: tuple[Group, ...]) -> Study:
    if "task" not in content:
        raise ValueError("a plan needs a task")
    for name in ("items", "seed", "batch", "traced", "timings"):
        if name in content:
            check_whole(name, content[name], least=None)
    seed = content.get("seed", 0)
    return Study(
        task=content["task"],
        difficulty=content.get("difficulty", "hard"),
        groups=groups,
        items=content.get("items", 100),
        item_seed=seed,
        split=content.get("split", "test"),
        seeds=_listed(content, "seeds", int) if "seeds" in content else (seed,),
        batch_size=content.get("batch", 50),
        traced=content.get("traced", 0),
        timings=content.get("timings", 1),
    )


def _listed(content: Mapping[str, Any], name: str, kind: type = object) -> tuple[Any, ...]:
    """What a key lists.

    Raises:
        ValueError: it is absent, no list, or lists something of another kind.
    """
    values = content.get(name)
    kinds = (int, float) if kind is float else kind
    if not isinstance(values, list | tuple) or not all(isinstance(v, kinds) for v in values):
        what = {str: "texts", int: "whole numbers", float: "numbers"}.get(kind, "values")
        raise ValueError(f"{name} must be a list of {what}, got {values!r}")
    return tuple(values)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with "none" as None, which TOML lacks."""

    def one(value: Any) -> Any:
        return None if value == "none" else value

    return {
        name: [one(v) for v in value] if isinstance(value, list) else one(value)
        for name, value in options.items()
    }


def _check(content: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in content:
        if name not in known:
            raise ValueError(f"keys are {', '.join(known)}, got {name!r}")
