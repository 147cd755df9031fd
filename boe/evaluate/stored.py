"""Comparisons read back from their JSON form, of this version or an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boe.evaluate.comparison import (
    SCHEMA,
    Comparison,
    Pair,
    ResidualCurve,
    Summary,
    analyse,
)
from boe.evaluate.equal_cost import Level, Reading
from boe.evaluate.record import Record
from boe.evaluate.running import Run
from boe.evaluate.settings import Setting
from boe.evaluate.standing import Best, Standing
from boe.evaluate.study import Group, Study
from boe.evaluate.text_quality import TextResults

VERSION_1 = "boe/compare/1"


def comparison_from_json(content: Mapping[str, Any]) -> Comparison:
    """A stored comparison. One of version 1 is analysed anew from its records.

    Raises:
        ValueError: another schema.
    """
    schema = content.get("schema")
    if schema == VERSION_1:
        return analyse(_version_1(content))
    if schema != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA} or {VERSION_1}, got {schema!r}")
    text = content.get("text")
    return Comparison(
        study=Study.from_json(content["study"]),
        environment=content["environment"],
        denoiser=content["denoiser"],
        complete=content["complete"],
        summaries=tuple(Summary(**with_setting(row)) for row in content["summary"]),
        pairs=tuple(Pair(**with_setting(row)) for row in content["pairs"]),
        equal_cost=tuple(_level(row) for row in content["equal_cost"]),
        standing=tuple(_standing(row) for row in content.get("standing", ())),
        residual=tuple(ResidualCurve(**with_setting(row)) for row in content["residual_entropy"]),
        records=tuple(Record.from_json(row) for row in content.get("records", ())),
        text=None if text is None else TextResults.from_json(text),
    )


def _version_1(content: Mapping[str, Any]) -> Run:
    """Version 1 had one seed, and settings that differ in the tokens per step only."""
    old = content["settings"]
    records = []
    for row in content["records"]:
        rest = {name: value for name, value in row.items() if name != "tokens_per_step"}
        # Samplers ranked then, and their own temperature is 0.
        setting = Setting(row["tokens_per_step"], temperature=old["temperature"] or None)
        records.append(Record(**rest, setting=setting, seed=old["seed"]))
    study = Study(
        task=old["task"],
        difficulty=old["difficulty"],
        groups=(
            Group(
                tuple(dict.fromkeys(record.sampler for record in records)),
                tuple(dict.fromkeys(record.setting for record in records)),
            ),
        ),
        items=old["puzzles"],
        item_seed=old["seed"],
        seeds=(old["seed"],),
        batch_size=old["batch"],
    )
    return Run(study, content["environment"], None, records, {}, content["complete"])


def with_setting(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with tuples for lists, and its setting as an object."""
    return {**_tuples(row), "setting": Setting.from_json(row["setting"])}


def _level(row: Mapping[str, Any]) -> Level:
    readings = tuple(Reading(**_tuples(reading)) for reading in row["readings"])
    return Level(**{**row, "readings": readings})


def _standing(row: Mapping[str, Any]) -> Standing:
    best = {axis: best and Best(**_tuples(best)) for axis, best in row["best"].items()}
    return Standing(**{**with_setting(row), "best": best})


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
