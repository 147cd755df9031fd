"""Which implementation of an op runs, and why."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from boe_kernels import (
    BACKENDS,
    Decision,
    _dispatch,
    _native_library,
    active_query_attention,
    active_row_attention,
    attention_mass,
    decide,
    entropy_stats,
    frozen_linear,
    inject_soft_embeddings,
    linear_entropy,
    observe_paths,
    registered_ops,
    sample_tokens,
    tis_scores,
)
from boe_kernels._dispatch import note_path, register_paths

CPU = torch.device("cpu")
ROWS = torch.tensor([1])


def data(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


def call_row_attention(x: torch.Tensor, **options: object) -> torch.Tensor:
    at_rows = x[:, :, :1]
    return active_row_attention(at_rows, at_rows, at_rows, x, x, ROWS, **options)


def call_soft_write(x: torch.Tensor, top_k: int | None, **options: object) -> torch.Tensor:
    p, table, mask_embed = (data(*shape, dtype=x.dtype) for shape in ((1, 1, 5), (5, 4), (4,)))
    return inject_soft_embeddings(x[0, :1], ROWS, p, table, mask_embed, 0.5, top_k, **options)


def call_tis_scores(x: torch.Tensor, **options: object) -> torch.Tensor:
    entropy, remaining = (torch.rand(*shape, dtype=x.dtype) for shape in ((1, 3), (1,)))
    candidates = torch.tensor([2, 0, 1])
    return tis_scores(x[0, :1], x[0, :1], entropy, candidates, remaining, vocabulary=5, **options)[
        0
    ]


# Per name under which a path is decided: a small call, given a leaf (1, 2, 3, 4).
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "active_query_attention": lambda x, **o: active_query_attention(x, x, x, ROWS, **o),
    "active_row_attention": call_row_attention,
    "attention_mass": lambda x, **o: attention_mass(x[:, :, :1], x, x[:, :, :1, 0], **o),
    "entropy_stats": lambda x, **o: entropy_stats(x, **o).entropy,
    "frozen_linear": lambda x, **o: frozen_linear(x, data(5, 4, dtype=x.dtype), **o),
    "inject_soft_embeddings": lambda x, **o: call_soft_write(x, None, **o),
    "inject_soft_embeddings(top_k)": lambda x, **o: call_soft_write(x, 2, **o),
    "linear_entropy": lambda x, **o: linear_entropy(x, data(5, 4, dtype=x.dtype), **o).entropy,
    "sample_tokens": lambda x, **o: sample_tokens(x, torch.arange(6).view(1, 2, 3), **o).token,
    "tis_scores": call_tis_scores,
}
OPS = tuple(CALLS)
WITH_NATIVE = (
    "active_query_attention",
    "active_row_attention",
    "entropy_stats",
    "inject_soft_embeddings(top_k)",
    "linear_entropy",
)
WITH_FUSED = ("inject_soft_embeddings",)


def call(op: str, dtype: torch.dtype = torch.float32, **options: object) -> torch.Tensor:
    return CALLS[op](data(1, 2, 3, 4, dtype=dtype).requires_grad_(), **options)


# --- the decision -------------------------------------------------------------------


def test_every_op_is_registered():
    assert sorted(registered_ops()) == sorted(OPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_on_the_cpu_the_native_path_is_chosen_where_there_is_one_and_the_library_path_elsewhere(
    op, dtype
):
    is_native = op in WITH_NATIVE and dtype == torch.float32 and _native_library.LIBRARY is not None
    passed_over = ["triton_fused"] if op in WITH_FUSED else []
    passed_over += ["triton"] if is_native else ["triton", "native"]
    decision = decide(op, "auto", CPU, dtype)
    assert (decision.op, decision.path) == (op, "native" if is_native else "library")
    assert list(decision.rejected) == passed_over
    assert all(decision.rejected.values())
    reasons = "; ".join(f"not {path}: {decision.rejected[path]}" for path in passed_over)
    assert str(decision) == f"{op}: {decision.path} ({reasons})"


@pytest.mark.parametrize("op", OPS)
def test_what_is_decided_is_what_runs(op):
    with observe_paths() as seen:
        call(op)
    assert seen == [(op, decide(op, "auto", CPU, torch.float32).path)]


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
        pytest.raises(ValueError, match=rf"backend='native' cannot run {re.escape(op)}: \w+"),
    ):
        call(op, torch.float64, backend="native")
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
    monkeypatch.setattr(_dispatch, "_PASSED_OVER", {})


GPU = torch.device("cuda")


@pytest.mark.usefixtures("no_ops")
def test_the_first_path_that_can_run_is_taken_in_the_documented_order():
    everything = {path: lambda device, dtype: None for path in ("library", "native", "triton")}
    register_paths("op", **everything)
    assert decide("op", "auto", GPU, torch.float32) == Decision("op", "triton")
    assert str(decide("op", "auto", GPU, torch.float32)) == "op: triton"
    # Triton's interpreter is for tests: on a CPU its path has to be named.
    assert decide("op", "auto", CPU, torch.float32) == Decision(
        "op", "native", {"triton": "needs a GPU"}
    )
    assert decide("op", "triton", CPU, torch.float32) == Decision("op", "triton")


@pytest.mark.usefixtures("no_ops")
def test_the_reference_is_the_last_resort_and_all_reasons_are_kept():
    reasons = {"triton": "too new", "native": "not built", "library": "too old"}
    register_paths("op", **{path: lambda *_, why=why: why for path, why in reasons.items()})
    decision = decide("op", "auto", GPU, torch.float32)
    assert decision == Decision("op", "reference", reasons)
    assert str(decision) == (
        "op: reference (not triton: too new; not native: not built; not library: too old)"
    )


@pytest.mark.usefixtures("no_ops")
def test_a_path_that_is_passed_over_runs_by_name_and_auto_says_why_not():
    def slower(
        device: torch.device, dtype: torch.dtype, table: tuple[int, int] | None
    ) -> str | None:
        return "slower" if dtype != torch.float16 or table == (5, 5) else None

    register_paths("op", triton_fused=_dispatch.always, triton=_dispatch.always)
    assert decide("op", "auto", GPU, torch.float32) == Decision("op", "triton_fused")
    register_paths(
        "op",
        triton_fused=_dispatch.always,
        triton=_dispatch.always,
        passed_over={"triton_fused": slower},
    )
    assert decide("op", "auto", GPU, torch.float32) == Decision(
        "op", "triton", {"triton_fused": "slower"}
    )
    assert decide("op", "auto", GPU, torch.float16) == Decision("op", "triton_fused")
    assert decide("op", "auto", GPU, torch.float16, table=(5, 5)).path == "triton"
    assert decide("op", "triton_fused", GPU, torch.float32) == Decision("op", "triton_fused")
    with pytest.raises(ValueError, match=r"unknown paths for op: \['cuda'\]"):
        register_paths("op", passed_over={"cuda": slower})


@pytest.mark.usefixtures("no_ops")
def test_the_reason_may_depend_on_device_and_dtype():
    def only_half(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"needs a GPU, got {device.type}"
        return None if dtype == torch.float16 else f"needs float16, got {dtype}"

    register_paths("op", triton=only_half)
    assert decide("op", "auto", GPU, torch.float16).path == "triton"
    with pytest.raises(ValueError, match=r"cannot run op: needs float16, got torch.float32"):
        decide("op", "triton", GPU, torch.float32)
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
    path = decide(op, "auto", CPU, torch.float32).path
    assert seen == [(op, path), (f"{op}_backward", path)]


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
