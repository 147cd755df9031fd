"""Where protocols find their items and instructions: a folder, or the Hub's data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset


def local_file(folder: str | None, option: str, name: str) -> Path:
    """A file that the protocol cannot do without.

    Raises:
        ValueError: no folder is given. FileNotFoundError: the file is not in it.
    """
    if folder is None:
        raise ValueError(
            f'this task needs {name}: give its folder, as in --metadata \'{{"{option}": "DIR"}}\''
        )
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{option} must hold {name}, and {path} does not exist")
    return path


def rows(
    folder: str | None, name: str, hub: tuple[str, ...], splits: Sequence[str] = ("test",)
) -> list[dict[str, Any]]:
    """Items of ``name`` in ``folder``, one JSON object per line, or else of the Hub.

    Args:
        hub: path and configuration of the data set, which has the same columns.
        splits: to be put together.
    """
    if folder is not None and (Path(folder) / name).is_file():
        # Lines as the file has them: str.splitlines would part texts at U+2028, too.
        with (Path(folder) / name).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    return [dict(row) for split in splits for row in load_dataset(*hub, split=split)]


def instruction(folder: str | None, name: str, own: str) -> str:
    """The text before the item: of the file ``name.txt`` in ``folder``, or ours."""
    if folder is None:
        return own
    path = local_file(folder, "the folder of prompts", f"{name}.txt")
    return path.read_text(encoding="utf-8").rstrip("\n")


def as_test_set(documents: Sequence[Mapping[str, Any]]) -> dict[str, Dataset]:
    """What lm-eval takes for a data set that has a test split only."""
    return {"test": Dataset.from_list([dict(document) for document in documents])}
