"""Every committed tile of the attention kernels on a GPU, whatever the size of its calls.

Which of an entry's tiles is taken depends on how many programs it makes, and calls as small as
those of tests would never take the ones for many: each is put in the place of its entry here.
"""

from __future__ import annotations

from itertools import product

import pytest
import test_gpu_query_attention as of_queries
import test_gpu_row_attention as of_rows
import torch
from dense_attention import output_and_gradients
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest

from bench.tiles import KERNELS, Shape, Subject, call, only_tile
from bench.tune import agree
from boe_kernels import active_query_forward, attention_mass
from boe_kernels._attention_launch import ARCHITECTURES, HEAD_DIMS, Tile
from boe_kernels._triton import Launch, architecture_of, recording

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

ON_GPU = torch.cuda.is_available()
ARCHITECTURE = architecture_of(torch.device("cuda" if ON_GPU else "cpu"))
# The interpreter computes bfloat16 wrongly.
DTYPES = {16: torch.bfloat16 if ON_GPU else torch.float16, 32: torch.float32}

# Several tiles of rows and of keys, the last of each not full.
LENGTH = 300 if ON_GPU else 40
HIDING = {"window": 50, "block_size": 32}


def every_tile() -> list[object]:
    """Of the architecture's table, with the entry that it belongs to."""
    table = ARCHITECTURES[ARCHITECTURE].tiles
    subjects = [Subject(*each) for each in product(KERNELS, DTYPES, HEAD_DIMS, (False, True))]
    return [
        pytest.param(subject, tile, id=f"{name_of(subject)}, tile {number}", marks=marks(subject))
        for subject in subjects
        for number, tile in enumerate(table[subject.kernel].get(subject.key, ()))
    ]


def name_of(subject: Subject) -> str:
    dtype = str(DTYPES[subject.bits]).removeprefix("torch.")
    return f"{subject.kernel}, {dtype}, {subject.width}" + (", hidden" if subject.hidden else "")


def marks(subject: Subject) -> tuple[pytest.MarkDecorator, ...]:
    if subject == Subject("mass", 32, 64, False):
        return (pytest.mark.sanitized,)
    # Under the interpreter a few are enough, and all would take minutes.
    return () if (subject.bits, subject.width) == (16, 64) else (pytest.mark.device_only,)


def assert_taken(launches: list[Launch], subject: Subject, tile: Tile) -> None:
    """The kernel ran in the tile, and in no other."""
    wanted = KERNELS[subject.kernel]
    found = [launch.options for launch in launches if launch.kernel.__name__ == wanted]
    sizes = {(options["BLOCK_M"], options["BLOCK_N"]) for options in found}
    holds_keys = subject.kernel in ("dkdv", "rows_dkdv", "mass")
    held_and_streamed = (tile.held, tile.streamed)
    assert sizes == {held_and_streamed[::-1] if holds_keys else held_and_streamed}
    assert {options["num_warps"] for options in found} == {tile.warps}
    assert {options["num_stages"] for options in found} == {tile.stages}


def check_queries(subject: Subject, tile: Tile, device: torch.device) -> None:
    """``active_query_attention``, forward and backward."""
    one_pass = subject.kernel == "one_pass"
    problem = of_queries.Problem(
        length=LENGTH,
        width=subject.width,
        # Two query heads share a key head: one pass has so many rows that its tile is not full.
        rows=tile.held // 2 - 1 if one_pass else "ragged",
        padded=subject.hidden,
        options=HIDING if subject.hidden else {},
    )
    *inputs, grad = problem.tensors(DTYPES[subject.bits], device)
    attend = of_queries.attend(problem, device)
    of_queries.check(problem, output_and_gradients(attend, tuple(inputs), grad), *inputs, grad)


def check_rows(subject: Subject, tile: Tile, device: torch.device) -> None:
    """``active_row_attention``, forward and backward."""
    problem = of_rows.Problem(
        length=LENGTH,
        width=subject.width,
        count=LENGTH // 2,
        ragged=True,
        padded=subject.hidden,
        options=HIDING if subject.hidden else {},
    )
    tensors = problem.tensors(DTYPES[subject.bits], device)
    of_rows.check(problem, of_rows.run(problem, tensors), tensors)


def check_mass(subject: Subject, tile: Tile, device: torch.device) -> None:
    """``attention_mass`` of rows of a forward, against its definition."""
    problem = of_queries.Problem(
        length=LENGTH, width=subject.width, options=HIDING if subject.hidden else {}
    )
    q, k, v, _ = problem.tensors(DTYPES[subject.bits], device)
    _, lse = active_query_forward(q, k, v, backend="triton", **problem.options)
    rows = problem.index_set(device)
    options = {"row_idx": rows, **problem.options}
    mass = attention_mass(q[:, :, rows], k, lse[:, :, rows], backend="triton", **options)
    inputs = (q[:, :, rows], k, lse[:, :, rows])
    truth = attention_mass(*(x.double() for x in inputs), backend="reference", **options)
    plain = attention_mass(*inputs, backend="reference", **options)
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
    # exp(s - lse) turns the rounding of a score into an error of |s| roundings.
    scores = max(1.0, largest(q.double() @ keys) / subject.width**0.5)
    assert_as_accurate("mass", mass, truth, plain, FORWARD_FACTOR, scores * largest(truth))


@pytest.mark.parametrize(("subject", "tile"), every_tile())
def test_a_tile_gives_what_dense_attention_gives(subject, tile, device):
    checks = {"mass": check_mass, "rows_forward": check_rows, "rows_dq": check_rows}
    check = {**checks, "rows_dkdv": check_rows}.get(subject.kernel, check_queries)
    with only_tile(ARCHITECTURE, subject, tile), recording(ARCHITECTURE, run=True) as launches:
        check(subject, tile, device)
    assert_taken(launches, subject, tile)


@pytest.mark.parametrize(
    "subject",
    [Subject(kernel, 32, 64, hidden) for kernel, hidden in product(KERNELS, (False, True))],
    ids=name_of,
)
def test_tuning_judges_a_tile_by_the_same_call_of_the_library(subject, device):
    def results(path: str) -> tuple[torch.Tensor, ...]:
        return call(subject, Shape(2, 2, 96, 24), device, path=path)()

    kernel, library = results("triton"), results("library")
    assert all(result.any() for result in library)
    assert agree(kernel, library)
    assert not agree([result + 0.1 for result in kernel], library)
