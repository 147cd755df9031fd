"""The kernels of a steering step on a GPU: soft writes and influence scores."""

from __future__ import annotations

import pytest
import torch
from error_bounds import FORWARD_FACTOR, assert_as_accurate, largest
from torch import Tensor

from boe_kernels import inject_soft_embeddings, observe_paths, tis_scores
from boe_kernels.tis_scores import GATES, NORMALISATIONS

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTH = 40
ROW_SETS = {
    "shared": torch.tensor([7, 0, 39]),
    "ragged": torch.tensor([[7, 0, 39], [-1, 5, -1]]),
    "one": torch.tensor([3]),
    "none": torch.zeros(0, dtype=torch.int64),
    "all": torch.arange(LENGTH).flip(0),
}
SIZES = [
    pytest.param((67, 24), id="V=67 D=24"),
    pytest.param((50257, 512), id="V=50257 D=512", marks=pytest.mark.device_only),
    pytest.param((126464, 1000), id="V=126464 D=1000", marks=pytest.mark.device_only),
]


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    random = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=random, device=device).to(dtype) for shape in shapes]


def soft_write(
    embeds: Tensor, rows: Tensor, p: Tensor, table: Tensor, mask_embed: Tensor, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """Eqs. 10 and 12 in the dtype of ``table``; ``p`` (B, R, V) are probabilities."""
    if top_k is not None:
        kept = p.topk(top_k, dim=-1)
        p = torch.zeros_like(p).scatter(-1, kept.indices, kept.values)
        p = p / p.sum(dim=-1, keepdim=True)
    members = (rows >= 0).expand(p.shape[:2])
    delta = torch.where(members[..., None], p.to(table.dtype) @ table - mask_embed, 0.0)
    canvas = embeds.clone()
    for b, places in enumerate(rows.expand(embeds.shape[0], -1)):
        canvas[b, places[members[b]]] = (mask_embed + 0.3 * delta[b])[members[b]]
    return canvas, delta


FORMS = [
    pytest.param(None, "triton", id="dense"),
    pytest.param(None, "triton_fused", id="fused"),
    *(pytest.param(top_k, "triton", id=f"top_k={top_k}") for top_k in (1, 9)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("top_k", "path"), FORMS)
@pytest.mark.parametrize("name", ROW_SETS)
def test_the_canvas_and_delta_follow_their_definition(name, top_k, path, size, dtype, device):
    vocabulary, width = size
    rows = ROW_SETS[name].to(device)
    count = rows.shape[-1]
    embeds, table, mask_embed = drawn(
        (2, LENGTH, width), (vocabulary, width), (width,), dtype=dtype, device=device
    )
    # Distinct logits: the definition of the k largest needs no rule for ties.
    random = torch.Generator(device).manual_seed(1)
    order = torch.randperm(2 * count * vocabulary, generator=random, device=device)
    logits = 12 * order.view(2, count, vocabulary).float() / max(1, order.numel())
    with observe_paths() as seen:
        actual = inject_soft_embeddings(
            embeds,
            rows,
            logits,
            table,
            mask_embed,
            0.3,
            top_k,
            is_logits=True,
            return_delta=True,
            backend=path,
        )
    assert {ran for _, ran in seen} == {path}
    p = logits.double().softmax(dim=-1)
    wide = (x.double() for x in (table, mask_embed))
    truth = soft_write(embeds.double(), rows, p, *wide, top_k)
    plain = soft_write(embeds, rows, p.float(), table, mask_embed, top_k)
    size_of_sum = largest(table) + largest(mask_embed)
    for what, *results in zip(("canvas", "delta"), actual, truth, plain, strict=True):
        assert_as_accurate(what, *results, FORWARD_FACTOR, size_of_sum)


@pytest.mark.sanitized
@pytest.mark.parametrize(
    ("top_k", "path"), [(None, "triton"), (None, "triton_fused"), (9, "triton")], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_untouched_rows_keep_their_bits(dtype, top_k, path, device):
    rows = ROW_SETS["ragged"].to(device)
    embeds, table, mask_embed, values = drawn(
        (2, LENGTH, 24), (67, 24), (24,), (2, 3, 67), dtype=dtype, device=device
    )
    before = embeds.clone()
    canvas = inject_soft_embeddings(
        embeds, rows, values, table, mask_embed, 0.3, top_k, is_logits=True, backend=path
    )
    written = torch.zeros(2, LENGTH, dtype=torch.bool, device=device)
    written[0, [7, 0, 39]] = written[1, 5] = True
    assert torch.equal(canvas[~written], before[~written])
    assert (canvas[written] != before[written]).any(dim=-1).all()
    assert torch.equal(embeds, before), "the canvas given is not modified"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 5, 11, 24), id="C=5 D=24"),
        pytest.param((3, 200, 800, 4096), id="C=200 D=4096", marks=pytest.mark.device_only),
    ],
)
def test_scores_are_as_accurate_as_plain_pytorch(shape, gate, normalise, dtype, device):
    batch, count, positions, width = shape
    gradient, delta = drawn(*[(batch, count, width)] * 2, dtype=dtype, device=device)
    (entropy,) = drawn((batch, positions), dtype=torch.float32, device=device)
    entropy = entropy.sigmoid() * 4
    random = torch.Generator().manual_seed(3)
    candidates = torch.stack([torch.randperm(positions, generator=random) for _ in range(batch)])
    candidates = candidates[:, :count].contiguous().to(device)
    candidates[-1, count // 2 :] = -1
    remaining = torch.linspace(0.2, 1.0, batch, device=device)

    def scores(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        return tis_scores(
            gradient.to(dtype),
            delta.to(dtype),
            entropy.to(wide),
            candidates,
            remaining.to(wide),
            vocabulary=50,
            gate=gate,
            penalty=0.7,
            floor=2.0,
            anneal=True,
            normalise=normalise,
            backend=backend,
        )._asdict()

    actual, truth = scores("triton", dtype), scores("reference", torch.float64)
    plain = scores("reference", dtype)
    products = largest(gradient.double().abs() @ delta.double().abs().transpose(-1, -2))
    for name, right in truth.items():
        finite = right.isfinite()
        assert torch.equal(actual[name].isfinite(), finite), name
        assert_as_accurate(
            name, actual[name][finite], right[finite], plain[name][finite], FORWARD_FACTOR, products
        )
