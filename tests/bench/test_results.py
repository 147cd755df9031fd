"""The committed results: one row per measurement, never half a file."""

import csv
import subprocess

import pytest
import torch

from bench.results import COLUMNS, Environment, Measurement, Quantiles, commit_of, save


def measurement(provider="ours", value=1.0):
    quantiles = None if value is None else Quantiles.of([value])
    return Measurement("toy", provider, "forward", "float32", {"L": 8}, "time_ms", quantiles)


@pytest.fixture
def environment():
    return Environment.of(torch.device("cpu"))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_rerun_overwrites_its_own_rows_and_leaves_others(tmp_path, environment):
    path = tmp_path / "toy-cpu.csv"
    save(path, [measurement(value=1.0), measurement("rival", 2.0)], environment)
    save(path, [measurement(value=3.0)], environment)
    assert {row["provider"]: float(row["value"]) for row in rows_of(path)} == {
        "ours": 3.0,
        "rival": 2.0,
    }


def test_a_row_names_hardware_versions_and_commit(tmp_path, environment):
    path = tmp_path / "toy-cpu.csv"
    save(path, [measurement()], environment)
    (row,) = rows_of(path)
    assert list(row) == list(COLUMNS)
    assert row["torch"] == torch.__version__
    assert all(row[column] for column in ("hardware", "python", "date", "commit"))


def test_a_commit_is_dirty_where_more_than_the_results_has_changed(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    results = tmp_path / "bench" / "results" / "toy-cpu.csv"
    results.parent.mkdir(parents=True)
    code = tmp_path / "code.py"
    results.write_text("1")
    code.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = commit_of(tmp_path)
    results.write_text("2")
    (tmp_path / "beside.txt").write_text("not tracked")
    assert commit_of(tmp_path) == clean
    code.write_text("2")
    assert commit_of(tmp_path) == f"{clean}-dirty"


def test_what_could_not_run_has_no_number(tmp_path, environment):
    path = tmp_path / "toy-cpu.csv"
    save(path, [measurement(value=None)], environment)
    assert rows_of(path)[0]["value"] == ""


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, environment, monkeypatch):
    path = tmp_path / "toy-cpu.csv"
    save(path, [measurement()], environment)
    before = path.read_text()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, [measurement(value=2.0)], environment)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
