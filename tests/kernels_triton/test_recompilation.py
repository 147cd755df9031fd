"""Which binaries a call needs: the same ones for whole families of shapes."""

from __future__ import annotations

import pytest
from launched_shapes import GROUPS
from uninterpreted import told_by

Described = dict[str, list[dict[str, list[str]]]]


@pytest.fixture(scope="module")
def described() -> Described:
    """What ``launched_shapes`` tells of every call, found without the interpreter."""
    return told_by("launched_shapes.py")


@pytest.mark.parametrize("group", GROUPS)
def test_other_numbers_of_rows_and_ids_need_no_other_binary(group, described):
    first, *others = (call["keys"] for call in described[group])
    assert first, "nothing was launched"
    for call, other in zip(GROUPS[group][1:], others, strict=True):
        # No rows take fewer kernels.
        assert set(other) <= set(first), f"{call.func.__name__}{call.args} {call.keywords}"


def test_the_keys_tell_binaries_apart(described):
    # Or the test above could not fail.
    keys = {name: calls[0]["keys"] for name, calls in described.items()}
    for other in ("odd vocabularies", "many rows", "many suppressed ids", "draws"):
        assert keys["few rows, even vocabularies"] != keys[other]
    for other in ("odd vocabularies", "in one go"):
        assert keys["fused soft writes"] != keys[f"fused soft writes, {other}"]


def test_strides_have_64_bits(described):
    large = described["rows further apart than 32 bits can count"][-1]["large"]
    assert large == [
        "_bwd_kernel, stride_row: i64",
        "_fwd_parts_kernel, stride_row: i64",
    ]
    name = "fused soft writes, logits further apart than 32 bits can count"
    assert set(described[name][-1]["large"]) == {
        "_product_kernel, stride_batch: i64",
        "_product_kernel, stride_slot: i64",
    }
