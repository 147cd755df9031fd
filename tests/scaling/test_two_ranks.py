"""Tensor parallelism and sharded tensors, by two processes that talk through gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import ranks_running

# How much more of float64's rounding a sum in two parts may show than one of float32 does of
# float32's, in which everything that both leave out is the same.
FACTOR = 3.0


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found (``two_ranks.py``)."""
    folder = tmp_path_factory.mktemp("ranks")
    with ranks_running(2, Path(__file__).with_name("two_ranks.py"), folder):
        pass
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["llada", "dream", "dream in memory"])
def test_a_model_on_two_ranks_predicts_and_differentiates_as_on_one(
    ranks: list[dict[str, Any]], name: str
) -> None:
    narrower = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for found in (rank[name] for rank in ranks):
        assert found["local"] == [found["whole"][0] // 2, found["whole"][1]]
        assert set(found["errors"]) == {"logits", "replay", "late", "dense", "bridges"}
        for what, error in found["errors"].items():
            assert found["sizes"][what] > 0.1
            assert error <= FACTOR * narrower * found["float32"][what], what


def test_a_block_causal_model_with_a_tied_head_predicts_on_two_ranks_as_on_one(
    ranks: list[dict[str, Any]],
) -> None:
    narrower = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for found in (rank["sdar"] for rank in ranks):
        assert found["size"] > 0.1
        assert found["error"] <= FACTOR * narrower * found["float32"]


@pytest.mark.parametrize("name", ["llada", "dream", "dream in memory"])
def test_two_ranks_write_what_one_process_writes(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["same_sequences"]
    assert second["same_sequences"]
    assert first["sequences"] == second["sequences"]
    assert len({tuple(ids) for ids in first["sequences"]}) > 2


def test_heads_and_batches_of_attention_stay_where_they_are(ranks: list[dict[str, Any]]) -> None:
    expected = {
        "queries, heads": "S(1)",
        "queries, batch": "S(0)",
        # Rows of one canvas need each other's keys: DTensor gathers them.
        "queries, length": "R",
        "queries, one set of rows, heads": "S(1)",
        "queries, one set of rows, batch": "S(0)",
        "rows, heads": "S(1)",
        "rows, batch": "S(0)",
        # One key head for three query heads.
        "heads that two ranks cannot share, heads": "R",
        "heads that two ranks cannot share, batch": "S(0)",
    }
    for rank in ranks:
        found = rank["attention"]
        assert {name: call["placement"] for name, call in found.items()} == expected
        for name, call in found.items():
            assert call["error"] <= 4 * torch.finfo(torch.float64).eps, name


def test_rows_of_vocabulary_ops_and_sides_of_products_can_be_sharded(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        for name, error in rank["vocabulary"].items():
            # The largest intermediate is a sum of 11 products, below 2**5.
            assert error <= 2**5 * torch.finfo(torch.float64).eps, name


def test_sums_over_heads_come_out_in_parts_and_batches_stay_apart(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        found = rank["constants"]
        assert {name: call["placement"] for name, call in found.items()} == {
            "attention_mass, heads": "P(sum)",
            "attention_mass, batch": "S(0)",
            "inject_soft_embeddings, batch": "S(0)",
            "tis_scores, batch": "S(0)",
            "tis_scores, one set": "S(0)",
            "sample_tokens, rows": "S(0)",
        }
        for name, call in found.items():
            assert call["size"] > 0.1
            assert call["error"] <= 4 * torch.finfo(torch.float64).eps * call["size"], name


def test_models_that_cannot_be_shared_out_are_refused_with_the_reason(
    ranks: list[dict[str, Any]],
) -> None:
    no_plan, experts, odd_heads = ranks[0]["refusals"]
    assert no_plan == "DiT is no transformers model: tensor parallelism needs its plan"
    assert "has parts of a kind that is not supported: " in experts
    assert odd_heads == "the model's num_key_value_heads, 1, must be a multiple of 2 ranks"
