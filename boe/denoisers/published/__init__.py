"""Checkpoints of published masked diffusion models, without their remote code."""

from __future__ import annotations

from typing import Any

from boe.denoisers.published import diffusion_transformers, dream, llada, llada2, sdar
from boe.denoisers.published.blueprint import FORMAT_KEY, Blueprint

__all__ = ["FORMATS", "FORMAT_KEY", "Blueprint", "blueprint_of"]

FORMATS = {
    "llada": (llada.recognises, llada.blueprint),
    "dream": (dream.recognises, dream.blueprint),
    "llada2": (llada2.recognises, llada2.blueprint),
    "sdar": (sdar.recognises, sdar.blueprint),
    "sdar_moe": (sdar.recognises_sparse, sdar.blueprint),
    "mdlm": (diffusion_transformers.recognises_mdlm, diffusion_transformers.mdlm_blueprint),
    "bd3lm": (diffusion_transformers.recognises_bd3lm, diffusion_transformers.bd3lm_blueprint),
    "sedd": (diffusion_transformers.recognises_sedd, diffusion_transformers.sedd_blueprint),
}


def blueprint_of(config: dict[str, Any]) -> Blueprint | None:
    """How to build what ``config.json`` describes, or ``None`` if it is none of ours.

    Raises:
        UnsupportedModel: it is one of ours, but with a setting that we do not compute.
    """
    for recognises, blueprint in FORMATS.values():
        if recognises(config):
            return blueprint(config if FORMAT_KEY in config else _with_published_rope(config))
    return None


def _with_published_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers 5 saves as ``rope_parameters`` as it was published.

    Unread, these would leave a model with the default base, which no error shows.
    """
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return config
    names = ("rope_theta", "partial_rotary_factor")
    rope = {name: parameters[name] for name in names if name in parameters}
    if parameters.get("rope_type", "default") != "default":
        rope["rope_scaling"] = parameters
    return {**rope, **config}
