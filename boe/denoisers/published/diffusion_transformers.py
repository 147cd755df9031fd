"""MDLM, BD3-LM and SEDD checkpoints on our own DiT, which has their parameter names.

MDLM's and BD3-LM's configs are flat (``model_type`` "mdlm", "bd3lm"); their weights are
under ``backbone.``. SEDD's is
the training run's: dimensions under ``model``, the noise under ``noise``, the vocabulary
without the mask under ``tokens``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from boe.denoisers.base import UnsupportedModel
from boe.denoisers.dit import DiT, DiTConfig
from boe.denoisers.noise import NoiseRange
from boe.denoisers.published.block_causal import block_length_of
from boe.denoisers.published.blueprint import Blueprint, refuse_variants, required
from boe.denoisers.weights import KeyMap

_BD3LM_SWITCHES = {
    "cross_attn": True,
    "adaln": True,
    "causal": False,
    "time_conditioning": False,
}
# BD3-LM's range of mask rates in training, which some of its checkpoints hold.
_OF_TRAINING = frozenset({"sampling_eps_min", "sampling_eps_max"})


def recognises_mdlm(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "mdlm"


def recognises_bd3lm(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "bd3lm"


def recognises_sedd(config: dict[str, Any]) -> bool:
    config = _run_config(config)
    return isinstance(config.get("graph"), dict) and isinstance(config.get("model"), dict)


def mdlm_blueprint(config: dict[str, Any]) -> Blueprint:
    """MDLM; time is zeroed unless ``time_conditioning``.

    The mask is the last id, unless the model's tokenizer has a mask token of its own.
    """
    noise = NoiseRange.log_linear() if config.get("time_conditioning") else None
    return _blueprint("mdlm", _flat_shape(config, "MDLM"), "backbone.", noise, config)


def bd3lm_blueprint(config: dict[str, Any]) -> Blueprint:
    """BD3-LM: MDLM's network under block-causal attention, its time zeroed.

    Raises:
        UnsupportedModel: a setting is absent, or one that we do not compute.
    """
    refuse_variants(config, _BD3LM_SWITCHES, "BD3-LM")
    length = block_length_of(config, required(config, "block_size", "BD3-LM"))
    shape = _flat_shape(config, "BD3-LM")
    return _blueprint("bd3lm", shape, "backbone.", None, config, length)


def _flat_shape(config: dict[str, Any], name: str) -> DiTConfig:
    return DiTConfig(
        vocab_size=required(config, "vocab_size", name),
        hidden_size=required(config, "hidden_dim", name),
        cond_dim=required(config, "cond_dim", name),
        n_blocks=required(config, "n_blocks", name),
        n_heads=required(config, "n_heads", name),
        length=required(config, "model_length", name),
    )


def sedd_blueprint(config: dict[str, Any]) -> Blueprint:
    """SEDD with the absorbing graph, conditioned on σ.

    Raises:
        UnsupportedModel: the graph has no mask token, or the noise is unknown.
    """
    published, config = config, _run_config(config)
    graph, dimensions = config["graph"].get("type"), config["model"]
    if graph != "absorb":
        raise UnsupportedModel(
            f"this SEDD checkpoint has graph.type = {graph!r}: only the absorbing graph has a "
            "mask token to fill in"
        )
    noise = config.get("noise") or {}
    if noise.get("type") == "loglinear":
        levels = NoiseRange.log_linear()
    elif noise.get("type") == "geometric":
        levels = NoiseRange.geometric(
            *(required(noise, f"sigma_{end}", "SEDD") for end in ("min", "max"))
        )
    else:
        raise UnsupportedModel(
            f"this SEDD checkpoint has noise.type = {noise.get('type')!r}; known are 'loglinear' "
            "and 'geometric'"
        )
    shape = DiTConfig(
        vocab_size=required(config, "tokens", "SEDD") + 1,
        hidden_size=required(dimensions, "hidden_size", "SEDD"),
        cond_dim=required(dimensions, "cond_dim", "SEDD"),
        n_blocks=required(dimensions, "n_blocks", "SEDD"),
        n_heads=required(dimensions, "n_heads", "SEDD"),
        length=required(dimensions, "length", "SEDD"),
    )
    return _blueprint("sedd", shape, "", levels, published)


def _run_config(config: dict[str, Any]) -> dict[str, Any]:
    """The run's config, which some versions of the hub mixin wrap."""
    inner = config.get("config")
    return inner if isinstance(inner, dict) else config


def _blueprint(
    format: str,
    shape: DiTConfig,
    prefix: str,
    noise: NoiseRange | None,
    published: dict[str, Any],
    block_length: int | None = None,
) -> Blueprint:
    def build() -> DiT:
        with torch.device("meta"):
            return DiT(shape)

    def denoiser(
        model: nn.Module,
        mask_id: int,
        suppressed_ids: tuple[int, ...],
        *,
        block_length: int | None = None,
    ) -> Any:
        from boe.denoisers.dit_denoiser import DiTDenoiser

        assert isinstance(model, DiT)
        return DiTDenoiser(
            model,
            mask_id,
            suppressed_ids=suppressed_ids,
            noise=noise,
            block_length=block_length,
        )

    skeleton = build()
    names = {f"{prefix}{name}": name for name in skeleton.state_dict()}
    computed = frozenset(f"{prefix}{name}" for name, _ in skeleton.named_buffers())
    return Blueprint(
        format=format,
        vocab_size=shape.vocab_size,
        build=build,
        keys=KeyMap(names, optional=computed, ignored=_OF_TRAINING),
        denoiser=denoiser,
        mask_id=None,
        default_mask_id=shape.vocab_size - 1,
        native_config=published,
        tokenizer=None,
        block_length=block_length,
    )
