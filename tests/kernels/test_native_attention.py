"""The native CPU attention kernels, in every variant that this processor can run."""

from __future__ import annotations

import pytest
import torch
from dense_attention import (
    assert_as_accurate_as_dense,
    keep_rows,
    output_and_gradients,
    random_key_bias,
    random_qkv,
    visible_keys,
)

from boe_kernels import _native_library, active_query_attention, active_row_attention

pytestmark = pytest.mark.usefixtures("native_variant", "poisoned_allocations")

HALF = (torch.bfloat16, torch.float16)
MIXED = torch.tensor([[0, 68, 130, -1, 5], [-1, 64, -1, -1, 63]])


def attend(rows, **options):
    return lambda q, k, v: active_query_attention(q, k, v, rows, backend="native", **options)


@pytest.mark.parametrize("width", [1, 15, 16, 40, 64, 80, 130], ids="d={}".format)
@pytest.mark.parametrize("length", [1, 63, 65, 131], ids="L={}".format)
def test_every_width_and_length_is_as_accurate_as_dense_attention(length, width):
    *inputs, grad = random_qkv(heads=(3, 1), length=length, width=width)
    rows = torch.arange(0, length, 2)
    actual = output_and_gradients(attend(rows), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [16, 24], ids="d={}".format)
def test_half_precisions_are_as_accurate_as_dense_attention(width, dtype):
    *inputs, grad = random_qkv(heads=(4, 2), length=131, width=width, dtype=dtype)
    actual = output_and_gradients(attend(MIXED), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, MIXED))


@pytest.mark.parametrize("window", [None, 0, 3, 70], ids="window={}".format)
@pytest.mark.parametrize("block_size", [None, 1, 48], ids="block={}".format)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_whatever_hides_keys_does(window, block_size, biased):
    length = 260
    *inputs, grad = random_qkv(heads=(2, 1), length=length, width=16)
    rows = torch.tensor([[0, 100, 259, -1], [64, 63, 200, 7]])
    bias = random_key_bias(2, length) if biased else None
    options = {"window": window, "block_size": block_size, "key_bias": bias}
    actual = output_and_gradients(attend(rows, **options), inputs, grad)
    everywhere = torch.arange(length).expand(2, -1)
    visible = visible_keys(everywhere, length, None, window, block_size)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows), visible, key_bias=bias)


def test_the_gradient_is_summed_over_shares_of_many_keys():
    # One head of 1100 keys is split over tasks, the last of them a short one.
    *inputs, grad = random_qkv(batch=1, heads=(1, 1), length=1100, width=16)
    rows = torch.tensor([3, 1099, 512])
    actual = output_and_gradients(attend(rows), inputs, grad)
    assert_as_accurate_as_dense(actual, inputs, keep_rows(grad, rows))


def test_scores_far_apart_overflow_nowhere():
    q, k, v, grad = random_qkv(length=70, width=16)
    inputs = (q * 100.0, k * 30.0, v)
    rows = torch.arange(70)
    actual = output_and_gradients(attend(rows), inputs, grad)
    assert all(x.isfinite().all() for x in actual)
    assert_as_accurate_as_dense(actual, inputs, grad)


def test_the_number_of_threads_changes_no_bit():
    *inputs, grad = random_qkv(heads=(4, 2), length=600, width=32)
    rows = torch.arange(0, 600, 7)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(output_and_gradients(attend(rows), inputs, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_canvas_gives_the_same_bits_alone_as_in_a_batch():
    # Enough keys for a head's to be split.
    *inputs, grad = random_qkv(batch=3, heads=(16, 16), length=1100, width=16)
    rows = torch.tensor([[5, 7, 1030], [0, -1, 1], [99, 3, -1]])
    together = output_and_gradients(attend(rows), inputs, grad)
    for b in range(3):
        alone = [x[b : b + 1] for x in inputs]
        results = output_and_gradients(attend(rows[b : b + 1]), alone, grad[b : b + 1])
        assert all(torch.equal(a[0], t[b]) for a, t in zip(results, together, strict=True))


def test_tensors_need_not_be_contiguous():
    *inputs, grad = random_qkv(heads=(2, 2), length=70, width=16)
    rows = torch.tensor([1, 69])
    expected = output_and_gradients(attend(rows), inputs, grad)
    strided = [torch.stack([x, x + 1.0], dim=-1)[..., 0] for x in inputs]
    transposed = grad.transpose(1, 2).contiguous().transpose(1, 2)
    actual = output_and_gradients(attend(rows), strided, transposed)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    one = torch.ones(())
    summed = output_and_gradients(lambda *x: attend(rows)(*x).sum(), inputs, one)
    ones = output_and_gradients(attend(rows), inputs, torch.ones_like(grad))
    assert all(torch.equal(a, b) for a, b in zip(summed[1:], ones[1:], strict=True))


def test_rows_of_a_replay_are_as_accurate_as_the_library_path_on_many_keys():
    q, k, v, grad = random_qkv(batch=2, heads=(4, 2), length=300, width=32)
    rows = torch.tensor([[0, 299, 64, -1], [7, 8, 9, 10]])
    taken = rows.clamp_min(0)[:, None, :, None]
    live = [x.gather(2, taken.expand(-1, x.shape[1], -1, x.shape[3])) for x in (q, k, v)]
    grad = grad[:, :, :4]

    def run(dtype: torch.dtype, backend: str) -> tuple[torch.Tensor, ...]:
        def attention(*x):
            return active_row_attention(*x, k.to(dtype), v.to(dtype), rows, backend=backend)

        return output_and_gradients(attention, [x.to(dtype) for x in live], grad.to(dtype))

    exact, library = run(torch.float64, "library"), run(torch.float32, "library")
    for ours, theirs, truth in zip(run(torch.float32, "native"), library, exact, strict=True):
        bound = (theirs - truth).abs().max()
        assert (ours - truth).abs().max() <= 4 * bound + torch.finfo(torch.float32).eps


def test_a_kernel_without_memory_says_so(monkeypatch):
    library = _native_library.library()
    kernel = type("NoMemory", (), {"boe_attention_forward": lambda *_: 1})()
    monkeypatch.setattr(
        _native_library,
        "LIBRARY",
        library.__class__(kernel, library.variants, library.variant, library.has_threads),
    )
    q, k, v, _ = random_qkv()
    with pytest.raises(MemoryError, match="boe_attention_forward could not allocate"):
        attend(torch.tensor([0]))(q, k, v)
