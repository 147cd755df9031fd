"""Loading a denoiser and its tokenizer from a transformers checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boe.denoisers.base import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from boe.denoisers.transformers_model import TransformersDenoiser


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser, its tokenizer, and where they came from."""

    denoiser: TransformersDenoiser
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mask_id: int | None = None,
) -> LoadedModel:
    """Load a masked language model as a denoiser.

    Args:
        source: a directory that ``save_pretrained`` wrote, or a model id of the Hub.
        dtype: of the weights; the checkpoint's own by default.
        mask_id: id of the mask token, where the tokenizer does not say.

    Raises:
        FileNotFoundError: nothing can be loaded from ``source``; the message says why.
        UnsupportedModel: no masked LM, no mask token, or an architecture that cannot be
            used (see :class:`boe.denoisers.transformers_model.TransformersDenoiser`).
    """
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    from boe.denoisers.transformers_model import TransformersDenoiser

    source = str(source)
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise FileNotFoundError(f"{source} holds no config.json: not a transformers checkpoint")
    try:
        config = AutoConfig.from_pretrained(source)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise UnsupportedModel(f"{source} ({config.model_type}) has no masked-LM class")
        model, report = AutoModelForMaskedLM.from_pretrained(
            source, dtype=dtype or "auto", output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except UnsupportedModel:
        raise
    except Exception as error:
        # Damaged files surface as many kinds of exception, which all mean this.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(f"cannot load {source}: {reason[0]}") from error
    absent = sorted(report["missing_keys"])
    if absent:
        # transformers fills these in at random and only logs it.
        raise FileNotFoundError(
            f"cannot load {source}: {len(absent)} weights are missing, such as {absent[0]}"
        )
    mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
    if mask_id is None:
        raise UnsupportedModel(f"the tokenizer of {source} has no mask token; give mask_id")
    special = set(tokenizer.all_special_ids) - {mask_id}
    unnamed = range(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    denoiser = TransformersDenoiser(
        model.to(device), mask_id, suppressed_ids=(*sorted(special), *unnamed)
    )
    return LoadedModel(denoiser, tokenizer, source)
