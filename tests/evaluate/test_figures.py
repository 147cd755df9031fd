"""The figures: what they draw, and how they are saved."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from results_of_fakes import BASE, fake_ablation, fake_comparison, prose_comparison

from boe.evaluate.figures.ablation import plot_ablation
from boe.evaluate.figures.costs import plot_comparison, plot_residual_entropy
from boe.evaluate.figures.standing import plot_standing
from boe.evaluate.figures.style import check_figure_path, looks
from boe.evaluate.figures.texts import plot_texts
from boe.evaluate.settings import Setting
from boe.evaluate.standing import Best, Standing


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_sets_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"plot{suffix}"
    plot_comparison(fake_comparison(), path, costs=("flop_equiv",))
    assert path.read_bytes().startswith(magic)


def test_the_same_result_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_comparison(fake_comparison(), tmp_path / name, costs=("flop_equiv",))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list]:
    """Draws, and returns the axes instead of closing the figure."""
    from matplotlib import pyplot

    kept: list = []

    def draw(plot: Callable[..., None], result: object, **options: object) -> list:
        monkeypatch.setattr(pyplot, "close", kept.append)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *a, **o: None)
        plot(result, tmp_path / "plot.png", **options)
        monkeypatch.undo()
        axes = kept[-1].axes
        pyplot.close(kept[-1])
        return axes

    return draw


def test_every_cost_has_a_panel_with_a_curve_per_sampler_and_the_frontier(drawn) -> None:
    comparison = fake_comparison()
    axes = drawn(plot_comparison, comparison)
    assert [axis.get_xlabel() for axis in axes] == [
        "forwards per item",
        "backward passes per item",
        "cost in forwards per item",
        "seconds per item",
    ]
    labels = axes[2].get_legend_handles_labels()[1]
    assert labels == ["frontier", "confidence", BASE, "boe:tolerance=none,rho=0.75"]
    points = [(s.flop_equiv, s.accuracy) for s in comparison.summaries if s.sampler == BASE]
    line = axes[2].containers[1].lines[0]
    assert sorted(points) == list(
        zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True)
    )
    (frontier,) = [line for line in axes[2].lines if line.get_label() == "frontier"]
    assert frontier.get_xdata().tolist()[0] == min(s.flop_equiv for s in comparison.summaries)


def test_a_cost_that_nobody_has_gets_no_panel(drawn) -> None:
    axes = drawn(plot_comparison, fake_comparison(0, "confidence", "margin"))
    assert "backward passes per item" not in [axis.get_xlabel() for axis in axes]
    assert len(axes) == 3


def test_texts_are_drawn_against_cost_with_real_text_across(drawn) -> None:
    comparison = prose_comparison()
    axes = drawn(plot_texts, comparison)
    labels = [axis.get_ylabel() for axis in axes]
    assert labels == ["perplexity under the scorer", "unigram entropy, nats"], "no MAUVE"
    names = axes[1].get_legend_handles_labels()[1]
    assert names == ["real text", "confidence", BASE, "boe:tolerance=none,rho=0.75"]
    assert comparison.text is not None
    (real,) = [line for line in axes[1].lines if line.get_label() == "real text"]
    assert real.get_ydata()[0] == comparison.text.real.unigram_entropy
    line = axes[0].containers[1].lines[0]
    costs = {(s.sampler, s.setting): s.flop_equiv for s in comparison.summaries}
    expected = sorted(
        (costs[row.sampler, row.setting], row.quality.perplexity)
        for row in comparison.text.rows
        if row.sampler == BASE
    )
    assert list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True)) == expected
    with pytest.raises(ValueError, match="writes no prose"):
        plot_texts(fake_comparison(), Path("never.svg"))


def test_costs_that_span_much_are_drawn_on_a_logarithmic_axis(drawn) -> None:
    comparison = fake_comparison()
    assert drawn(plot_comparison, comparison)[2].get_xscale() == "linear"
    first, *rest = comparison.summaries
    dear = replace(first, flop_equiv=400.0)
    wide = replace(comparison, summaries=(dear, *rest))
    assert drawn(plot_comparison, wide)[2].get_xscale() == "log"


def test_residual_entropy_has_a_row_per_setting_by_steps_and_by_cost(drawn) -> None:
    comparison = fake_comparison(3)
    axes = drawn(plot_residual_entropy, comparison)
    assert [axis.get_xlabel() for axis in axes] == ["steps taken", "cost spent, in forwards"] * 2
    curve = comparison.residual[0]
    assert axes[0].lines[0].get_ydata() == pytest.approx(curve.entropy)
    assert axes[1].lines[0].get_xdata() == pytest.approx(curve.cost)
    with pytest.raises(ValueError, match="none were traced"):
        plot_residual_entropy(fake_comparison(), Path("x.png"))


def test_ablation_bars_stand_for_the_difference_to_the_base(drawn) -> None:
    ablation = fake_ablation()
    (axis,) = drawn(plot_ablation, ablation)
    shown = [row for row in ablation.rows if row.summary is not None]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [f"{row.variant.axis} = {row.variant.label}" for row in shown]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axis.patches}
    for place, row in enumerate(shown):
        if row.pair is not None:
            assert bars[place] == pytest.approx(100 * row.pair.accuracy)
        else:
            assert place not in bars


def test_looks_are_all_different_for_21_curves() -> None:
    assert len({tuple(sorted(look.items())) for look in looks(21)}) == 21
    assert len(looks(40)) == 40


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plot must end in \.png, \.svg or \.pdf, got 'a\.gif'"):
        check_figure_path(Path("a.gif"))


def test_without_matplotlib_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **options: object):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[plot\]'"):
        plot_comparison(fake_comparison(), tmp_path / "plot.png")


def test_a_standing_shows_points_ahead_and_says_where_no_rival_is_so_cheap(drawn) -> None:
    def at(rate: int, best: Best | None) -> Standing:
        costs = {"flop_equiv": 9.0 / rate, "seconds": 0.1}
        return Standing("o", Setting(rate), 0.5, costs, {"flop_equiv": best, "seconds": None})

    behind = Best(("a",), 0.6, -0.1, (-0.2, -0.05))
    ahead = Best(("a",), 0.3, 0.2, (0.1, 0.3))
    comparison = replace(fake_comparison(), standing=(at(1, behind), at(2, ahead)))
    forwards, seconds = drawn(plot_standing, [comparison, comparison])
    shown = [label.get_text() for label in forwards.get_yticklabels()]
    assert shown == ["fake, 1 per step", "fake, 2 per step"] * 2
    points = [line for line in forwards.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([-10, 20] * 2)
    assert points[0].get_color() != points[1].get_color()
    ends = [tuple(line.get_xdata()) for line in forwards.lines if line.get_linewidth() == 1.2]
    assert [pytest.approx(end) for end in ends[:2]] == [(-20, -5), (10, 30)]
    assert [text.get_text() for text in seconds.texts] == ["no rival is so cheap"] * 4


def test_without_a_standing_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the comparison on fake has no standing"):
        plot_standing([replace(fake_comparison(), standing=())], tmp_path / "plot.svg")
