"""The page of a trajectory: what it holds, that it is safe, and that its script works."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from fake_denoiser import MASK, FakeDenoiser, table_of
from fake_task import FakeTask

from boe.decoding import Account, StepRecord
from boe.evaluate import Setting
from boe.evaluate.player import Film, Scene, film_item, film_text, render_page
from boe.evaluate.player.page import embeddable_json, write_page
from boe.evaluate.player.scene import record_as_json, truth_of
from boe.tasks import SudokuTask, TaskItem
from boe.tasks.sudoku.grid import parse_grid

BOE = "boe:tolerance=none,rho=0.5"
NASTY = "</script><script>alert('x')</script>&<!--\u2028"
SOLVED = "812753649943682175675491283154237896369845721287169534521974368438526917796318452"


def step(positions: list[int], revealed: list[int], tokens: list[int], **more) -> StepRecord:
    count = len(positions)
    return StepRecord(
        positions=torch.tensor(positions),
        entropy=torch.linspace(1.0, 0.5, count),
        scores=torch.linspace(0.0, 1.0, count),
        parts=more.pop("parts", {}),
        revealed=torch.tensor(revealed),
        tokens=torch.tensor(tokens),
        **more,
    )


def film(*steps: StepRecord, ids: list[int], correct: bool | None = False) -> Film:
    return Film("boe", Setting(1), torch.tensor(ids), steps, Account(), correct)


def scene_of(*films: Film, truth: list[int] | None = None, **more) -> Scene:
    options = {"title": "a canvas", "columns": None, "label": lambda k: "·abcdef"[k], **more}
    return Scene(
        start=torch.tensor([1, MASK, MASK, MASK]),
        mask_id=MASK,
        films=films,
        truth=None if truth is None else torch.tensor(truth),
        **options,
    )


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open, data))

    @property
    def data(self) -> list[dict]:
        (index,) = [
            k for k, (tag, attrs) in enumerate(self.tags) if attrs.get("type") == "application/json"
        ]
        scripts = [text for tag, text in self.texts if tag == "script" and text.strip()]
        assert self.tags[index][0] == "script"
        return json.loads(scripts[0])


# --- what is told ---------------------------------------------------------------------


def test_the_first_mistake_is_the_first_wrong_write_that_stayed() -> None:
    told = film(
        step([1, 2, 3], [2], [5]),
        step([1, 3], [1], [4], remasked=torch.tensor([2])),
        step([2, 3], [2, 3], [2, 6]),
        ids=[1, 4, 2, 6],
    )
    mistakes = told.mistakes(torch.tensor([1, 2, 2, 3]))
    assert [(m.step, m.position, m.wrote, m.truth) for m in mistakes] == [
        (1, 1, 4, 2),
        (2, 3, 6, 3),
    ]


def test_a_right_answer_has_no_mistakes_though_it_is_not_the_reference() -> None:
    told = film(step([1, 2, 3], [1, 2, 3], [2, 3, 4]), ids=[1, 2, 3, 4], correct=True)
    assert told.mistakes(torch.tensor([1, 4, 3, 2])) == []
    assert replace(told, correct=False).mistakes(torch.tensor([1, 4, 3, 2])) != []
    assert replace(told, correct=False).mistakes(None) == []


def test_a_scene_tells_every_step_in_words() -> None:
    parts = {
        "tis": torch.tensor([0.5, float("inf"), 0.1]),
        "candidate": torch.tensor([1, 0, 1]).bool(),
    }
    told = film(
        step([1, 2, 3], [2], [5], parts=parts), step([1, 3], [1, 3], [2, 3]), ids=[1, 2, 5, 3]
    )
    content = scene_of(told, truth=[1, 2, 3, 3]).as_json()
    assert content["start"] == ["a", None, None, None]
    assert content["truth"] == ["a", "b", "c", "c"]
    (shown,) = content["films"]
    assert shown["final"] == ["a", "b", "e", "c"]
    assert shown["mistakes"] == [{"step": 0, "position": 2, "wrote": "e", "truth": "c"}]
    first = shown["steps"][0]
    assert first["tokens"] == ["e"]
    assert first["parts"] == {
        "tis": [0.5, None, pytest.approx(0.1)],
        "candidate": [True, False, True],
    }
    assert (shown["setting"], shown["correct"]) == ("1 per step", False)


def test_infinite_numbers_become_null() -> None:
    record = replace(step([1, 2], [1], [2]), scores=torch.tensor([-float("inf"), float("nan")]))
    assert record_as_json(record)["scores"] == [None, None]


def test_an_item_is_filmed_once_per_sampler_with_the_tasks_verdict() -> None:
    task = FakeTask()
    scene = film_item(task, task.items(1, 0)[0], task.denoiser(), ["confidence", BOE], Setting(1))
    assert [told.sampler for told in scene.films] == ["confidence", BOE]
    assert [told.correct for told in scene.films] == [True, True]
    assert [len(told.steps) for told in scene.films] == [4, 4]
    assert "tis" in scene.films[1].steps[0].parts
    assert scene.title == "fake, item 0"


def test_a_prompt_is_filmed_without_a_verdict() -> None:
    denoiser = FakeDenoiser(table_of([0.9, 0.5, 0.8]))
    ids = torch.tensor([MASK, 3, MASK])
    scene = film_text(denoiser, ids, str, ["confidence"], Setting(1), title="prompt")
    assert scene.films[0].correct is None
    assert scene.truth is None
    assert [s.revealed.tolist() for s in scene.films[0].steps] == [[0], [2]]


def test_the_truth_is_a_puzzles_only_solution_or_nothing() -> None:
    task = SudokuTask()
    clues = parse_grid("0" * 9 + SOLVED[9:])
    truth = truth_of(task, TaskItem(0, torch.tensor(clues), clues))
    assert truth is not None
    assert truth.tolist() == [int(digit) for digit in SOLVED]
    empty = parse_grid("0" * 81)
    assert truth_of(task, TaskItem(0, torch.tensor(empty), empty)) is None
    assert truth_of(FakeTask(), FakeTask().items(1, 0)[0]) is None


# --- the page -------------------------------------------------------------------------


def page(*scenes: Scene) -> str:
    told = film(step([1, 2, 3], [1, 2, 3], [2, 3, 4]), ids=[1, 2, 3, 4])
    return render_page(scenes or [scene_of(told, truth=[1, 2, 4, 4])])


def test_the_page_asks_nothing_of_any_network() -> None:
    seen = Page(page())
    for tag, attributes in seen.tags:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed", "form")
        assert not {"src", "href", "srcset", "action", "style"} & set(attributes), (tag, attributes)
    (policy,) = [a["content"] for t, a in seen.tags if t == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    for forbidden in ("@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert forbidden not in page()


def test_whatever_a_scene_holds_is_data_and_never_markup() -> None:
    told = film(step([1, 2, 3], [1, 2, 3], [2, 3, 4]), ids=[1, 2, 3, 4])
    nasty = scene_of(replace(told, sampler=NASTY), title=NASTY, label=lambda k: NASTY)
    seen, plain = Page(page(nasty)), Page(page())
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert seen.data[0]["title"] == NASTY
    assert seen.data[0]["start"][0] == NASTY
    assert ("title", NASTY) in [(tag, text) for tag, text in seen.texts if tag == "title"] or (
        "".join(text for tag, text in seen.texts if tag == "title").startswith(NASTY)
    )


def test_the_script_writes_text_and_never_markup() -> None:
    script = page()
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in script


def test_what_is_filled_in_is_not_searched_for_further_places() -> None:
    told = film(step([1, 2, 3], [1, 2, 3], [2, 3, 4]), ids=[1, 2, 3, 4])
    assert Page(page(scene_of(told, title="{{script}} {{data}}"))).data[0]["title"] == (
        "{{script}} {{data}}"
    )


def test_embedded_json_has_no_character_of_html() -> None:
    text = embeddable_json({"a": NASTY})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": NASTY}


def test_the_page_has_what_its_script_looks_for() -> None:
    text = page()
    ids = {attributes["id"] for _, attributes in Page(text).tags if "id" in attributes}
    asked = {part.split('"')[0] for part in text.split('at("')[1:]}
    assert asked <= ids, asked - ids
    for key in ("ArrowLeft", "ArrowRight", "Home", "End"):
        assert f"{key}:" in text
    assert "prefers-color-scheme: dark" in text


def test_no_scene_is_refused_and_a_page_is_written_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenes must hold at least one"):
        render_page([])
    write_page([scene_of(film(step([1], [1], [2]), ids=[1, 2, 0, 0]))], tmp_path / "p.html")
    assert (tmp_path / "p.html").read_text().startswith("<!DOCTYPE html>")


STAND_IN = """
// Just enough of a document for the page's script, which is then stepped through by keys.
const made = {};
const listeners = {};
function node(name) {
  return {
    name, children: [], attributes: {}, style: {}, textContent: "", hidden: false,
    tagName: name.toUpperCase(), className: "", title: "", events: {},
    setAttribute(key, value) {
      this.attributes[key] = value;
      if (key === "class") this.className = value;
    },
    append(...more) { this.children.push(...more); },
    replaceChildren(...more) { this.children = more; },
    addEventListener(event, call) { this.events[event] = call; },
    querySelector(what) { return (made[this.name + what] ??= node(what)); },
  };
}
const document = {
  getElementById: (id) => (made[id] ??= node(id)),
  createElement: (name) => node(name),
  createElementNS: (_, name) => node(name),
  addEventListener: (event, call) => { listeners[event] = call; },
};
const press = (key) => listeners.keydown({ key, target: node("body"), preventDefault() {} });
document.getElementById("data").textContent = DATA;
"""
CHECKS = """
const cells = () => made.board.children.map((cell) => [cell.textContent, cell.className]);
const seen = [];
const texts = (row) => row.children.map((cell) => cell.textContent);
const film = (button) => [button.textContent, button.attributes["aria-selected"]];
const look = () => seen.push({
  cells: cells(), step: made.step.textContent, mistake: made.mistake.textContent,
  rows: made.tabletbody.children.map(texts), films: made.films.children.map(film),
});
look();
press("ArrowRight"); look();
press("End"); look();
press("e"); look();
press("2"); look();
press("Home"); press("ArrowLeft"); look();
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
def test_a_person_can_step_through_the_page_by_keys(tmp_path: Path) -> None:
    parts = {"tis": torch.tensor([0.1, 0.9, 0.2]), "candidate": torch.tensor([0, 1, 1]).bool()}
    steered = film(
        step([1, 2, 3], [2], [5], parts=parts), step([1, 3], [1, 3], [2, 3]), ids=[1, 2, 5, 3]
    )
    right = replace(
        film(step([1, 2, 3], [1, 2, 3], [2, 3, 3]), ids=[1, 2, 3, 3], correct=True),
        sampler="confidence",
    )
    scene = scene_of(steered, right, truth=[1, 2, 3, 3])
    source = Path(render_page.__code__.co_filename).with_name("script.js").read_text()
    data = json.dumps(json.dumps([scene.as_json()]))
    program = STAND_IN.replace("DATA", data) + source + CHECKS
    path = tmp_path / "page.js"
    path.write_text(program)
    ran = subprocess.run(["node", str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    start, second, done, mistake, other, home = json.loads(ran.stdout)

    assert [text for text, _ in start["cells"]] == ["a", "\u00a0", "e", "\u00a0"]
    assert start["cells"][0][1] == "cell given"
    assert start["cells"][2][1] == "cell fresh candidate wrong"
    assert start["cells"][3][1] == "cell candidate"
    assert "Step 1 of 2: 3 masks" in start["step"]
    assert "(TIS): 0.90 nats" in start["step"]
    assert start["mistake"].startswith("First mistake that stayed: step 1 wrote e at 2, not c")
    assert [row[0] for row in start["rows"]] == ["3", "2", "1"], "highest score first"
    assert start["films"] == [["boe, 1 per step ✗", "true"], ["confidence, 1 per step ✓", "false"]]

    assert [text for text, _ in second["cells"]] == ["a", "b", "e", "c"]
    assert second["cells"][2][1] == "cell written wrong"
    assert done["step"].startswith("Done after 2 steps. Wrong.")
    assert done["rows"] == []
    assert mistake["step"] == start["step"]
    assert other["films"][1][1] == "true"
    assert other["mistake"] == "No mistake stayed."
    assert home["step"].startswith("Step 1 of 1")
