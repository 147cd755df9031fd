"""Meshes of two dimensions, and a part of a model on each of four ranks, by four processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import ranks_running

# As in test_two_ranks.py.
FACTOR = 3.0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the ranks found (``four_ranks.py``)."""
    folder = tmp_path_factory.mktemp("ranks")
    with ranks_running(4, Path(__file__).with_name("four_ranks.py"), folder):
        pass
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]


def test_batch_and_heads_of_attention_are_sharded_together(ranks: list[dict[str, Any]]) -> None:
    expected = {}
    for name in ("queries", "queries, one set of rows", "rows"):
        expected[f"{name}, batch and heads"] = "S(0) S(1)"
        expected[f"{name}, heads and batch"] = "S(1) S(0)"
        # Two key heads, which two of the ranks can share and four cannot.
        expected[f"{name}, heads and heads"] = "S(1) R"
    odd = "heads that two ranks cannot share"
    expected |= {f"{odd}, batch and heads": "S(0) R", f"{odd}, heads and batch": "R S(0)"}
    expected[f"{odd}, heads and heads"] = "R R"
    for rank in ranks:
        found = rank["attention"]
        assert {name: call["placement"] for name, call in found.items()} == expected
        for name, call in found.items():
            assert call["error"] <= 4 * torch.finfo(torch.float64).eps, name


@pytest.mark.parametrize(("name", "parts"), [("two replicas of two parts", 2), ("four parts", 4)])
def test_the_parts_of_a_model_predict_differentiate_and_write_as_the_whole(
    ranks: list[dict[str, Any]], name: str, parts: int
) -> None:
    narrower = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for found in (rank[name] for rank in ranks):
        assert found["local"] == [found["whole"][0] // parts, found["whole"][1]]
        for what, error in found["errors"].items():
            assert found["sizes"][what] > 0.1
            assert error <= FACTOR * narrower * found["float32"][what], what
        assert found["same_sequences"]


def test_key_heads_that_four_ranks_cannot_share_are_refused(ranks: list[dict[str, Any]]) -> None:
    refusals = {rank["refusal"] for rank in ranks}
    assert refusals == {"the model's num_key_value_heads, 2, must be a multiple of 4 ranks"}
