"""The gradient engines against each other and against autograd of untouched models."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from plain_models import (
    candidate_gradient,
    plain_model,
    soft_writes,
    summed_entropy,
    written,
)
from tiny_models import (
    ARCHITECTURES,
    MASK_ID,
    VOCABULARY,
    random_words,
    tiny_denoiser,
    tiny_model,
    tolerance_of,
)
from torch import Tensor

from boe.canvas import Canvas
from boe.denoisers import (
    ENGINES,
    EntropyGradient,
    GradientRequest,
    UnsupportedModel,
    frozen_products,
)
from boe.denoisers.base import required_keep
from boe.denoisers.transformers_model import TransformersDenoiser
from boe_kernels import observe_paths, pad_rows

# Two canvases of 21 and 13 positions; the second is padded.
MASKS = ([2, 5, 7, 8, 11, 15, 20], [0, 1, 4, 9])
CANVAS = Canvas.of([random_words(21, MASKS[0], seed=1), random_words(13, MASKS[1], seed=2)])
POSITIONS = torch.tensor([[2, 5, 7, 8, 11, 15, 20], [0, 1, 4, 9, -1, -1, -1]])
CANDIDATES = torch.tensor([[2, 8], [4, -1]])
PROBES = torch.tensor([[5, 7, 11, 15, 20], [0, 1, 9, -1, -1]])
EVERY_ROW = pad_rows(CANVAS.valid)
ACTIVE_SETS = {
    "candidates and probes": POSITIONS,
    "some observed rows too": torch.tensor(
        [[2, 3, 5, 7, 8, 11, 13, 15, 19, 20], [0, 1, 2, 4, 8, 9, 12, -1, -1, -1]]
    ),
    "only some of the probes": torch.tensor([[2, 3, 5, 8, 15], [0, 4, 12, -1, -1]]),
    "every row": EVERY_ROW,
}


@pytest.fixture(params=[False, True], ids=["PyTorch's products", "frozen products"])
def frozen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether replays run linear layers by ``frozen_linear``, which only larger ones do."""
    monkeypatch.setattr(frozen_products, "_WORTHWHILE", 0 if request.param else sys.maxsize)
    return request.param


by_either_product = pytest.mark.usefixtures("frozen")


def entropy_gradient(
    denoiser: TransformersDenoiser,
    engine: str = "replay",
    *,
    active: Tensor = POSITIONS,
    candidates: Tensor = CANDIDATES,
    probes: Tensor = PROBES,
    canvas: Canvas = CANVAS,
    positions: Tensor = POSITIONS,
    **options: object,
) -> EntropyGradient:
    prediction = denoiser.predict(canvas, positions, required_keep(engine, False))
    request = GradientRequest(candidates, probes, active, engine=engine, **options)
    return denoiser.entropy_gradient(prediction, request)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal relative to the norm of ``theirs``, which must not be negligible."""
    norm = float(theirs.norm())
    assert norm > 1e-3
    assert float((ours - theirs).norm()) <= tolerance * norm


# --- zero gradient (method 3.1) -------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probes_outside_the_active_rows_give_exactly_zero(name: str, engine: str) -> None:
    denoiser = tiny_denoiser(name)
    result = entropy_gradient(denoiser, engine, active=CANDIDATES)
    assert torch.equal(result.gradient, torch.zeros_like(result.gradient))
    assert float(result.delta.norm()) > 0.1
    assert torch.equal(result.surrogate, torch.zeros_like(result.surrogate))


def test_probes_outside_the_active_rows_give_exactly_zero_even_by_the_letter_of_eq_30() -> None:
    # Here the probes' entropies are summed; only attention outputs of others are constants.
    gradient, _, total = candidate_gradient(
        plain_model("bert"), CANVAS, CANDIDATES, PROBES, active=CANDIDATES
    )
    assert float(total.min()) > 1
    assert torch.equal(gradient, torch.zeros_like(gradient))


# --- row-drop identity (3.2), replay and late binding (3.4) ---------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ACTIVE_SETS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_engine_equals_stopped_gradients_at_inactive_attention_outputs(
    name: str, rows: str, engine: str
) -> None:
    active = ACTIVE_SETS[rows]
    kept = [[p if p in active[b].tolist() else -1 for p in row] for b, row in enumerate(PROBES)]
    gradient, delta, total = candidate_gradient(
        plain_model(name), CANVAS, CANDIDATES, torch.tensor(kept), active=active
    )
    result = entropy_gradient(tiny_denoiser(name), engine, active=active)
    assert_close(result.gradient, gradient, tolerance_of(name))
    assert_close(result.delta, delta, tolerance_of(name))
    assert_close(result.surrogate, total, tolerance_of(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_every_row_active_replay_is_plain_autograd(name: str, frozen: bool) -> None:
    with observe_paths() as paths:
        gradient, _, _ = candidate_gradient(plain_model(name), CANVAS, CANDIDATES, PROBES)
    assert not list(paths), "the reference must not run our own kernels"
    with observe_paths() as paths:
        result = entropy_gradient(tiny_denoiser(name), active=EVERY_ROW)
    assert ("frozen_linear" in dict(paths)) == frozen
    assert_close(result.gradient, gradient, tolerance_of(name))


def test_the_active_rows_truncate_the_gradient() -> None:
    denoiser = tiny_denoiser("bert")
    whole = entropy_gradient(denoiser, active=EVERY_ROW).gradient
    part = entropy_gradient(denoiser, active=POSITIONS).gradient
    assert float((whole - part).norm()) > 0.01 * float(whole.norm())


def test_the_order_and_padding_of_the_active_rows_do_not_matter() -> None:
    denoiser = tiny_denoiser("modernbert")
    expected = entropy_gradient(denoiser).gradient
    padded = torch.cat([torch.full((2, 3), -1), POSITIONS], dim=1).flip(1)
    assert_close(entropy_gradient(denoiser, active=padded).gradient, expected, 1e-10)


# --- the surrogate forward (3.3) ------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_alpha_0_the_surrogate_entropy_is_the_current_entropy(name: str, engine: str) -> None:
    denoiser = tiny_denoiser(name)
    prediction = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False))
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS, engine=engine)
    surrogate = denoiser.entropy_gradient(prediction, request).surrogate
    logp = prediction.logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp_min(-1e30)).sum(-1)
    probing = (POSITIONS.unsqueeze(2) == PROBES.unsqueeze(1)).any(2) & (POSITIONS >= 0)
    expected = torch.where(probing, entropy, 0.0).sum(1)
    assert_close(surrogate, expected, tolerance_of(name))
    if engine != "replay":
        # The surrogate reads the logits of the very forward that predicted.
        kept = denoiser.suppress(prediction.state.logits.detach())
        assert torch.equal(kept, prediction.logits)


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_at_alpha_0_the_logits_with_a_graph_are_those_without_bit_for_bit(engine: str) -> None:
    denoiser = tiny_denoiser("modernbert")
    plain = denoiser.predict(CANVAS, POSITIONS).logits
    kept = denoiser.predict(CANVAS, POSITIONS, required_keep(engine, False)).logits
    recorded = denoiser.predict(CANVAS, POSITIONS, "keys_values").logits
    valid = POSITIONS >= 0
    assert torch.equal(kept[valid], plain[valid])
    assert torch.equal(recorded[valid], plain[valid])


@pytest.mark.parametrize("engine", ENGINES)
def test_at_alpha_0_no_engine_spends_a_forward(engine: str) -> None:
    result = entropy_gradient(tiny_denoiser("bert"), engine)
    assert result.forwards == 0
    rows = [7, 4] if engine == "replay" else [21, 13]
    assert result.backward_rows.tolist() == rows
    assert result.replayed_rows.tolist() == ([7, 4] if engine == "replay" else [0, 0])


# --- alpha > 0 (3.6) ------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ["candidates and probes", "every row"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_full_context_every_engine_is_a_second_forward_at_the_soft_writes(
    name: str, rows: str, engine: str
) -> None:
    active = ACTIVE_SETS[rows]
    gradient, _, total = candidate_gradient(
        plain_model(name), CANVAS, CANDIDATES, PROBES, alpha=0.5, active=active
    )
    result = entropy_gradient(tiny_denoiser(name), engine, active=active, alpha=0.5, context="full")
    assert result.forwards == 1
    assert_close(result.gradient, gradient, tolerance_of(name))
    assert_close(result.surrogate, total, tolerance_of(name))


@by_either_product
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_frozen_context_is_the_full_one_when_every_row_is_active(name: str, alpha: float) -> None:
    gradient, _, _ = candidate_gradient(plain_model(name), CANVAS, CANDIDATES, PROBES, alpha=alpha)
    result = entropy_gradient(tiny_denoiser(name), active=EVERY_ROW, alpha=alpha)
    assert result.forwards == 0
    assert_close(result.gradient, gradient, tolerance_of(name))


def test_a_frozen_context_differs_from_the_full_one_when_some_rows_are_inactive() -> None:
    denoiser = tiny_denoiser("bert")
    frozen = entropy_gradient(denoiser, alpha=0.5).gradient
    full = entropy_gradient(denoiser, alpha=0.5, context="full").gradient
    assert float((frozen - full).norm()) > 1e-3 * float(full.norm())


def test_alpha_moves_the_point_of_evaluation() -> None:
    denoiser = tiny_denoiser("bert")
    start = entropy_gradient(denoiser, active=EVERY_ROW)
    middle = entropy_gradient(denoiser, active=EVERY_ROW, alpha=0.5)
    assert float((start.gradient - middle.gradient).norm()) > 1e-2 * float(start.gradient.norm())
    assert torch.equal(start.delta, middle.delta), "p comes from the current canvas, whatever α"


# --- TIS against finite differences (eq. 14) ------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tis_is_the_directional_derivative_of_the_summed_entropy(name: str, alpha: float) -> None:
    model = plain_model(name)
    embeds, delta = soft_writes(model, CANVAS, CANDIDATES)
    result = entropy_gradient(tiny_denoiser(name), active=EVERY_ROW, alpha=alpha)
    tis = -(result.gradient * result.delta).sum(-1)
    here = written(embeds, CANDIDATES, alpha * delta)
    # EuroBERT's norms and ModernBERT's rotations are float32: short differences drown.
    h, tolerance = (1e-2, 1e-2) if name in ("eurobert", "modernbert") else (1e-4, 1e-5)
    expected = torch.zeros_like(tis)
    for k in range(CANDIDATES.shape[1]):
        only = torch.where(torch.arange(CANDIDATES.shape[1])[None, :, None] == k, delta, 0.0)
        ahead = summed_entropy(model, written(here, CANDIDATES, h * only), CANVAS, PROBES)
        behind = summed_entropy(model, written(here, CANDIDATES, -h * only), CANVAS, PROBES)
        expected[:, k] = -(ahead - behind) / (2 * h)
    assert_close(tis, expected, tolerance)


# --- leave-one-out (3.5) --------------------------------------------------------------


def leave_one_out(model, candidates: Tensor, probes: Tensor) -> Tensor:
    """Σ_{j ∈ S, j ≠ i} H_j differentiated by one backward per candidate i."""
    columns = []
    for k in range(candidates.shape[1]):
        one = candidates[:, k : k + 1]
        others = torch.where(probes == one, -1, probes)
        columns.append(candidate_gradient(model, CANVAS, one, others)[0])
    return torch.cat(columns, dim=1)


@by_either_product
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["bert", "roberta_pre_layer_norm", "modernbert"])
def test_subtract_self_removes_exactly_the_row_local_part(name: str, layers: int) -> None:
    model = plain_model(name, layers)
    whole, _, _ = candidate_gradient(model, CANVAS, CANDIDATES, POSITIONS)
    own, _, _ = candidate_gradient(model, CANVAS, CANDIDATES, CANDIDATES, freeze_keys_values=True)
    result = entropy_gradient(
        tiny_denoiser(name, layers), active=EVERY_ROW, probes=POSITIONS, subtract_self=True
    )
    assert float(own.norm()) > 1e-2
    assert_close(result.gradient, whole - own, 1e-9)
    assert result.backward_rows.tolist() == [21 + 2, 13 + 1]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["bert", "roberta_pre_layer_norm", "modernbert"])
def test_subtract_self_comes_closer_to_leave_one_out_than_not_subtracting(
    name: str, layers: int
) -> None:
    expected = leave_one_out(plain_model(name, layers), CANDIDATES, POSITIONS)
    denoiser = tiny_denoiser(name, layers)
    included = entropy_gradient(denoiser, active=EVERY_ROW, probes=POSITIONS).gradient
    removed = entropy_gradient(
        denoiser, active=EVERY_ROW, probes=POSITIONS, subtract_self=True
    ).gradient
    assert float((removed - expected).norm()) < 0.7 * float((included - expected).norm())


@pytest.mark.parametrize("name", ["bert", "roberta_pre_layer_norm", "modernbert"])
def test_in_one_layer_subtract_self_leaves_only_what_a_row_does_through_its_own_key_and_value(
    name: str,
) -> None:
    plain = plain_model(name, 1)
    result = entropy_gradient(
        tiny_denoiser(name, 1), active=EVERY_ROW, probes=POSITIONS, subtract_self=True
    )
    left = []
    for k in range(CANDIDATES.shape[1]):
        one = CANDIDATES[:, k : k + 1]
        own, _, _ = candidate_gradient(plain, CANVAS, one, one)
        local, _, _ = candidate_gradient(plain, CANVAS, one, one, freeze_keys_values=True)
        left.append(own - local)
    expected = leave_one_out(plain, CANDIDATES, POSITIONS) + torch.cat(left, dim=1)
    # ModernBERT rotates in float32, and sums of gradients round there.
    assert_close(result.gradient, expected, 1e-6 if name == "modernbert" else 1e-9)


def test_subtract_self_takes_nothing_from_candidates_that_are_no_probes() -> None:
    denoiser = tiny_denoiser("bert", 1)
    plain = entropy_gradient(denoiser, active=EVERY_ROW).gradient
    removed = entropy_gradient(denoiser, active=EVERY_ROW, subtract_self=True).gradient
    assert torch.equal(removed, plain)


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_subtract_self_is_refused_by_the_graph_engines(engine: str) -> None:
    with pytest.raises(ValueError, match="subtract_self needs engine='replay'"):
        entropy_gradient(tiny_denoiser("bert", 1), engine, subtract_self=True)


def test_subtract_self_is_refused_for_shifted_models() -> None:
    denoiser = tiny_denoiser("bert", 1, logits_shift=-1)
    with pytest.raises(UnsupportedModel, match="unshifted"):
        entropy_gradient(denoiser, active=EVERY_ROW, subtract_self=True)


# --- the true drop (Theorem 3.1) ------------------------------------------------------


def scaled_writes(scale: float) -> tuple[TransformersDenoiser, object]:
    """A denoiser and its plain twin whose embeddings all lie near the mask's."""
    model, plain = tiny_model("bert_untied"), plain_model("bert_untied")
    for each in (model, plain):
        table = each.get_input_embeddings().weight
        table.copy_(table[MASK_ID] + scale * (table - table[MASK_ID]))
    return TransformersDenoiser(model, MASK_ID), plain


def true_drops(plain, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F before minus F after each single soft write, by enumeration; embeddings and Δe."""
    embeds, delta = soft_writes(plain, CANVAS, candidates)
    before = summed_entropy(plain, embeds, CANVAS, PROBES)
    drops = []
    for k in range(candidates.shape[1]):
        one, step = candidates[:, k : k + 1], delta[:, k : k + 1]
        drops.append(before - summed_entropy(plain, written(embeds, one, step), CANVAS, PROBES))
    return torch.stack(drops, dim=1), embeds, delta


def test_tis_tends_to_the_true_drop_as_the_writes_get_small() -> None:
    errors = []
    for scale in (1e-2, 1e-3):
        denoiser, plain = scaled_writes(scale)
        drops, _, _ = true_drops(plain, CANDIDATES)
        result = entropy_gradient(denoiser, active=EVERY_ROW)
        tis = -(result.gradient * result.delta).sum(-1)
        assert float(drops.abs().max()) > 1e-6
        errors.append(float((tis - drops).norm() / drops.norm()))
    assert errors[0] < 0.1
    assert errors[1] < 0.2 * errors[0], "the error is of second order"


def test_the_midpoint_is_nearer_to_the_true_drop_than_either_end() -> None:
    denoiser, plain = scaled_writes(0.3)
    alone = torch.tensor([[8], [4]])
    drops, _, _ = true_drops(plain, alone)
    error = {}
    for alpha in (0.0, 0.5, 1.0):
        result = entropy_gradient(denoiser, active=EVERY_ROW, candidates=alone, alpha=alpha)
        tis = -(result.gradient * result.delta).sum(-1)
        error[alpha] = float((tis - drops).norm())
    assert error[0.5] < 0.5 * min(error[0.0], error[1.0])


@pytest.mark.parametrize("name", ["bert", "roberta_pre_layer_norm"])
def test_the_remainder_is_within_the_bound_of_theorem_3_1(name: str) -> None:
    plain = plain_model(name)
    drops, embeds, delta = true_drops(plain, CANDIDATES)
    result = entropy_gradient(tiny_denoiser(name), active=EVERY_ROW)
    tis = -(result.gradient * result.delta).sum(-1)
    points = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    h = float(points[1])
    for k in range(CANDIDATES.shape[1]):
        one, step = CANDIDATES[:, k : k + 1], delta[:, k : k + 1]
        curve = torch.stack(
            [summed_entropy(plain, written(embeds, one, a * step), CANVAS, PROBES) for a in points]
        )
        bound = ((curve[2:] - 2 * curve[1:-1] + curve[:-2]) / h**2).abs().amax(0) / 2
        remainder = (drops[:, k] - tis[:, k]).abs()
        assert bool((remainder <= 1.01 * bound + 1e-9).all())
        real = CANDIDATES[:, k] >= 0
        # The bound is not vacuous: first order alone is off by a visible part of it.
        assert bool((remainder[real] > 0.01 * bound[real]).all())


# --- batches --------------------------------------------------------------------------


@by_either_product
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"alpha": 0.5, "context": "full"}])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_canvas_alone_has_the_gradient_that_it_has_in_a_padded_batch(
    name: str, options: dict[str, object]
) -> None:
    denoiser = tiny_denoiser(name)
    active = ACTIVE_SETS["some observed rows too"]
    together = entropy_gradient(denoiser, active=active, **options)
    for row in range(2):

        def own(rows: Tensor, row: int = row) -> Tensor:
            return rows[row : row + 1, : int((rows[row] >= 0).sum())]

        alone = entropy_gradient(
            denoiser,
            canvas=CANVAS.select([row]),
            positions=own(POSITIONS),
            candidates=own(CANDIDATES),
            probes=own(PROBES),
            active=own(active),
            **options,
        )
        count = alone.gradient.shape[1]
        assert_close(together.gradient[row, :count], alone.gradient[0], tolerance_of(name))
        assert bool((together.gradient[row, count:] == 0).all())
        assert_close(together.surrogate[row], alone.surrogate[0], tolerance_of(name))
        assert int(together.backward_rows[row]) == int(alone.backward_rows[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_what_padding_holds_does_not_matter(engine: str) -> None:
    denoiser = tiny_denoiser("modernbert")
    expected = entropy_gradient(denoiser, engine).gradient
    ids = CANVAS.ids.clone()
    ids[1, 13:] = MASK_ID
    other = entropy_gradient(denoiser, engine, canvas=Canvas(ids, CANVAS.lengths)).gradient
    assert torch.equal(other, expected)


# --- shifted models -------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_shifted_model_reads_the_row_before(name: str, engine: str, alpha: float) -> None:
    gradient, delta, total = candidate_gradient(
        plain_model(name), CANVAS, CANDIDATES, PROBES, shift=-1, alpha=alpha
    )
    unshifted, _, _ = candidate_gradient(plain_model(name), CANVAS, CANDIDATES, PROBES, alpha=alpha)
    denoiser = tiny_denoiser(name, logits_shift=-1)
    result = entropy_gradient(denoiser, engine, active=EVERY_ROW, alpha=alpha, context="full")
    assert_close(result.gradient, gradient, 1e-9)
    assert_close(result.delta, delta, 1e-9)
    assert_close(result.surrogate, total, 1e-9)
    assert float((gradient - unshifted).norm()) > 0.1 * float(gradient.norm())


def test_a_shifted_probe_counts_when_the_row_that_predicts_it_is_active() -> None:
    denoiser = tiny_denoiser("bert", logits_shift=-1)
    canvas = CANVAS.select([0])
    only = {"canvas": canvas, "positions": POSITIONS[:1], "candidates": torch.tensor([[8]])}
    probes = torch.tensor([[15]])
    own_row = entropy_gradient(denoiser, probes=probes, active=torch.tensor([[8, 15]]), **only)
    row_before = entropy_gradient(denoiser, probes=probes, active=torch.tensor([[8, 14]]), **only)
    assert float(own_row.gradient.norm()) == 0.0
    assert float(row_before.gradient.norm()) > 1e-3


# --- truncated soft writes (3.12) -----------------------------------------------------


def test_top_k_truncates_and_renormalises_the_soft_write() -> None:
    model = plain_model("bert")
    table = model.get_input_embeddings().weight
    denoiser = tiny_denoiser("bert")
    prediction = denoiser.predict(CANVAS, POSITIONS)
    p = prediction.logits[0, 0].softmax(-1)
    kept, ids = p.topk(5)
    expected = (kept / kept.sum()) @ table[ids] - table[MASK_ID]
    result = entropy_gradient(denoiser, top_k=5)
    assert_close(result.delta[0, 0], expected, 1e-10)
    whole = entropy_gradient(denoiser, top_k=VOCABULARY - 1)  # all but the mask
    assert_close(whole.delta, entropy_gradient(denoiser).delta, 1e-10)


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_candidate_whose_own_row_is_not_active_is_refused(engine: str) -> None:
    with pytest.raises(ValueError, match="active rows must include every candidate's own row"):
        entropy_gradient(tiny_denoiser("bert", 1), engine, active=PROBES)


@pytest.mark.parametrize("engine", ["late", "dense"])
def test_a_frozen_context_needs_replay(engine: str) -> None:
    with pytest.raises(ValueError, match=r"context='frozen' at alpha = 0\.5 needs engine='replay'"):
        entropy_gradient(tiny_denoiser("bert", 1), engine, alpha=0.5)


@pytest.mark.parametrize(
    ("engine", "keep", "message"),
    [
        ("replay", "nothing", "keep='keys_values' or 'attention'"),
        ("replay", "graph", "keep='keys_values' or 'attention'"),
        ("late", "nothing", "keep='graph' or 'dense_graph'"),
        ("dense", "keys_values", "keep='graph' or 'dense_graph'"),
    ],
)
def test_a_gradient_names_what_the_prediction_should_have_kept(
    engine: str, keep: str, message: str
) -> None:
    denoiser = tiny_denoiser("bert", 1)
    prediction = denoiser.predict(CANVAS, POSITIONS, keep)
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS, engine=engine)
    with pytest.raises(ValueError, match=message):
        denoiser.entropy_gradient(prediction, request)


def test_gradients_work_inside_no_grad_and_are_refused_inside_inference_mode() -> None:
    denoiser = tiny_denoiser("bert", 1)
    with torch.no_grad():
        expected = entropy_gradient(denoiser).gradient
    assert_close(entropy_gradient(denoiser).gradient, expected, 0.0)
    for engine in ENGINES:
        with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
            entropy_gradient(denoiser, engine)


def test_a_gradient_can_be_asked_for_twice_from_one_recorded_prediction() -> None:
    denoiser = tiny_denoiser("bert")
    prediction = denoiser.predict(CANVAS, POSITIONS, "keys_values")
    request = GradientRequest(CANDIDATES, PROBES, POSITIONS, alpha=0.5)
    first = denoiser.entropy_gradient(prediction, request).gradient
    denoiser.entropy_gradient(prediction, replace(request, active=EVERY_ROW))
    assert torch.equal(denoiser.entropy_gradient(prediction, request).gradient, first)
