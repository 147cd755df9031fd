"""The model of an evaluation: loaded, shared out, compiled, as the settings say."""

from __future__ import annotations

from dataclasses import replace

from boe.denoisers.loading import LoadedModel, load_model
from boe.denoisers.placement import compiled_as, dtype_named
from boe.lm_eval.ranks import Ranks
from boe.lm_eval.settings import EvaluationSettings
from boe.scaling.rank_group import RankGroup
from boe.scaling.tensor_parallel import parallelise

_EMBEDDED = "embedded:"


def load(settings: EvaluationSettings, ranks: Ranks) -> LoadedModel:
    """The checkpoint that is named, on this process's device.

    Raises:
        ValueError: no text task with a denoiser has that name.
    """
    source = settings.pretrained
    if source.startswith(_EMBEDDED):
        from boe.lm_eval.protocols.embedded import TEXT_TASKS

        name = source.removeprefix(_EMBEDDED)
        if name not in TEXT_TASKS:
            known = ", ".join(TEXT_TASKS)
            raise ValueError(f"pretrained must be {_EMBEDDED} and one of {known}, got {name!r}")
        source = str(TEXT_TASKS[name].weights)
    return load_model(
        source,
        # Its layers move to the GPUs as they are shared out.
        device="cpu" if settings.tensor_parallel > 1 else ranks.device(settings.device),
        dtype=dtype_named(settings.dtype),
        mask_id=settings.mask_id,
        tokenizer=settings.tokenizer,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
    )


def prepared(
    loaded: LoadedModel, settings: EvaluationSettings, group: RankGroup | None
) -> LoadedModel:
    """The model shared out over ``group``, in place, or compiled.

    Raises:
        UnsupportedModel, ValueError: as :func:`boe.scaling.tensor_parallel.parallelise` and
            :class:`boe.CompiledDenoiser`.
    """
    if group is not None:
        parallelise(loaded.denoiser, group.mesh)
    return replace(loaded, denoiser=compiled_as(settings.compile, loaded.denoiser))
