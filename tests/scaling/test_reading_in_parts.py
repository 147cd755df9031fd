"""``boe.load_model(source, mesh=...)``: each of two ranks reads its part, and holds no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import ranks_running
from tiny_checkpoints import save_tiny_bert, save_tiny_eurobert

# As in test_two_ranks.py.
FACTOR = 3.0

KINDS = ("llada, 3 shards", "dream, 1 file", "sdar, tied")
ROWS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
COLUMNS = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
COLUMNS += ("mlp.gate_proj.weight", "mlp.up_proj.weight")
BIASES = tuple(f"self_attn.{part}_proj.bias" for part in "qkv")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found (``reading_ranks.py``)."""
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_bert(folder / "bert")
    save_tiny_eurobert(folder / "eurobert")
    with ranks_running(2, Path(__file__).with_name("reading_ranks.py"), folder):
        pass
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_reads_its_half_of_what_is_split_and_the_rest_once(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    for found in (rank["read"][kind] for rank in ranks):
        assert found["read"] == found["due"] < 0.6 * found["all"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_holds_no_more_memory_than_the_part_it_read(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    for found in (rank["read"][kind] for rank in ranks):
        assert found["held"] == found["due"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_put_together_are_the_checkpoint_in_its_own_dtype(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    for found in (rank["read"][kind] for rank in ranks):
        assert found["same names"]
        assert found["same bits"]
        assert found["dtypes"] == ["torch.bfloat16"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_split_by_the_plan_with_their_biases(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    due = dict.fromkeys(COLUMNS, 0) | dict.fromkeys(ROWS, 1)
    due |= dict.fromkeys(BIASES, 0) if kind.startswith("dream") else {}
    for found in (rank["read"][kind] for rank in ranks):
        assert found["split"] == {
            f"model.layers.{layer}.{name}": dim for layer in range(3) for name, dim in due.items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_shared_out_has_the_fingerprint_of_the_whole(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    assert all(rank["read"][kind]["same fingerprint"] for rank in ranks)


def test_a_masked_lm_of_transformers_is_shared_out_too(ranks: list[dict[str, Any]]) -> None:
    narrower = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for found in (rank["masked LM"] for rank in ranks):
        assert set(found["errors"]) == {"logits", "replay", "late", "dense", "bridges"}
        for what, error in found["errors"].items():
            assert found["sizes"][what] > 0.1
            assert error <= FACTOR * narrower * found["float32"][what], what


def test_of_a_masked_lm_of_transformers_a_rank_reads_and_holds_its_part_only(
    ranks: list[dict[str, Any]],
) -> None:
    for found in (rank["masked LM"] for rank in ranks):
        assert found["read"] == found["held"] == found["due"] < 0.7 * found["all"]


REFUSALS = {
    "eurobert, pickled": (
        "PickledWeights",
        "cannot load bins in parts: its weights are pickled; save it once with transformers' "
        "save_pretrained, which writes safetensors",
    ),
    "device": ("ValueError", "device is the mesh's where a mesh is given, got 'cpu'"),
    "square": ("ValueError", "mesh must have one dimension, got 2"),
    "pickled": (
        "PickledWeights",
        "cannot load pickled in parts: its weights are pickled; convert it once with "
        "`boe convert --allow-pickle`",
    ),
    "remote": (
        "UnsupportedModel",
        "remote comes with Python code of its own, which does not go with a mesh: only "
        "transformers' own plans say how layers are shared out",
    ),
    "quantised": (
        "UnsupportedModel",
        "quantised is quantised, which does not go with a mesh: layers are shared out in the "
        "dtype in which they compute",
    ),
    "bert": (
        "UnsupportedModel",
        "transformers has no plan to share bert out over several GPUs",
    ),
    "mdlm": (
        "UnsupportedModel",
        "DiT is no transformers model: tensor parallelism needs its plan",
    ),
    "heads": (
        "ValueError",
        "the model's num_key_value_heads, 1, must be a multiple of 2 ranks",
    ),
    "columns": (
        "ValueError",
        "the model's intermediate_size, 49, must be a multiple of 2 ranks",
    ),
    "pieces": (
        "UnsupportedModel",
        "model.layers.0.self_attn.q_proj.weight is stored in pieces: a rank cannot read a part "
        "of it",
    ),
    "twice": ("ValueError", "denoiser is shared out over ranks already, got LlamaForCausalLM"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_shared_out_is_refused_by_name_on_all_ranks_before_any_weight_is_read(
    ranks: list[dict[str, Any]], case: str
) -> None:
    for rank in ranks:
        assert rank["refusals"][case] == [*REFUSALS[case], 0]


def test_a_plan_of_another_kind_is_refused_with_its_parts(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        kind, said, read = rank["refusals"]["experts"]
        assert (kind, read) == ("UnsupportedModel", 0)
        assert "has parts of a kind that is not supported: moe_tp_experts" in said


def test_weights_that_do_not_fit_are_named_as_without_a_mesh(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        kind, said, read = rank["refusals"]["misfit"]
        assert (kind, read) == ("CheckpointError", 0)
        assert "1 missing: " in said
        assert "8 unexpected: model.transformer.blocks.3." in said
        assert "model.transformer.blocks.0.ff_proj.weight is [48, 32], not [24, 32]" in said
        assert [kind, said, read] == rank["refusals"]["misfit alone"]
        kind, said, read = rank["refusals"]["eurobert of another shape"]
        assert (kind, read) == ("CheckpointError", 0)
        assert "model.layers.0.mlp.gate_proj.weight is [48, 32], not [24, 32]" in said
