"""Which implementation of an op runs, and why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from boe_kernels import (
    BACKENDS,
    Decision,
    _dispatch,
    active_query_attention,
    active_row_attention,
    decide,
    entropy_stats,
    inject_soft_embeddings,
    linear_entropy,
    observe_paths,
    registered_ops,
)
from boe_kernels._dispatch import note_path, register_paths

CPU = torch.device("cpu")
OPS = (
    "active_query_attention",
    "active_row_attention",
    "entropy_stats",
    "inject_soft_embeddings",
    "linear_entropy",
)


def call(op: str, **options: object) -> torch.Tensor:
    """A small call of an op, with a result that can be differentiated."""
    x = torch.randn(1, 2, 3, 4).requires_grad_()
    rows = torch.tensor([1])
    if op == "active_query_attention":
        return active_query_attention(x, x, x, rows, **options)
    if op == "active_row_attention":
        at_rows = x[:, :, :1]
        return active_row_attention(at_rows, at_rows, at_rows, x, x, rows, **options)
    if op == "entropy_stats":
        return entropy_stats(x, **options).entropy
    if op == "linear_entropy":
        return linear_entropy(x, torch.randn(5, 4), **options).entropy
    p = torch.rand(1, 1, 5)
    table, mask_embed = torch.randn(5, 4), torch.randn(4)
    return inject_soft_embeddings(x[0, :1], rows, p, table, mask_embed, 0.5, **options)


# --- the decision -------------------------------------------------------------------


def test_every_op_is_registered():
    assert sorted(registered_ops()) == sorted(OPS)


@pytest.mark.parametrize("op", OPS)
def test_on_the_cpu_the_library_path_is_chosen_and_the_kernel_passed_over_with_a_reason(op):
    decision = decide(op, "auto", CPU, torch.float32)
    assert (decision.op, decision.path) == (op, "library")
    assert list(decision.rejected) == ["triton"]
    assert decision.rejected["triton"]
    assert str(decision) == f"{op}: library (not triton: {decision.rejected['triton']})"


@pytest.mark.parametrize("path", ["library", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_a_named_path_is_taken(op, path):
    assert decide(op, path, CPU, torch.float32) == Decision(op, path)
    with observe_paths() as seen:
        call(op, backend=path)
    assert seen == [(op, path)]


@pytest.mark.parametrize("op", OPS)
def test_a_path_that_cannot_run_is_refused_with_its_reason_and_nothing_runs_instead(op):
    with (
        observe_paths() as seen,
        pytest.raises(ValueError, match=rf"backend='triton' cannot run {op}: \w+"),
    ):
        call(op, backend="triton")
    assert seen == []


@pytest.mark.parametrize("backend", ["cuda", "", "Auto", None], ids=repr)
@pytest.mark.parametrize("op", OPS)
def test_an_unknown_backend_is_refused_and_the_known_ones_are_named(op, backend):
    with pytest.raises(ValueError, match=r"backend must be one of (.*)") as error:
        call(op, backend=backend)
    assert all(known in str(error.value) for known in BACKENDS)
    assert repr(backend) in str(error.value)


@pytest.fixture
def no_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own, so that a test may register what it likes."""
    monkeypatch.setattr(_dispatch, "_REGISTRY", {})


@pytest.mark.usefixtures("no_ops")
def test_the_kernel_is_preferred_where_it_can_run():
    register_paths("op", triton=lambda device, dtype: None, library=lambda device, dtype: None)
    assert decide("op", "auto", CPU, torch.float32) == Decision("op", "triton")
    assert str(decide("op", "auto", CPU, torch.float32)) == "op: triton"


@pytest.mark.usefixtures("no_ops")
def test_the_reference_is_the_last_resort_and_all_reasons_are_kept():
    register_paths(
        "op", triton=lambda device, dtype: "no GPU", library=lambda device, dtype: "too old"
    )
    decision = decide("op", "auto", CPU, torch.float32)
    assert decision == Decision("op", "reference", {"triton": "no GPU", "library": "too old"})
    assert str(decision) == "op: reference (not triton: no GPU; not library: too old)"


@pytest.mark.usefixtures("no_ops")
def test_the_reason_may_depend_on_device_and_dtype():
    def only_half(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"needs a GPU, got {device.type}"
        return None if dtype == torch.float16 else f"needs float16, got {dtype}"

    register_paths("op", triton=only_half)
    gpu = torch.device("cuda")
    assert decide("op", "auto", gpu, torch.float16).path == "triton"
    with pytest.raises(ValueError, match=r"cannot run op: needs float16, got torch.float32"):
        decide("op", "triton", gpu, torch.float32)
    with pytest.raises(ValueError, match="cannot run op: needs a GPU, got cpu"):
        decide("op", "triton", CPU, torch.float16)


@pytest.mark.usefixtures("no_ops")
def test_a_path_that_an_op_does_not_have_says_so():
    register_paths("op")
    with pytest.raises(ValueError, match="'library' cannot run op: not implemented for this op"):
        decide("op", "library", CPU, torch.float32)
    assert decide("op", "auto", CPU, torch.float32).path == "reference"


@pytest.mark.usefixtures("no_ops")
def test_an_unknown_path_cannot_be_registered():
    with pytest.raises(ValueError, match=r"unknown paths for op: \['cuda'\]"):
        register_paths("op", cuda=lambda device, dtype: None)
    assert registered_ops() == ()


# --- observing ----------------------------------------------------------------------


@pytest.mark.parametrize("op", ["active_query_attention", "active_row_attention", "entropy_stats"])
def test_the_path_of_the_backward_is_seen_too(op):
    with observe_paths() as seen:
        call(op).sum().backward()
    assert seen == [(op, "library"), (f"{op}_backward", "library")]


def test_nested_observers_each_see_what_runs_inside_them():
    with observe_paths() as outer:
        note_path("first", "library")
        with observe_paths() as inner:
            note_path("second", "reference")
        note_path("third", "triton")
    note_path("fourth", "library")
    assert inner == [("second", "reference")]
    assert outer == [("first", "library"), ("second", "reference"), ("third", "triton")]


def test_an_exception_ends_the_observation():
    with pytest.raises(KeyError), observe_paths() as seen:
        raise KeyError
    note_path("later", "library")
    assert seen == []


# --- importing ----------------------------------------------------------------------


def test_importing_the_package_loads_neither_transformers_nor_triton():
    program = (
        "import sys, torch; before = set(sys.modules); import boe_kernels; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "boe_kernels" in loaded
    assert not {"transformers", "triton", "boe"} & set(loaded)
