"""Every op gives the same bits on every run, and in every batch."""

from __future__ import annotations

import pytest
import torch
from op_calls import OP_CALLS, SMALL, Size

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Some thousand thread blocks, which is many times what a device runs at once.
MANY = Size(batch=60, length=517, active=150, vocabulary=10_007)


def assert_the_same_bits(
    op: str, size: Size, dtype: torch.dtype, device: torch.device, n: int
) -> None:
    call = OP_CALLS[op]
    inputs = call.draw(size, dtype, device, 0)
    first = call.run(*inputs)
    assert any(x.any() for x in first)
    for _ in range(n):
        again = call.run(*inputs)
        for number, (x, y) in enumerate(zip(first, again, strict=True)):
            # Bits: NaN would not be equal to itself, and −0 would be equal to 0.
            same = torch.equal(x.view(torch.uint8), y.view(torch.uint8))
            assert same, f"result {number} differs in {int((x != y).sum())} elements"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OP_CALLS)
def test_a_second_run_gives_the_same_bits(op, dtype, device):
    assert_the_same_bits(op, SMALL, dtype, device, n=1)


@pytest.mark.device_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OP_CALLS)
def test_a_hundred_runs_of_many_thread_blocks_give_the_same_bits(op, dtype, device):
    assert_the_same_bits(op, MANY, dtype, device, n=100)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [SMALL, pytest.param(MANY, marks=pytest.mark.device_only)], ids=["small", "many"]
)
@pytest.mark.parametrize("op", [name for name, call in OP_CALLS.items() if call.invariant])
def test_a_sequence_gives_the_same_bits_alone_as_in_a_batch(op, size, dtype, device):
    call = OP_CALLS[op]
    if call.mixed and device.type == "cpu":
        pytest.skip("in the interpreter's products a row's place matters")
    inputs = call.draw(size, dtype, device, 0)
    together = call.run(*inputs)
    for b in (0, size.batch - 1):
        # Tables are not cut up: their first size is no batch.
        alone = call.run(*(x[b : b + 1] if x.shape[0] == size.batch else x for x in inputs))
        for number, (x, y) in enumerate(zip(together, alone, strict=True)):
            assert torch.equal(x[b : b + 1], y), f"result {number} of sequence {b}"
