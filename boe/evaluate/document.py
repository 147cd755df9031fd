"""Documents whose tables and figures come from stored results.

A section between ``<!-- boe: VIEW PATH -->`` and ``<!-- /boe -->`` holds what the view makes
of the result at PATH, which is relative to the document: a JSON file, or the directory that
``boe eval`` wrote; some views take several, with commas between. Whatever stood there is
replaced; everything else is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boe.evaluate.ablation import Ablation, ablation_from_json
from boe.evaluate.comparison import AXES, Comparison
from boe.evaluate.fidelity.report import fidelity_table, plot_fidelity, theorem_table
from boe.evaluate.fidelity.study import Fidelity, fidelity_from_json
from boe.evaluate.figures.ablation import plot_ablation
from boe.evaluate.figures.costs import plot_comparison, plot_residual_entropy
from boe.evaluate.figures.standing import plot_standing
from boe.evaluate.figures.texts import plot_texts
from boe.evaluate.stored import comparison_from_json
from boe.evaluate.tables import (
    ablation_table,
    equal_cost_table,
    pairs_table,
    pivot_table,
    standing_table,
    summary_table,
    text_table,
)

_SECTION = re.compile(
    r"^<!-- boe: (?P<view>[a-z_-]+) (?P<path>\S+) -->\n(?P<body>.*?)^<!-- /boe -->$",
    re.MULTILINE | re.DOTALL,
)
FILES = ("comparison.json", "ablation.json", "fidelity.json")
PLAN = "plan.toml"

Result = Comparison | Ablation | Fidelity


@dataclass(frozen=True)
class Filled:
    """A document with its sections made anew.

    Attributes:
        stale: sections, as "VIEW PATH", whose content was another before.
        missing: results that are not there.
    """

    text: str
    stale: tuple[str, ...]
    missing: tuple[str, ...]


def fill_document(document: Path, figures: bool = True) -> Filled:
    """The document with every section made from its result; nothing is written to it.

    Args:
        figures: draw figures anew, beside the results that they show.

    Raises:
        ValueError: an unknown view, one that does not fit the result, or a damaged result;
            the message names document and section.
    """
    text = document.read_text(encoding="utf-8")
    stale: list[str] = []
    missing: list[str] = []

    def fill(match: re.Match[str]) -> str:
        view, place = match["view"], match["path"]
        name = f"{view} {place}"
        try:
            if view in _JOINT:
                body, absent = _joint_section(view, document.parent, place.split(","), figures)
            else:
                body, absent = _section(view, document.parent, place, figures)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{document}, section {name!r}: {error}") from error
        missing.extend(absent)
        body = f"\n{body}\n\n"
        if body != match["body"]:
            stale.append(name)
        return f"<!-- boe: {name} -->\n{body}<!-- /boe -->"

    filled = _SECTION.sub(fill, text)
    return Filled(filled, tuple(stale), tuple(dict.fromkeys(missing)))


def read_result(path: Path) -> Result:
    """A stored comparison, ablation or fidelity: a JSON file, or the one in a directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none of these.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} holds none of {', '.join(FILES)}")
        path = found[0]
    content: dict[str, Any] = json.loads(path.read_text())
    schema = str(content.get("schema"))
    readers: dict[str, Callable[[dict[str, Any]], Result]] = {
        "boe/compare/": comparison_from_json,
        "boe/ablate/": ablation_from_json,
        "boe/fidelity/": fidelity_from_json,
    }
    for prefix, reader in readers.items():
        if schema.startswith(prefix):
            return reader(content)
    raise ValueError(f"{path}: schema must be of compare, ablate or fidelity, got {schema!r}")


def _section(view: str, folder: Path, place: str, figures: bool) -> tuple[str, list[str]]:
    """A section's content, and its ``place`` where its result is not there."""
    if view not in VIEWS:
        raise ValueError(f"the view must be one of {', '.join(VIEWS)}")
    path = folder / place
    try:
        result = read_result(path)
    except FileNotFoundError:
        return _not_measured(path, place), [place]
    if view == "about":
        return _about(result), []
    if view in _TABLES:
        kind, table = _TABLES[view]
        _check(result, kind)
        return table(result), []
    kind, file, alt, draw = _FIGURES[view]
    _check(result, kind)
    home = path if path.is_dir() else path.parent
    stem = file if path.is_dir() else f"{path.stem}-{file}"
    if figures:
        draw(result, home / f"{stem}.svg")
    link = place if path.is_dir() else str(Path(place).parent)
    return f"![{alt}]({link}/{stem}.svg)", []


def _joint_section(
    view: str, folder: Path, places: list[str], figures: bool
) -> tuple[str, list[str]]:
    """As :func:`_section` from several comparisons; a figure goes beside the first of them."""
    results = []
    absent = []
    for place in places:
        try:
            result = read_result(folder / place)
        except FileNotFoundError:
            absent.append(place)
            continue
        _check(result, Comparison)
        assert isinstance(result, Comparison)
        results.append(result)
    if absent:
        return "\n\n".join(_not_measured(folder / place, place) for place in absent), absent
    if view == "standing":
        return standing_table(results).as_markdown(), []
    file = Path(places[0]).with_name("standing.svg")
    if figures:
        plot_standing(results, folder / file)
    return f"![Points ahead of the best rival at equal cost]({file})", []


def _not_measured(path: Path, place: str) -> str:
    plan = path / PLAN
    how = f": `boe eval {plan.name}` in `{place}`" if plan.is_file() else ""
    return f"*Not measured yet{how}.*"


def _check(result: Result, kind: type) -> None:
    if not isinstance(result, kind):
        raise ValueError(f"the view needs a {kind.__name__}, got a {type(result).__name__}")


def _about(result: Result) -> str:
    where = result.environment
    machine = f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}"
    study = result.study
    if isinstance(result, Fidelity):
        what = f"{result.study.source}; {result.study.canvases} canvases per mask fraction"
    else:
        seeds = ", ".join(map(str, study.seeds))  # type: ignore[union-attr]
        what = (
            f"Task `{study.task}`, {study.difficulty}: {study.items} {study.split} items, "  # type: ignore[union-attr]
            f"seed {study.item_seed}, draws {seeds}"  # type: ignore[union-attr]
        )
    interrupted = "" if result.complete else " Interrupted: not everything was measured."
    return f"{what}. {machine}.{interrupted}"


_TABLES: dict[str, tuple[type, Callable[[Any], str]]] = {
    "summary": (Comparison, lambda r: summary_table(r).as_markdown()),
    "pivot": (Comparison, lambda r: pivot_table(r).as_markdown()),
    "text": (Comparison, lambda r: text_table(r).as_markdown()),
    "pairs": (Comparison, lambda r: pairs_table(r, _boes(r)).as_markdown()),
    "equal-cost": (Comparison, lambda r: equal_cost_table(r, AXES[0]).as_markdown()),
    "equal-time": (Comparison, lambda r: equal_cost_table(r, AXES[1]).as_markdown()),
    "ablation": (Ablation, lambda r: ablation_table(r).as_markdown()),
    "fidelity": (Fidelity, lambda r: fidelity_table(r).as_markdown()),
    "theorem": (Fidelity, lambda r: theorem_table(r).as_markdown()),
}
_FIGURES: dict[str, tuple[type, str, str, Callable[[Any, Path], None]]] = {
    "figure-cost": (
        Comparison,
        "accuracy-cost",
        "Share of right answers against each cost, with the frontier",
        plot_comparison,
    ),
    "figure-entropy": (
        Comparison,
        "residual-entropy",
        "Entropy left in the masks against steps and cost",
        plot_residual_entropy,
    ),
    "figure-text": (
        Comparison,
        "text-cost",
        "Perplexity, unigram entropy and MAUVE of what was written against its cost",
        plot_texts,
    ),
    "figure-ablation": (Ablation, "ablation", "Difference to the base", plot_ablation),
    "figure-fidelity": (
        Fidelity,
        "fidelity",
        "Rank correlation with the true drop against the cost of a step",
        plot_fidelity,
    ),
}
_JOINT = ("standing", "figure-standing")
VIEWS = (*_TABLES, *_FIGURES, *_JOINT, "about")


def _boes(comparison: Comparison) -> list[str]:
    """The samplers that steer by BoE."""
    names = dict.fromkeys(summary.sampler for summary in comparison.summaries)
    return [name for name in names if name.partition(":")[0].partition("+")[0] == "boe"]
