"""The committed results: one row per measurement, never half a file."""

import csv

import pytest
import torch

from bench.results import COLUMNS, Environment, Measurement, Quantiles, save


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
