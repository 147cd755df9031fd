"""Plots of committed results: ``python -m bench plot``.

Draws from the CSV files alone, so that every picture can be made again from what is
committed: the backward's latency against |A| with the roofline where one was measured, the
cost of a decoding step, and the vocabulary statistics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import console
from bench.results import RESULTS, Config, Measurement, Quantiles, as_measurement, read_rows

IMAGES = Path(__file__).parents[1] / "docs" / "img"
_FLOOR = "roofline"
_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        curves: by label, values by x.
        levels: by label, values that do not depend on x.
        bound: the label of the curve that nothing can pass.
        is_ratio: y is drawn from 0, not by its logarithm.
    """

    title: str
    x: str
    y: str
    curves: Mapping[str, Mapping[int, Quantiles]]
    levels: Mapping[str, Quantiles]
    bound: str = _FLOOR
    is_ratio: bool = False

    @property
    def worth_drawing(self) -> bool:
        return any(len(points) > 1 for points in self.curves.values())


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw panels side by side; the suffix sets the format.

    Raises:
        ModuleNotFoundError: matplotlib is missing (the extra ``plot``).
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'boe-kernels[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same numbers give the same file; text stays text.
    with matplotlib.rc_context({"svg.hashsalt": "boe", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(4.6 * len(panels), 3.9), sharey=True, squeeze=False
        )
        for axis, panel in zip(axes[0], panels, strict=True):
            _draw_panel(axis, panel)
        axes[0][0].set_ylabel(panels[0].y)
        axes[0][-1].legend(fontsize=8)
        figure.suptitle(title, fontsize=10)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            pyplot.close(figure)


def _draw_panel(axis: Any, panel: Panel) -> None:
    labels = [*panel.curves, *panel.levels]
    shown = [label for label in labels if label != panel.bound]
    colours = {label: f"C{number}" for number, label in enumerate(shown)}
    for number, (label, points) in enumerate(panel.curves.items()):
        x = sorted(points)
        if label == panel.bound:
            axis.plot(x, [points[at].p50 for at in x], "k--", linewidth=1, label=label)
            continue
        colour = colours[label]
        marker = _MARKERS[number % len(_MARKERS)]
        middle = [points[at].p50 for at in x]
        axis.plot(x, middle, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
        spread = ([points[at].p20 for at in x], [points[at].p80 for at in x])
        axis.fill_between(x, *spread, color=colour, alpha=0.2, linewidth=0)
    for label, value in panel.levels.items():
        axis.axhline(value.p50, color=colours[label], linestyle=":", linewidth=1.4, label=label)
    axis.set_title(panel.title, fontsize=9)
    axis.set_xlabel(panel.x)
    axis.set_xscale("log", base=2)
    sizes = sorted({at for points in panel.curves.values() for at in points})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    if panel.is_ratio:
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")


# --- from measurements to panels ----------------------------------------------------


def _curves(
    measured: Sequence[Measurement],
    along: str,
    fixed: Config,
    providers: Sequence[str] | None,
    belongs: Callable[[Measurement], bool],
) -> dict[str, dict[int, Quantiles]]:
    """Values by provider and by the size ``along``, where all other sizes are ``fixed``."""
    curves: dict[str, dict[int, Quantiles]] = {}
    for m in measured:
        if not belongs(m) or m.value is None:
            continue
        config = dict(m.config)
        at = config.pop(along, None)
        if at is None or config != fixed or (providers and m.provider not in providers):
            continue
        curves.setdefault(m.provider, {})[int(at)] = m.value
    if not providers:
        return curves
    return {name: curves[name] for name in providers if name in curves}


def _timed(benchmark: str, mode: str, dtype: str) -> Callable[[Measurement], bool]:
    wanted = (benchmark, mode, dtype, "time_ms")
    return lambda m: (m.benchmark, m.mode, m.dtype, m.metric) == wanted


def attention_on_cpu(measured: Sequence[Measurement]) -> list[Panel]:
    """The backward at L = 1024 in float32, for two head widths."""
    belongs = _timed("attention", "backward", "float32")
    fixed = {"B": 1, "H": 8, "Hkv": 8, "L": 1024}
    return [
        Panel(
            f"d = {width}",
            "active rows |A|",
            "backward, ms",
            _curves(measured, "A", {**fixed, "d": width}, None, belongs),
            {},
        )
        for width in (64, 128)
    ]


def step_on_cpu(measured: Sequence[Measurement]) -> list[Panel]:
    """A decoding step in forwards, and what it would be if rows were all that counted."""

    def belongs(m: Measurement) -> bool:
        return (m.benchmark, m.metric) == ("step", "ratio")

    shapes = [dict(m.config) for m in measured if m.benchmark == "step"]
    if not shapes:
        return []
    fixed = {key: value for key, value in shapes[0].items() if key != "A"}
    found = _curves(measured, "A", fixed, None, belongs)
    curves = {name.removesuffix("/forward"): points for name, points in found.items()}
    length = int(fixed["L"])
    sizes = sorted({at for points in curves.values() for at in points})
    ideal = "ideal, 1 + 2·|A|/L"
    curves[ideal] = {at: Quantiles.of([1 + 2 * at / length]) for at in sizes}
    title, y = f"L = {length}", "step, forwards"
    return [Panel(title, "active rows |A|", y, curves, {}, bound=ideal, is_ratio=True)]


def attention_on_gpu(measured: Sequence[Measurement], launch: str) -> Iterator[Panel]:
    """The backward at L = 1024 and 4096, for plain and grouped heads, with its roofline."""
    mode = f"backward, {launch}"
    belongs = _timed("attention", mode, "bfloat16")
    providers = ("ours", "two_call", "gathered_aten", _FLOOR)
    for heads, kv_heads in ((32, 32), (28, 4)):
        for length in (1024, 4096):
            fixed = {"B": 1, "H": heads, "Hkv": kv_heads, "d": 128, "L": length}
            levels = {
                f"{m.provider}, dense": m.value
                for m in measured
                if belongs(m) and m.value is not None and dict(m.config) == fixed
                if m.provider in ("flash", "cudnn", "efficient")
            }
            yield Panel(
                f"{heads} heads on {kv_heads}, L = {length}",
                "active rows |A|",
                f"{mode}, ms",
                _curves(measured, "A", fixed, providers, belongs),
                levels,
            )


def entropy_on_gpu(measured: Sequence[Measurement]) -> list[Panel]:
    """Statistics and gradient against the number of rows."""
    mode = "forward+backward, graphed"
    belongs = _timed("entropy", mode, "bfloat16")
    providers = ("ours", "eager", "categorical", "compile", _FLOOR)
    curves = _curves(measured, "N", {"V": 126_464}, providers, belongs)
    return [Panel("V = 126,464", "rows", f"{mode}, ms", curves, {})]


def pictures(path: Path) -> Iterator[tuple[str, str, list[Panel]]]:
    """File name, title and panels of what can be drawn from a file of results."""
    rows = read_rows(path)
    for hardware in dict.fromkeys(row["hardware"] for row in rows):
        measured = [as_measurement(row) for row in rows if row["hardware"] == hardware]
        if path.stem == "attention-cpu":
            title = f"Backward through the active rows, float32, L = 1024: {hardware}"
            yield path.stem, title, attention_on_cpu(measured)
        elif path.stem == "step-cpu":
            yield path.stem, f"One decoding step: {hardware}", step_on_cpu(measured)
        elif not path.stem.endswith(("-cpu", "-unverified")):
            for launch in ("graphed", "eager"):
                title = f"Backward through the active rows, bfloat16, d = 128: {hardware}"
                panels = list(attention_on_gpu(measured, launch))
                yield f"{path.stem}-attention-{launch}", title, panels
            title = f"Entropy with gradient, bfloat16: {hardware}"
            yield f"{path.stem}-entropy", title, entropy_on_gpu(measured)


def draw_all(results: Path, images: Path, suffix: str) -> list[Path]:
    """Draw what there are results for; returns the files."""
    drawn = []
    for path in sorted(results.glob("*.csv")):
        for name, title, panels in pictures(path):
            panels = [panel for panel in panels if panel.worth_drawing]
            if panels:
                drawn.append(images / f"{name}{suffix}")
                draw(panels, title, drawn[-1])
    return drawn


def main(argv: Sequence[str]) -> None:
    """Draw what is committed."""
    parser = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files")
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder for the pictures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args(argv)
    drawn = draw_all(options.results, options.output, f".{options.format}")
    for path in drawn:
        console().print(str(path), highlight=False)
    if not drawn:
        raise SystemExit(f"nothing to draw in {options.results}")


if __name__ == "__main__":
    main(sys.argv[1:])
