"""How every op is launched: no waiting, no compiling, any stream, any device, in graphs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from op_calls import OP_CALLS, OTHER, SMALL, Size
from torch import Tensor

from boe_kernels import inject_soft_embeddings, observe_paths
from boe_kernels._triton import for_device

pytestmark = pytest.mark.device_only

ROOT = Path(__file__).parents[2]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Numbers of rows and batches on both sides of what the launchers may branch at.
SIZES = [
    SMALL,
    OTHER,
    Size(batch=1, length=300, active=1, vocabulary=131),
    Size(batch=1, length=300, active=17, vocabulary=131),
    Size(batch=1, length=300, active=64, vocabulary=131, ragged=False),
    Size(batch=2, length=301, active=129, vocabulary=131),
    Size(batch=1, length=1024, active=640, vocabulary=131),
    Size(batch=17, length=64, active=64, vocabulary=131, ragged=False),
    Size(batch=40, length=333, active=100, vocabulary=131),
]


def assert_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            a, e, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=number: f"result {n}: {m}"
        )


# --- CUDA graphs --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OP_CALLS)
def test_a_graph_of_forward_and_backward_can_be_replayed_on_new_inputs(op, dtype, device):
    call = OP_CALLS[op]
    # Autograd goes back to the stream of the forward: it all has to be on the captured one.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        inputs = call.draw(SMALL, dtype, device, 0)
        for _ in range(2):
            call.run(*inputs)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = call.run(*inputs)
    for seed in (1, 2, 1):
        fresh = call.draw(SMALL, dtype, device, seed)
        for mine, new in zip(inputs, fresh, strict=True):
            mine.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(results, call.run(*fresh))


# --- the host -----------------------------------------------------------------------


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_check_for_waiting_notices_it(device):
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_forbidden():
        torch.ones(1, device=device).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OP_CALLS)
def test_no_call_waits_for_the_device(op, dtype, device):
    call = OP_CALLS[op]
    for size in (SMALL, OTHER):
        inputs = call.draw(size, dtype, device, 0)
        call.run(*inputs)
        torch.cuda.synchronize()
        with waiting_forbidden():
            call.run(*inputs)


# --- compilation --------------------------------------------------------------------


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The kernels that Triton has to make, or to load, a binary for."""
    from triton import knobs

    made: list[str] = []

    def note(*args: object, **facts: object) -> None:
        made.append(str(facts.get("repr", args)))

    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = note
    try:
        yield made
    finally:
        knobs.runtime.jit_post_compile_hook = before


def test_a_first_call_is_seen_to_compile(device):
    # Imported late: where kernels do not run nothing has to load Triton.
    from fill_kernel import fill

    out = torch.zeros(1, device=device)
    with compilations() as made:
        fill[(1,)](out, 7)
        fill[(1,)](out, 8)
        fill[(1,)](out, 7)
    assert len(made) == 2


def _warm_sizes(op: str) -> list[Size]:
    """Sizes that may together need every binary of the op: one, few and many rows."""
    return [SMALL, SIZES[2], SIZES[4], SIZES[6], SIZES[7], SIZES[8]]


@pytest.mark.parametrize("op", OP_CALLS)
def test_new_numbers_of_rows_and_sequences_compile_nothing(op, device):
    call, dtype = OP_CALLS[op], torch.bfloat16
    for size in _warm_sizes(op):
        call.run(*call.draw(size, dtype, device, 0))
    with compilations() as made:
        for size in SIZES:
            for active in {size.active, max(1, size.active - 1), size.active // 2 + 1}:
                changed = Size(size.batch, size.length, active, size.vocabulary, size.ragged)
                call.run(*call.draw(changed, dtype, device, 0))
    assert not made


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("preferred", [False, True])
@pytest.mark.parametrize("vocabulary", [128, 131])
def test_in_a_compiled_graph_auto_decides_as_it_does_outside(
    vocabulary, preferred, device, monkeypatch
):
    # Imported late, as above.
    from boe_kernels.soft_embedding.fused_launch import TILES

    entries = for_device(TILES, device)
    monkeypatch.setitem(entries, "16 bits", replace(entries["16 bits"], preferred=preferred))

    def soft_write(*inputs: Tensor) -> Tensor:
        return inject_soft_embeddings(*inputs, 0.5, is_logits=True)

    size = replace(SMALL, vocabulary=vocabulary)
    inputs = OP_CALLS["inject_soft_embeddings"].draw(size, torch.bfloat16, device, 0)
    compiled = torch.compile(soft_write, fullgraph=True, backend="aot_eager")
    with observe_paths() as outside:
        expected = soft_write(*inputs)
    with observe_paths() as inside:
        result = compiled(*inputs)
    path = "triton_fused" if preferred and vocabulary == 128 else "triton"
    assert inside == outside == [("inject_soft_embeddings", path)]
    assert torch.equal(result, expected)


# --- streams and devices ------------------------------------------------------------


@pytest.mark.parametrize("op", OP_CALLS)
def test_kernels_run_on_the_current_stream(op, device):
    call = OP_CALLS[op]
    inputs = call.draw(SMALL, torch.bfloat16, device, 0)
    late = call.draw(SMALL, torch.bfloat16, device, 1)
    expected = call.run(*late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # The inputs get their values late: another stream would read the old ones.
        torch.cuda._sleep(20_000_000)
        for mine, new in zip(inputs, late, strict=True):
            mine.copy_(new)
        actual = call.run(*inputs)
    stream.synchronize()
    assert_equal(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("op", OP_CALLS)
def test_tensors_may_be_on_another_device_than_the_current_one(op):
    call = OP_CALLS[op]
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    inputs = call.draw(SMALL, torch.bfloat16, first, 0)
    moved = tuple(x.to(second) for x in inputs)
    assert torch.cuda.current_device() == 0
    actual = call.run(*moved)
    assert all(x.device == second for x in actual)
    assert_equal(tuple(x.to(first) for x in actual), call.run(*inputs))


# --- errors -------------------------------------------------------------------------

BAD_ROWS = """
import torch
from boe_kernels import active_query_attention
q = torch.randn(1, 2, 8, 16, device="cuda")
good, rows = torch.tensor([0, 7], device="cuda"), torch.tensor({rows}, device="cuda")
# Binaries are loaded by a first call, and the device is kept busy: what the check finds must
# not be met by a later call of the host's before this one returns.
active_query_attention(q, q, q, good, backend="triton")
torch.cuda.synchronize()
torch.cuda._sleep(500_000_000)
active_query_attention(q, q, q, rows, backend="triton")
print("the call returned", flush=True)
torch.cuda.synchronize()
print("nothing was noticed")
"""


@pytest.mark.parametrize("rows", ["[0, 8]", "[0, -1]", "[3, 3]"])
def test_a_bad_row_is_noticed_without_waiting_for_it(rows):
    # In a process of its own: a device assertion ends the use of the device.
    done = subprocess.run(
        [sys.executable, "-c", BAD_ROWS.format(rows=rows)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the call returned" in done.stdout, done.stderr
    assert "nothing was noticed" not in done.stdout
    assert "assert" in done.stderr.lower(), done.stderr
