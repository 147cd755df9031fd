"""Documents made from stored results."""

from __future__ import annotations

from pathlib import Path

import pytest
from results_of_fakes import fake_ablation, fake_comparison

from boe.evaluate.document import VIEWS, fill_document, read_result
from boe.evaluate.tables import pivot_table, standing_table
from boe.files import write_json

DOCS = Path(__file__).parents[2] / "docs"
MEASURED = [DOCS / "evidence.md", *sorted((DOCS / "evidence").glob("*.md")), DOCS / "search.md"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (
        ("c/comparison.json", fake_comparison(3).as_json(records=False)),
        ("a/ablation.json", fake_ablation().as_json()),
        ("single.json", fake_comparison().as_json()),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_json(path, content)
    return tmp_path


def section(view: str, place: str, body: str = "") -> str:
    return f"<!-- boe: {view} {place} -->\n{body}<!-- /boe -->\n"


def document(folder: Path, *sections: str) -> Path:
    path = folder / "doc.md"
    path.write_text("# Before\n\n" + "\nbetween\n\n".join(sections) + "\nafter\n")
    return path


def test_a_section_is_replaced_and_all_else_left_alone(folder: Path) -> None:
    path = document(folder, section("pivot", "c", "old\n"), section("about", "single.json"))
    filled = fill_document(path)
    assert pivot_table(fake_comparison(3)).as_markdown() in filled.text
    assert "old" not in filled.text
    assert filled.text.startswith("# Before\n\n<!-- boe: pivot c -->\n")
    assert "\nbetween\n" in filled.text
    assert filled.text.endswith("<!-- /boe -->\n\nafter\n")
    assert "Task `fake`, hard: 6 test items, seed 0, draws 0." in filled.text
    assert filled.stale == ("pivot c", "about single.json")
    assert filled.missing == ()


def test_a_document_that_is_current_stays_as_it_is(folder: Path) -> None:
    path = document(folder, section("summary", "c"), section("ablation", "a"))
    path.write_text(fill_document(path).text)
    again = fill_document(path)
    assert again.stale == ()
    assert again.text == path.read_text()


def test_a_result_that_is_not_there_is_said_to_be_missing(folder: Path) -> None:
    (folder / "later").mkdir()
    (folder / "later" / "plan.toml").write_text("")
    path = document(folder, section("pivot", "later"), section("pivot", "nowhere"))
    filled = fill_document(path)
    assert filled.missing == ("later", "nowhere")
    assert "*Not measured yet: `boe eval plan.toml` in `later`.*" in filled.text
    assert "*Not measured yet.*" in filled.text


@pytest.mark.parametrize(
    ("view", "place", "file"),
    [
        ("figure-cost", "c", "c/accuracy-cost.svg"),
        ("figure-entropy", "c", "c/residual-entropy.svg"),
        ("figure-ablation", "a", "a/ablation.svg"),
        ("figure-cost", "single.json", "./single-accuracy-cost.svg"),
    ],
)
def test_figures_are_drawn_beside_the_result_and_linked(folder: Path, view, place, file) -> None:
    path = document(folder, section(view, place))
    assert f"]({file})" in fill_document(path, figures=False).text
    assert not (folder / file).exists()
    fill_document(path)
    assert (folder / file).read_bytes().startswith(b"<?xml")


def test_some_views_take_several_results(folder: Path) -> None:
    (folder / "d").mkdir()
    write_json(folder / "d" / "comparison.json", fake_comparison(3).as_json(records=False))
    path = document(folder, section("standing", "c,d"), section("figure-standing", "d/,c"))
    filled = fill_document(path)
    assert standing_table([fake_comparison(3)] * 2).as_markdown() in filled.text
    assert "](standing.svg)" in filled.text
    assert (folder / "standing.svg").read_bytes().startswith(b"<?xml")
    assert filled.missing == ()


def test_of_several_results_those_that_are_not_there_are_said_to_be_missing(folder: Path) -> None:
    filled = fill_document(document(folder, section("standing", "c,later,never")))
    assert filled.missing == ("later", "never")
    assert filled.text.count("*Not measured yet.*") == 2


@pytest.mark.parametrize(
    ("view", "place", "message"),
    [
        ("standing", "c,a", "the view needs a Comparison, got a Ablation"),
        ("best", "c", "section 'best c': the view must be one of summary, pivot"),
        ("ablation", "c", "the view needs a Ablation, got a Comparison"),
        ("pivot", "other.json", "schema must be of compare, ablate or fidelity"),
    ],
)
def test_a_section_that_cannot_be_made_is_named(folder: Path, view, place, message) -> None:
    (folder / "other.json").write_text('{"schema": "boe/solve/1"}')
    with pytest.raises(ValueError, match=message):
        fill_document(document(folder, section(view, place)))


def test_a_result_is_read_from_a_file_or_a_directory(folder: Path) -> None:
    assert read_result(folder / "c") == read_result(folder / "c" / "comparison.json")
    assert read_result(folder / "a") == fake_ablation()
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds none of comparison\.json"):
        read_result(folder / "empty")


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_a_document_of_measurements_is_what_the_stored_results_say(path: Path) -> None:
    """`make report` makes it so."""
    filled = fill_document(path, figures=False)
    assert filled.stale == ()
    assert filled.missing == ()


def test_every_view_is_named_in_the_documentation() -> None:
    text = (DOCS / "command-line.md").read_text()
    for view in VIEWS:
        assert f"`{view}`" in text
