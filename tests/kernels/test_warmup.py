"""The warm-up where there is nothing to compile, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from boe_kernels import AttentionPlan, VocabularyPlan, warmup

ATTENTION = AttentionPlan(4, 16, 40, kv_heads=2)
VOCABULARY = VocabularyPlan(100, 16, 5)


def test_on_a_cpu_nothing_is_compiled_and_the_paths_are_named():
    report = warmup(ATTENTION, VOCABULARY, device="cpu")
    assert report.binaries == ()
    assert report.compiled == 0
    paths = {decision.op: decision.path for decision in report.decisions}
    assert set(paths) == {*ATTENTION.ops, *VOCABULARY.ops}
    assert "triton" not in paths.values()
    first, *rest = str(report).splitlines()
    assert first == "nothing to compile"
    assert any(line.startswith("active_query_attention: ") for line in rest)


def test_a_library_path_needs_no_warm_up_anywhere():
    report = warmup(ATTENTION, device="cpu", backend="library")
    assert [str(decision) for decision in report.decisions] == [
        f"{op}: library" for op in ATTENTION.ops
    ]


def test_each_op_is_decided_once_however_many_plans_name_it():
    wider = AttentionPlan(4, 16, 80, ops=("attention_mass",))
    decisions = warmup(ATTENTION, wider, device="cpu").decisions
    assert [decision.op for decision in decisions] == list(ATTENTION.ops)


def test_the_kernels_are_refused_by_name_where_they_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run active_query_attention: needs a GPU, got cpu"):
        warmup(ATTENTION, device="cpu", backend="triton")


def test_heads_without_tiles_need_no_warm_up():
    plan = AttentionPlan(2, 160, 8, dtype=torch.float32)
    assert warmup(plan, device="cpu").decisions[0].path != "triton"


def test_a_warm_up_without_plans_is_refused():
    with pytest.raises(ValueError, match="plans must hold at least one plan, got none"):
        warmup()


def test_what_is_no_plan_is_refused():
    with pytest.raises(TypeError, match="AttentionPlan and VocabularyPlan, got one of dict"):
        warmup({"heads": 4})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"head_dim": -1}, "head_dim must be at least 1, got -1"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
        ({"active": (1, 9)}, "active must hold numbers from 1 to L = 8, got 9"),
        ({"active": (0,)}, "active must hold numbers from 1 to L = 8, got 0"),
        ({"window": -1}, "window must be at least 0, got -1"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"grad_rows": "all"}, "grad_rows must be 'queries' or 'keys', got 'all'"),
        ({"active": ()}, "active must name at least one number of rows, got none"),
        ({"ops": ()}, r"ops must be a tuple of names, got \(\)"),
        ({"ops": "attention_mass"}, "ops must be a tuple of names, got 'attention_mass'"),
        ({"ops": ("entropy_stats",)}, "ops must be among active_query_attention, .* 'entropy_"),
    ],
    ids=str,
)
def test_a_plan_of_attention_names_what_is_wrong_with_it(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        AttentionPlan(**{"heads": 4, "head_dim": 16, "length": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtype": "bf16"}, "dtype must be float64, float32, bfloat16 or float16, got 'bf16'"),
        ({"dtype": torch.int8}, "dtype must be float64, .* got torch.int8"),
        ({"heads": 4.0}, "heads must be an int, got float"),
        ({"active": (1.5,)}, "each of active must be an int, got float"),
    ],
    ids=str,
)
def test_a_plan_of_attention_names_what_is_of_a_wrong_kind(changes, complaint):
    with pytest.raises(TypeError, match=complaint):
        AttentionPlan(**{"heads": 4, "head_dim": 16, "length": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vocabulary": 0}, "vocabulary must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"suppressed": 101}, "suppressed must lie between 0 and V = 100, got 101"),
        ({"gate": "shut"}, "gate must be one of positive, paper, none, got 'shut'"),
        ({"normalise": "max"}, "normalise must be one of none, zscore, minmax, got 'max'"),
        ({"ops": ("attention_mass",)}, "ops must be among entropy_stats, .* got 'attention_mass'"),
    ],
    ids=str,
)
def test_a_plan_of_the_vocabulary_names_what_is_wrong_with_it(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        VocabularyPlan(**{"vocabulary": 100, "width": 16, "rows": 5, **changes})
