"""Late binding on a model that the library has never seen, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from foreign_models import MASK, VOCABULARY, WIDTH, ForeignModel
from torch import Tensor, nn
from torch.nn import functional

import boe.denoisers.interception as interception_module
from boe.canvas import Canvas
from boe.denoisers import EntropyGradient, GradientRequest, UnsupportedModel
from boe.denoisers.attention_modes import Plain
from boe.denoisers.base import required_keep
from boe.denoisers.intercepted_model import InterceptedDenoiser
from boe_kernels import DeferredRows


def words(length: int, masks: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
    ids[masks] = MASK
    return ids


CANVAS = Canvas.of([words(17, [2, 5, 8, 11, 16], 1), words(11, [0, 4, 9], 2)])
POSITIONS = torch.tensor([[2, 5, 8, 11, 16], [0, 4, 9, -1, -1]])
CANDIDATES = torch.tensor([[2, 8], [4, -1]])
PROBES = torch.tensor([[5, 11, 16], [0, 9, -1]])
ACTIVE = torch.tensor([[2, 3, 5, 8, 11, 16], [0, 4, 7, 9, -1, -1]])
REQUEST = GradientRequest(CANDIDATES, PROBES, ACTIVE)


def foreign(variant: str = "plain", **options: object) -> InterceptedDenoiser:
    model = ForeignModel(variant)
    return InterceptedDenoiser(model, MASK, table=model.words, head=model.last, **options)


def reference(active: Tensor | None, alpha: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Autograd of the same network written out, attention as a softmax of scores."""
    model = ForeignModel().requires_grad_(False)
    valid = CANVAS.valid
    keep = torch.ones(2, 18, dtype=torch.bool)
    if active is not None:
        keep = torch.zeros(2, 18, dtype=torch.bool)
        keep.scatter_(1, torch.where(active < 0, 17, active), True)
    keep = keep[:, :17, None]

    def norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def logits(embeds: Tensor) -> Tensor:
        x = embeds + model.places[:17]
        for qkv, out, up, down in zip(model.qkv, model.out, model.up, model.down, strict=True):
            h = norm(x) @ qkv.T
            q = h[..., :16].unflatten(-1, (4, 4)).transpose(1, 2)
            k = h[..., 16:24].unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1)
            v = h[..., 24:].unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1)
            scores = (q @ k.transpose(-2, -1) / 2.0).masked_fill(
                ~valid[:, None, None, :], -torch.inf
            )
            y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + torch.where(keep, y, y.detach()) @ out.T
            gate, value = (norm(x) @ up.T).chunk(2, dim=-1)
            x = x + (gate * gate.sigmoid() * value) @ down.T
        return (norm(x) @ model.last.T).index_fill(-1, torch.tensor([MASK]), -torch.inf)

    embeds = model.words[CANVAS.ids]
    p = logits(embeds).softmax(-1)
    p = p.gather(1, CANDIDATES.clamp_min(0).unsqueeze(-1).expand(-1, -1, VOCABULARY))
    real = (CANDIDATES >= 0).unsqueeze(-1)
    delta = (p @ model.words - model.words[MASK]) * real
    leaf = embeds.clone()
    for row, slot in real.squeeze(-1).nonzero().tolist():
        leaf[row, CANDIDATES[row, slot]] += alpha * delta[row, slot]
    leaf.requires_grad_()
    logp = logits(leaf).log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp_min(-1e30)).sum(-1)
    counted = PROBES >= 0
    if active is not None:
        counted = counted & keep.squeeze(-1).gather(1, PROBES.clamp_min(0))
    total = torch.where(counted, entropy.gather(1, PROBES.clamp_min(0)), 0.0).sum(1)
    (grad,) = torch.autograd.grad(total.sum(), leaf)
    index = CANDIDATES.clamp_min(0).unsqueeze(-1).expand(-1, -1, WIDTH)
    return grad.gather(1, index) * real, delta, total.detach()


def gradient(
    denoiser: InterceptedDenoiser, engine: str, request: GradientRequest = REQUEST
) -> EntropyGradient:
    prediction = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False))
    return denoiser.entropy_gradient(prediction, replace(request, engine=engine))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    norm = float(theirs.norm())
    assert norm > 1e-3
    assert float((ours - theirs).norm()) <= 1e-9 * norm


@pytest.mark.parametrize("keep", ["nothing", "graph", "dense_graph"])
def test_predictions_are_the_models_own_logits(keep: str) -> None:
    model = ForeignModel()
    expected = model(CANVAS.ids, attention_mask=CANVAS.valid)[0]
    logits = foreign().predict(CANVAS, POSITIONS, keep).logits
    seen = [v for v in range(VOCABULARY) if v != MASK]
    for row in range(2):
        members = POSITIONS[row][POSITIONS[row] >= 0]
        torch.testing.assert_close(
            logits[row, : len(members), seen], expected[row, members][:, seen]
        )
    assert bool((logits[..., MASK] == -torch.inf).all())


@pytest.mark.parametrize("engine", ["late", "dense"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_late_binding_and_dense_are_autograd_with_stopped_attention_outputs(
    alpha: float, engine: str
) -> None:
    request = replace(REQUEST, alpha=alpha, context="full")
    result = gradient(foreign(), engine, request)
    gradient_due, delta, total = reference(ACTIVE, alpha)
    assert_close(result.gradient, gradient_due)
    assert_close(result.delta, delta)
    assert_close(result.surrogate, total)
    untruncated, _, _ = reference(None, alpha)
    assert float((result.gradient - untruncated).norm()) > 1e-3 * float(untruncated.norm())


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_a_mask_of_minus_infinities_is_a_padding_mask_too(engine: str) -> None:
    assert_close(gradient(foreign("additive"), engine).gradient, reference(ACTIVE)[0])


def test_a_canvas_alone_has_the_gradient_that_it_has_in_a_padded_batch() -> None:
    denoiser = foreign()
    together = gradient(denoiser, "late")
    canvas = CANVAS.select([1])
    request = GradientRequest(CANDIDATES[1:, :1], PROBES[1:, :2], ACTIVE[1:, :4], engine="late")
    prediction = denoiser.predict(canvas, POSITIONS[1:, :3], "graph")
    assert_close(
        together.gradient[1, :1], denoiser.entropy_gradient(prediction, request).gradient[0]
    )


def test_linear_layers_go_back_through_the_active_rows_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = foreign()
    assert denoiser.row_sparse_linear
    seen = []
    backward = interception_module._RowSparseLinear.backward

    def counted(ctx: object, grad: Tensor) -> tuple:
        out = backward(ctx, grad)
        seen.append((out[0] != 0).any(-1))
        return out

    monkeypatch.setattr(interception_module._RowSparseLinear, "backward", staticmethod(counted))
    gradient(denoiser, "late")
    active = torch.zeros(2, 18, dtype=torch.bool)
    active.scatter_(1, torch.where(ACTIVE < 0, 17, ACTIVE), True)
    assert len(seen) == 4 * 3, "four products in each of three layers"
    assert all(not bool((touched & ~active[:, :17]).any()) for touched in seen)


def test_without_a_named_head_logits_are_computed_for_every_row() -> None:
    model = ForeignModel()
    denoiser = InterceptedDenoiser(model, MASK, table=model.words)
    assert_close(gradient(denoiser, "late").gradient, reference(ACTIVE)[0])


def test_a_model_whose_code_reshapes_its_logits_is_run_with_its_whole_head() -> None:
    class Reshaping(ForeignModel):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            logits = super().forward(ids, attention_mask)[0]
            return logits.view(*ids.shape, VOCABULARY)

    model = Reshaping()
    denoiser = InterceptedDenoiser(model, MASK, table=model.words, head=model.last)
    assert_close(gradient(denoiser, "late").gradient, reference(ACTIVE)[0])


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("causal", "is_causal=True"),
        ("dropout", r"dropout_p=0\.1"),
        ("bias", "adds an attention bias"),
        ("trained bias", "attention bias that has a gradient"),
        ("window", "more than the padding"),
        ("manual", "never called F.scaled_dot_product_attention"),
        ("prefix", "something other than the canvas"),
        ("ungrouped", "without enable_gqa"),
        ("convolution", "influence each other outside"),
        ("module", "nn.MultiheadAttention hides it"),
        ("twice", "looks up its input embeddings 2 times"),
    ],
)
def test_what_cannot_be_proven_is_refused(variant: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        foreign(variant)


def test_padding_that_the_model_ignores_is_refused_when_it_comes() -> None:
    denoiser = foreign("unmasked")
    even = Canvas.of(CANVAS.ids[:1])
    assert denoiser.predict(even, POSITIONS[:1]).logits.isfinite().any()
    with pytest.raises(UnsupportedModel, match="padding would be attended to"):
        denoiser.predict(CANVAS, POSITIONS)


def test_replay_and_bridges_are_refused_by_name() -> None:
    denoiser = foreign()
    prediction = denoiser.predict(CANVAS, POSITIONS, "attention")
    with pytest.raises(UnsupportedModel, match="cannot be replayed"):
        denoiser.entropy_gradient(prediction, REQUEST)
    with pytest.raises(UnsupportedModel, match="bridge rows need a replay"):
        denoiser.bridge_scores(prediction, REQUEST, "received")


def test_a_model_that_names_no_embeddings_asks_for_the_table() -> None:
    with pytest.raises(UnsupportedModel, match="give table"):
        InterceptedDenoiser(ForeignModel(), MASK)


def test_a_wrong_table_is_found_out() -> None:
    other = nn.Parameter(torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64))
    with pytest.raises(UnsupportedModel, match="looks up its input embeddings 0 times"):
        InterceptedDenoiser(ForeignModel(), MASK, table=other)


def test_a_model_that_returns_no_logits_is_refused() -> None:
    class Silent(ForeignModel):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict:
            return {"answer": super().forward(ids, attention_mask)[0]}

    model = Silent()
    with pytest.raises(UnsupportedModel, match="must return logits"):
        InterceptedDenoiser(model, MASK, table=model.words)


def test_nothing_is_patched_and_the_model_stays_usable() -> None:
    attention = functional.scaled_dot_product_attention
    denoiser = foreign()
    before = denoiser.model(CANVAS.ids[:1])[0]
    gradient(denoiser, "late")
    assert functional.scaled_dot_product_attention is attention
    assert torch.equal(denoiser.model(CANVAS.ids[:1])[0], before)


def test_shifted_logits_are_read_from_the_row_before() -> None:
    unshifted = foreign().predict(CANVAS, torch.tensor([[1, 4], [3, -1]])).logits
    shifted = foreign(logits_shift=-1).predict(CANVAS, torch.tensor([[2, 5], [4, -1]])).logits
    assert torch.equal(shifted[0], unshifted[0])


def test_active_rows_are_read_when_the_backward_runs() -> None:
    denoiser = foreign()
    active = DeferredRows()
    leaf = denoiser.embed(CANVAS.ids).requires_grad_()
    logits = denoiser.run(leaf, Plain(active), POSITIONS, canvas=CANVAS).logits
    with pytest.raises(RuntimeError, match="not bound"):
        torch.autograd.grad(logits[0, 0].sum(), leaf, retain_graph=True)
    active.bind(POSITIONS)
    (grad,) = torch.autograd.grad(logits[0, 0].sum(), leaf)
    assert float(grad[0, 5].norm()) > 0.0
