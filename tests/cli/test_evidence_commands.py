"""The commands of the evidence harness: compare, eval, ablate, fidelity, watch, report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_task import FakeTask
from tiny_checkpoints import save_tiny_bert
from typer.testing import CliRunner, Result

from boe.cli.app import app
from boe.cli.plans import AblatePlan, ComparePlan, FidelityPlan, plan_of, read_plan
from boe.evaluate import Setting, Study
from boe.samplers import strategy_from
from boe.tasks import TASKS, Judgement

BOE = "boe:tolerance=none,rho=0.5"
PLANS = sorted((Path(__file__).parents[2] / "docs" / "evidence").glob("*/plan.toml"))


@pytest.fixture(autouse=True)
def _fake_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setitem(TASKS, "fake", FakeTask)  # type: ignore[arg-type]
    monkeypatch.setenv("COLUMNS", "200")
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


COMPARE = ("compare", "--task", "fake", "--samplers", f"confidence;{BOE}", "--items", 6)


# --- compare --------------------------------------------------------------------------


def test_compare_writes_everything_and_finds_it_again(tmp_path: Path) -> None:
    command = (*COMPARE, "--tokens-per-step", "1,2", "--traced", 2, "--output", tmp_path / "out")
    assert "were there already" not in run(*command)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("records.jsonl", "comparison.json", "comparison.md", "summary.csv", "records.csv"),
        *("accuracy-cost.svg", "residual-entropy.svg"),
    }
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["schema"] == "boe/compare/2"
    assert "records" not in content
    assert len(content["residual_entropy"]) == 4
    assert "24 of 24 results were there already" in run(*command)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == content


def test_compare_runs_all_combinations_of_settings_and_seeds(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    run(
        *("compare", "--task", "fake", "--samplers", "confidence", "--items", 2),
        *("--tokens-per-step", "1,2", "--steps", "3", "--temperature", "none,1"),
        *("--block-length", "none,2", "--seeds", "0,5", "--split", "validation"),
        *("--json", path),
    )
    content = json.loads(path.read_text())
    settings = {json.dumps(s["setting"], sort_keys=True) for s in content["summary"]}
    assert len(settings) == 3 * 2 * 2
    assert {r["seed"] for r in content["records"]} == {0, 5}
    assert content["study"]["split"] == "validation"
    assert {s["seeds"] for s in content["summary"]} == {2}


def test_a_file_or_a_pipe_gets_the_whole_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    whole = run(*COMPARE)
    assert f"│ {BOE} " in whole
    assert re.search(r"\d\.\d{3} │$", whole, re.MULTILINE), "the last column"
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run(*COMPARE)
    assert max(map(len, narrow.splitlines())) <= 80
    assert re.search(r"\d\.\d{3}│$", narrow, re.MULTILINE)


def test_every_item_right_or_none_is_drawn_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for right in (True, False):
        monkeypatch.setattr(FakeTask, "judge", lambda *_, right=right: Judgement(right, {}))
        run(*COMPARE, "--output", tmp_path / str(right), "--items", 5)


def test_the_reference_is_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    run(*COMPARE, "--tokens-per-step", "1,2", "--reference", BOE, "--json", path)
    assert {level["reference"] for level in json.loads(path.read_text())["equal_cost"]} == {BOE}


def test_a_plan_may_name_several_references(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'task = "fake"\nitems = 2\nreference = ["confidence", "entropy"]\n'
        '[[group]]\nsamplers = ["confidence", "entropy"]\ntokens_per_step = [1, 2]\n'
    )
    run("eval", plan)
    levels = json.loads((tmp_path / "comparison.json").read_text())["equal_cost"]
    assert [level["reference"] for level in levels if level["axis"] == "flop_equiv"] == [
        *("confidence", "confidence", "entropy", "entropy")
    ]
    plan.write_text(plan.read_text().replace('["confidence", "entropy"]', "[1, 2]", 1))
    assert "reference must be a list of texts, got [1, 2]" in str(invoke("eval", plan).exception)


def test_a_plan_says_which_groups_are_no_rivals(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'task = "fake"\nitems = 2\n[[group]]\nsamplers = ["confidence"]\n'
        '[[group]]\nrival = false\nsamplers = ["entropy"]\n'
    )
    run("eval", plan)
    groups = json.loads((tmp_path / "comparison.json").read_text())["study"]["groups"]
    assert [group.get("rival") for group in groups] == [None, False]
    plan.write_text(plan.read_text().replace("false", '"no"'))
    assert "rival must be true or false, got 'no'" in str(invoke("eval", plan).exception)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = invoke(*COMPARE, "--output", tmp_path / "out")
    assert isinstance(result.exception, NotADirectoryError)
    assert (tmp_path / "out").read_text() == "mine"


# --- ablate ---------------------------------------------------------------------------


def test_ablate_varies_one_option_at_a_time(tmp_path: Path) -> None:
    shown = run(
        *("ablate", "--task", "fake", "--base", BOE, "--tokens-per-step", 1, "--items", 4),
        *("--vary", "rho=0.5,0.75", "--vary", "active=candidates,all"),
        *("--output", tmp_path / "out", "--json", tmp_path / "out.json"),
    )
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["schema"] == "boe/ablate/1"
    assert [(row["axis"], row["label"]) for row in content["rows"]] == [
        ("sampler", "confidence"),
        ("rho", "0.5"),
        ("rho", "0.75"),
        ("active", "candidates"),
        ("active", "all"),
    ]
    assert "active = candidates was refused: the zero-gradient combination" in shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("records.jsonl", "ablation.json", "ablation.md", "records.csv", "ablation.svg"),
    }


def test_an_option_that_boe_does_not_have_is_refused() -> None:
    result = invoke("ablate", "--task", "fake", "--vary", "speed=1")
    assert isinstance(result.exception, ValueError)
    result = invoke("ablate", "--task", "fake", "--vary", "rho")
    assert "vary must be option=value" in str(result.exception)


# --- fidelity -------------------------------------------------------------------------


def test_fidelity_judges_scores_on_any_masked_language_model(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat the dog ran to a red house " * 4)
    command = (
        *("fidelity", "--model", model, "--text", text, "--length", 20, "--canvases", 2),
        *("--fractions", "0.5,0.75", "--scores", "confidence;boe:alpha=0", "--rho", 0.4),
        *("--max-tokens", 3, "--grid", 3, "--output", tmp_path / "out"),
    )
    shown = run(*command)
    assert "Theorem 3.1" in shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("records.jsonl", "fidelity.json", "fidelity.md", "fidelity.csv", "fidelity.svg"),
    }
    content = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert content["schema"] == "boe/fidelity/1"
    assert [(s["score"], s["fraction"]) for s in content["scores"]] == [
        ("confidence", 0.5),
        ("boe:alpha=0", 0.5),
        ("confidence", 0.75),
        ("boe:alpha=0", 0.75),
    ]
    lines = (tmp_path / "out" / "records.jsonl").read_text().count("\n")
    run(*command)
    assert (tmp_path / "out" / "records.jsonl").read_text().count("\n") == lines


def test_fidelity_judges_scores_on_a_tasks_own_denoiser(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    run(
        *("fidelity", "--task", "sudoku", "--difficulty", "easy", "--canvases", 1),
        *("--fractions", "0.4", "--scores", "confidence", "--max-tokens", 2, "--grid", 3),
        *("--json", path),
    )
    content = json.loads(path.read_text())
    assert content["study"]["source"] == "sudoku, easy, decoded in confidence order"
    assert [s["score"] for s in content["scores"]] == ["confidence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fidelity needs either a task, or a model with a text"),
        (["--task", "sudoku", "--model", "x"], "fidelity needs either a task, or a model"),
        (["--model", "x"], "fidelity of a model needs a text"),
        (["--model", "x", "--text", "nowhere.txt"], "text nowhere.txt is not a file"),
        (["--task", "sudoku", "--scores", "klass"], "scores must be samplers that rank"),
        (["--task", "sudoku", "--grid", "4"], "grid must be odd"),
    ],
)
def test_fidelity_refuses_what_it_cannot_do(arguments: list[str], message: str) -> None:
    result = invoke("fidelity", *arguments)
    assert result.exit_code != 0
    assert message in str(result.exception)


# --- watch ----------------------------------------------------------------------------


def test_watch_shows_a_text_filling_in() -> None:
    shown = run("watch", "--task", "fake", "--samplers", f"confidence;{BOE}")
    assert shown.count("1234") == 2
    assert "step 4: 1 masks" in shown
    assert "right" in shown
    assert "4 steps, 4 forwards" in shown


def test_watch_writes_one_page_of_items_and_samplers(tmp_path: Path) -> None:
    path = tmp_path / "w.html"
    run(
        *("watch", "--task", "fake", "--samplers", f"confidence;{BOE}", "--item", 1),
        *("--count", 2, "--tokens-per-step", 2, "--html", path),
    )
    data = path.read_text().partition('<script type="application/json" id="data">')[2]
    scenes = json.loads(data.partition("</script>")[0])
    assert [scene["title"] for scene in scenes] == ["fake, hard, item 1", "fake, hard, item 2"]
    assert [film["sampler"] for film in scenes[0]["films"]] == ["confidence", BOE]
    assert [film["correct"] for film in scenes[0]["films"]] == [False, False], "1 is odd"
    assert scenes[0]["films"][0]["setting"] == "2 per step"


def test_watch_writes_a_page_of_a_prompt(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "model")
    path = tmp_path / "w.html"
    run(
        *("watch", "--model", model, "--prompt", "the [MASK] sat on [MASK] mat"),
        *("--length", 2, "--samplers", "confidence", "--html", path),
    )
    data = path.read_text().partition('<script type="application/json" id="data">')[2]
    (scene,) = json.loads(data.partition("</script>")[0])
    assert scene["start"] == ["[CLS]", "the", None, "sat", "on", None, "mat", None, None, "[SEP]"]
    assert len(scene["films"][0]["steps"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "watch needs either a task, or a model with a prompt"),
        (["--model", "x"], "a model needs a prompt"),
        (["--task", "fake", "--html", "/nowhere/w.html"], "cannot write /nowhere/w.html"),
    ],
)
def test_watch_refuses_what_it_cannot_do(arguments: list[str], message: str) -> None:
    assert message in str(invoke("watch", *arguments).exception)


# --- eval and report ------------------------------------------------------------------

PLAN = f"""
task = "fake"
items = 4
traced = 2
seeds = [0, 1]

[[group]]
samplers = ["confidence"]
tokens_per_step = [1, 2]

[[group]]
curve = "BoE over ρ"
samplers = ["{BOE}", "boe:tolerance=none,rho=0.75"]
"""


def test_eval_runs_plans_and_report_fills_documents_in(tmp_path: Path) -> None:
    place = tmp_path / "study"
    place.mkdir()
    (place / "plan.toml").write_text(PLAN)
    document = tmp_path / "doc.md"
    section = "<!-- boe: pivot study -->\n<!-- /boe -->\n"
    document.write_text(f"# Doc\n\n{section}\n{section.replace('pivot', 'figure-cost')}")
    assert invoke("report", document, "--check").exit_code == 1
    assert "Not measured yet" in run("report", document) + document.read_text()

    run("eval", place / "plan.toml")
    content = json.loads((place / "comparison.json").read_text())
    assert {row["curve"] for row in content["summary"]} == {"confidence", "BoE over ρ"}
    assert {level["reference"] for level in content["equal_cost"]} == {"confidence"}

    result = invoke("report", document, "--check")
    assert result.exit_code == 1
    assert "section 'pivot study' is out of date" in result.output
    (place / "accuracy-cost.svg").unlink()
    run("report", document)
    assert "| 1 per step |" in document.read_text()
    assert (place / "accuracy-cost.svg").exists()
    assert "up to date" in run("report", document, "--check")


def test_eval_reads_every_plan_before_the_first_is_run(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(PLAN)
    bad.write_text(PLAN.replace("items", "puzzles"))
    result = invoke("eval", good, bad, "--threads", 1)
    assert "bad.toml: keys are task, difficulty" in str(result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"good.toml", "bad.toml"}
    assert "output is for one plan, got 2" in str(
        invoke("eval", good, good, "--output", tmp_path / "o").exception
    )
    assert "is not a file" in str(invoke("eval", tmp_path / "none.toml").exception)


def test_plans_of_every_kind_are_read() -> None:
    compare = plan_of(
        {
            **{"task": "fake", "seed": 3, "reference": "boe"},
            "group": [{"samplers": ["boe"], "steps": [4], "temperature": ["none", 0.5]}],
        }
    )
    assert isinstance(compare, ComparePlan)
    assert compare.study.groups[0].settings == (
        Setting(steps=4),
        Setting(steps=4, temperature=0.5),
    )
    assert compare.study.seeds == (3,)
    ablate = plan_of(
        {"kind": "ablate", "task": "fake", "base": BOE, "vary": {"rho": [0.5, 1.0]}, "steps": 2}
    )
    assert isinstance(ablate, AblatePlan)
    assert dict(ablate.axes[0].changes) == {"0.5": {"rho": 0.5}, "1.0": {"rho": 1.0}}
    assert ablate.study.groups[0].settings == (Setting(steps=2),)
    fidelity = plan_of({"kind": "fidelity", "model": "m", "text": "t.txt", "mass": 0.5})
    assert isinstance(fidelity, FidelityPlan)
    assert fidelity.study.source == "m on t.txt, 128 tokens"
    assert fidelity.study.truth.mass == 0.5


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"kind": "sweep"}, "kind must be one of compare, ablate, fidelity, got 'sweep'"),
        ({"group": []}, "a plan needs a task"),
        ({"task": "fake", "group": [{"samplers": ["boe"], "speed": 1}]}, "got 'speed'"),
        ({"task": "fake"}, "groups must hold at least one"),
        (
            {"kind": "ablate", "task": "fake", "base": "margin", "vary": {"rho": ["0.1"]}},
            "of margin can be varied: which, .*; not rho",
        ),
        ({"kind": "fidelity"}, "fidelity needs either a task"),
        ({"task": "fake", "group": [{}]}, "samplers must be a list of texts, got None"),
        ({"task": "fake", "group": [{"samplers": "boe"}]}, "samplers must be a list of texts"),
        ({"task": "fake", "group": {"samplers": ["boe"]}}, r"group must be written \[\[group\]\]"),
        (
            {"task": "fake", "seeds": 5, "group": [{"samplers": ["boe"]}]},
            "seeds must be a list of whole numbers, got 5",
        ),
        (
            {"task": "fake", "reference": "margin", "group": [{"samplers": ["boe"]}]},
            "reference must be one of boe, got 'margin'",
        ),
        ({"kind": "ablate", "task": "fake", "vary": "rho"}, "vary must be a table of options"),
        (
            {"kind": "ablate", "task": "fake", "vary": {"rho": 0.5}},
            r"rho must be a list of values, got 0\.5",
        ),
        (
            {"kind": "fidelity", "task": "sudoku", "fractions": 0.5},
            r"fractions must be a list of numbers, got 0\.5",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(plan: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(plan)


def test_a_number_of_a_plan_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="items must be a whole number, got '100'"):
        plan_of({"task": "fake", "items": "100", "group": [{"samplers": ["boe"]}]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "p.toml", "--workers", 2), "--workers goes with --shards"),
        (("watch", "--task", "sudoku", "--length", 3), "--length goes with --model"),
        (("watch", "--model", "m", "--prompt", "a", "--item", 3), "--item goes with --task"),
        (("fidelity", "--task", "sudoku", "--text", "t.txt"), "--text goes with --model"),
        (("fidelity", "--model", "m", "--order", "boe"), "--order goes with --task"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: tuple[object, ...], message: str
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_what_is_stored_beside_a_plan_is_what_it_asks_for(path: Path) -> None:
    plan = read_plan(path)
    (results,) = path.parent.glob("*.json")
    stored = json.loads(results.read_text())
    assert stored["complete"]
    if isinstance(plan, ComparePlan):
        assert Study.from_json(stored["study"]) == plan.study
    elif isinstance(plan, AblatePlan):
        assert strategy_from(stored["base"]) == strategy_from(plan.base)
        asked = plan.study.as_json()
        for name in ("task", "difficulty", "split", "items", "item_seed", "seeds", "batch_size"):
            assert stored["study"][name] == asked[name], name
    else:
        assert stored["study"] == json.loads(json.dumps(plan.study.as_json()))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_the_plans_of_the_evidence_can_be_run(path: Path) -> None:
    plan = read_plan(path)
    task, difficulty = (
        (plan.task, plan.difficulty)
        if isinstance(plan, FidelityPlan)
        else (plan.study.task, plan.study.difficulty)
    )
    assert difficulty in TASKS[str(task)].difficulties
