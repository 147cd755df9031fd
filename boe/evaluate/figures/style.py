"""What all figures share: colours that everybody can tell apart, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, without the yellow that white paper swallows; black comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", "--", ":")


def check_figure_path(path: Path) -> None:
    """Raise ``ValueError`` unless the suffix is a format that figures are saved in."""
    if path.suffix not in FORMATS:
        raise ValueError(f"plot must end in {', '.join(FORMATS[:-1])} or .pdf, got {path.name!r}")


def require_matplotlib() -> None:
    """Raises ModuleNotFoundError, naming the extra, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install '.[plot]' in a checkout of boe"
        ) from error


def looks(count: int) -> list[dict[str, Any]]:
    """Colour, marker and line for each of ``count`` curves, no two the same until 21."""
    kinds = [
        {"color": colour, "marker": marker, "linestyle": line}
        for line, (colour, marker) in product(LINES, zip(COLOURS, MARKERS, strict=True))
    ]
    return [kinds[k % len(kinds)] for k in range(count)]


@contextmanager
def figure(
    path: Path, rows: int, columns: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``rows`` × ``columns`` panels that is saved to ``path`` at the end.

    The same content makes the same file, so that a figure can be committed.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: the suffix is no known format.
    """
    check_figure_path(path)
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "svg.hashsalt": "boe",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        width, height = size
        drawn, axes = pyplot.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False
        )
        try:
            yield drawn, list(axes.flat)
            drawn.tight_layout()
            undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
            drawn.savefig(path, dpi=150, bbox_inches="tight", metadata=undated[path.suffix])
        finally:
            pyplot.close(drawn)
