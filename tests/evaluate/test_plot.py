"""The plot of accuracy against cost."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from boe.evaluate import Comparison, Record
from boe.evaluate.plot import plot_comparison


def comparison(backward: float = 3.0) -> Comparison:
    return Comparison(
        {"task": "fake"},
        [
            Record(k, sampler, tokens, k > 1, "1", 2, 4.0 / tokens, backward, 5.0 / tokens, 0.1)
            for sampler in ("confidence", "boe:preset=paper")
            for tokens in (1, 2)
            for k in range(4)
        ],
    )


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_sets_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"plot{suffix}"
    plot_comparison(comparison(), path)
    assert path.read_bytes().startswith(magic)


def drawn_axes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: Comparison) -> list:
    from matplotlib import pyplot

    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    plot_comparison(shown, tmp_path / "plot.png")
    monkeypatch.undo()
    axes = figures[0].axes
    pyplot.close(figures[0])
    return axes


def test_every_cost_has_a_panel_with_a_curve_per_sampler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    axes = drawn_axes(monkeypatch, tmp_path, comparison())
    assert [axis.get_xlabel() for axis in axes] == [
        "forwards per item",
        "backward passes per item",
        "cost in forwards per item",
        "seconds per item",
    ]
    labels = axes[-1].get_legend_handles_labels()[1]
    assert labels == ["confidence", "boe:preset=paper"]
    line = axes[0].containers[0].lines[0]
    assert line.get_xdata().tolist() == [2.0, 4.0]
    assert line.get_ydata().tolist() == [0.5, 0.5]


def test_a_cost_that_nobody_has_gets_no_panel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    axes = drawn_axes(monkeypatch, tmp_path, comparison(backward=0.0))
    assert "backward passes per item" not in [axis.get_xlabel() for axis in axes]
    assert len(axes) == 3


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **options: object):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'boe-kernels\[plot\]'"):
        plot_comparison(comparison(), tmp_path / "plot.png")
