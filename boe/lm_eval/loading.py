"""The model of an evaluation: loaded, shared out, compiled, as the settings say."""

from __future__ import annotations

from boe.denoisers.loading import LoadedModel, load_model
from boe.denoisers.placement import dtype_named
from boe.denoisers.tensor_parallel import parallelise
from boe.lm_eval.ranks import Ranks
from boe.lm_eval.settings import EvaluationSettings
from boe.scaling.rank_group import RankGroup

_EMBEDDED = "embedded:"


def source_of(pretrained: str) -> str:
    """The checkpoint that a model's name stands for.

    Raises:
        ValueError: no text task with a denoiser has that name.
    """
    if not pretrained.startswith(_EMBEDDED):
        return pretrained
    from boe.lm_eval.protocols.embedded import TEXT_TASKS

    name = pretrained.removeprefix(_EMBEDDED)
    if name not in TEXT_TASKS:
        known = ", ".join(TEXT_TASKS)
        raise ValueError(f"pretrained must be {_EMBEDDED} and one of {known}, got {name!r}")
    return str(TEXT_TASKS[name].weights)


def load(settings: EvaluationSettings, ranks: Ranks, group: RankGroup | None = None) -> LoadedModel:
    """The checkpoint that is named, on this process's device or shared out over ``group``.

    Raises:
        ValueError: as :func:`source_of`.
        FileNotFoundError, UnsupportedModel, ValueError: as :func:`boe.load_model`.
    """
    return load_model(
        source_of(settings.pretrained),
        device=ranks.device(settings.device) if group is None else None,
        dtype=dtype_named(settings.dtype),
        revision=settings.revision,
        mask_id=settings.mask_id,
        tokenizer=settings.tokenizer,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
        mesh=None if group is None else group.mesh,
    )


def prepared(
    loaded: LoadedModel | None,
    settings: EvaluationSettings,
    ranks: Ranks,
    group: RankGroup | None,
) -> LoadedModel:
    """``loaded``, or the checkpoint that is named, shared out over ``group`` if there is one.

    Raises:
        FileNotFoundError, UnsupportedModel, ValueError: as :func:`load` and
            :func:`boe.denoisers.tensor_parallel.parallelise`.
    """
    if loaded is None:
        return load(settings, ranks, group)
    if group is not None:
        parallelise(loaded.denoiser, group.mesh)
    return loaded
