"""Gradients through both branches of classifier-free guidance.

Guided logits are (1 + w)·z − w·z_u, with z from the canvas and z_u from the canvas whose
given tokens are masked (Nie et al., 2025). A candidate is masked in both, and its soft write
enters both, so its gradient is the sum of what comes back through the two.
"""

from __future__ import annotations

from boe.denoisers.base import (
    DenoiserFacts,
    GradientRequest,
    GuidedState,
    Prediction,
    UnsupportedModel,
)


def branches_of(prediction: Prediction) -> list[tuple[Prediction, float]]:
    """The predictions behind ``prediction`` and the weights of their logits.

    Of a guided one the conditional branch comes first.
    """
    state = prediction.state
    if not isinstance(state, GuidedState):
        return [(prediction, 1.0)]
    return [(state.conditional, 1.0 + state.weight), (state.free, -state.weight)]


def check_guided(facts: DenoiserFacts, request: GradientRequest, state: GuidedState) -> None:
    """Raise unless both branches can be differentiated together.

    Raises:
        ValueError: the engine is not replay.
        UnsupportedModel: the model takes the time as an input.
    """
    if request.engine != "replay":
        raise ValueError(
            f"a gradient through both branches of guidance {state.weight} needs engine='replay', "
            f"got engine={request.engine!r}"
        )
    if facts.time_conditioned:
        raise UnsupportedModel(
            "a gradient through both branches of guidance needs a model without a time input: "
            "the branches differ in masks, and so in time; differentiate the conditional branch"
        )
