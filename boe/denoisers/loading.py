"""Loading a denoiser and its tokenizer from a checkpoint.

Three kinds of checkpoint are told apart by ``config.json``: published masked diffusion
models that we build ourselves (:mod:`boe.denoisers.published`), transformers' own masked
LMs, and models that come with code of their own, which is run only when that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from boe.denoisers.attention_denoiser import AttentionDenoiser, check_block_length
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint, first_line, read_config, refuse_pickles
from boe.denoisers.published import FORMATS, Blueprint, blueprint_of
from boe.denoisers.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PUBLISHED_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser, its tokenizer, and where they came from."""

    denoiser: AttentionDenoiser
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mask_id: int | None = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    block_length: int | None = None,
) -> LoadedModel:
    """Load a masked language model as a denoiser.

    Args:
        source: a checkpoint directory, or a model id of the Hub.
        dtype: of the weights; the checkpoint's own by default.
        mask_id: id of the mask token, where neither config nor tokenizer say.
        tokenizer: directory or Hub id of the tokenizer, where the checkpoint has none
            (MDLM and SEDD use "gpt2").
        allow_pickle: accept weights that are stored as pickles.
        trust_remote_code: run the Python code that the checkpoint comes with, if it is
            no model that we build ourselves.
        block_length: of a block-causal model that was trained with other blocks than its
            config or family says.

    Raises:
        FileNotFoundError: nothing can be loaded from ``source``; the message says why.
        UnsupportedModel: no masked LM, no mask token, or an architecture that cannot be
            used (see :class:`boe.denoisers.transformers_model.TransformersDenoiser`).
    """
    for place in (source, tokenizer):
        _require_directory(place)
    folder, blueprint = _published(str(source), allow_pickle)
    if block_length is not None:
        check_block_length(block_length)
        if blueprint is None or blueprint.block_length is None:
            raise UnsupportedModel(
                f"block_length is for block-causal models, which {source} is not: its positions "
                "see each other"
            )
        blueprint = replace(blueprint, block_length=block_length)
    if blueprint is not None:
        words = load_tokenizer(folder, blueprint, tokenizer)
        mask_id = choose_mask_id(blueprint, words, mask_id, folder)
        denoiser = build_published(
            Checkpoint.open(folder, allow_pickle=allow_pickle),
            blueprint,
            mask_id,
            unnamed_ids(blueprint, words),
            device=device,
            dtype=dtype,
        )
        _name_mask(words, mask_id)
        return LoadedModel(denoiser, words, str(source))
    return _load_with_transformers(
        str(source), device, dtype, mask_id, tokenizer, allow_pickle, trust_remote_code
    )


def build_published(
    checkpoint: Checkpoint,
    blueprint: Blueprint,
    mask_id: int,
    suppressed_ids: tuple[int, ...] = (),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> AttentionDenoiser:
    """The denoiser that ``blueprint`` describes, with the weights of ``checkpoint``.

    Raises:
        CheckpointError: the weights do not fit or cannot be read.
    """
    model = blueprint.build()
    load_weights(checkpoint, model, blueprint.keys, device=device, dtype=dtype)
    if blueprint.block_length is None:
        return blueprint.denoiser(model, mask_id, suppressed_ids)
    return blueprint.denoiser(model, mask_id, suppressed_ids, block_length=blueprint.block_length)


def load_tokenizer(
    folder: str | Path, blueprint: Blueprint, source: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a published checkpoint, without running code that comes with it.

    Raises:
        FileNotFoundError: there is none that can be loaded; the message says what to give.
    """
    import transformers

    own = source is None
    place = str(folder if own else source)
    try:
        if own:
            # Named, since AutoTokenizer asks the config, whose classes come with its code.
            kind = blueprint.tokenizer or "PreTrainedTokenizerFast"
            return getattr(transformers, kind).from_pretrained(place)
        return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        if own and blueprint.tokenizer is None:
            raise FileNotFoundError(
                f"{place} holds no tokenizer, as {blueprint.format} checkpoints are published "
                "without one; give tokenizer, usually 'gpt2'"
            ) from error
        raise FileNotFoundError(
            f"cannot load the tokenizer of {place}: {first_line(error)}"
        ) from error


def unnamed_ids(blueprint: Blueprint, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Rows of the embedding table that no token has: padding up to a round number."""
    named = set(tokenizer.get_vocab().values())
    return tuple(index for index in range(blueprint.vocab_size) if index not in named)


def _require_directory(place: str | Path | None) -> None:
    """Raise where ``place`` is not there and can be no id of the Hub, which would not say so."""
    named = str(place or "")
    is_path = named.startswith(("/", ".", "~")) or named.count("/") > 1
    if is_path and not Path(named).exists():
        raise FileNotFoundError(f"cannot load {place}: there is no such directory")


def _published(source: str, allow_pickle: bool) -> tuple[Path, Blueprint | None]:
    """The local folder, and the blueprint if the checkpoint is one that we build."""
    folder = Path(source)
    if folder.exists():
        return folder, blueprint_of(read_config(folder))
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        blueprint = blueprint_of(read_config(Path(hf_hub_download(source, "config.json")).parent))
        if blueprint is None:
            return folder, None
        patterns = [*_PUBLISHED_FILES, *(["*.bin"] if allow_pickle else [])]
        return Path(snapshot_download(source, allow_patterns=patterns)), blueprint
    except UnsupportedModel:
        raise
    except Exception as error:
        raise FileNotFoundError(
            f"cannot load {source}, which is no directory here: {first_line(error)}"
        ) from error


def choose_mask_id(
    blueprint: Blueprint,
    tokenizer: PreTrainedTokenizerBase | None,
    given: int | None,
    folder: Path,
) -> int:
    """The mask's id: as given, as the config says, as the tokenizer says, or the default.

    Raises:
        UnsupportedModel: config and tokenizer disagree, or nothing says.
    """
    if given is not None:
        return given
    from_tokenizer = None if tokenizer is None else tokenizer.mask_token_id
    from_config = blueprint.mask_id
    if None not in (from_config, from_tokenizer) and from_config != from_tokenizer:
        raise UnsupportedModel(
            f"{folder}: the config says that the mask is id {from_config}, the tokenizer says "
            f"{from_tokenizer}; give mask_id"
        )
    for found in (from_config, from_tokenizer, blueprint.default_mask_id):
        if found is not None:
            return int(found)
    raise UnsupportedModel(f"neither config nor tokenizer of {folder} name the mask; give mask_id")


def _name_mask(tokenizer: PreTrainedTokenizerBase, mask_id: int) -> None:
    """Give the tokenizer a mask token, if it has none, so that prompts can hold it."""
    if tokenizer.mask_token_id is not None:
        return
    token = tokenizer.convert_ids_to_tokens(mask_id)
    if token is not None:
        tokenizer.mask_token = token
    elif len(tokenizer) == mask_id:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})


def _load_with_transformers(
    source: str,
    device: str | torch.device,
    dtype: torch.dtype | None,
    mask_id: int | None,
    tokenizer: str | Path | None,
    allow_pickle: bool,
    trust_remote_code: bool,
) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if not allow_pickle:
        refuse_pickles(Path(source))
    try:
        own_code = PreTrainedConfig.get_config_dict(source)[0].get("auto_map") or {}
        if own_code and not trust_remote_code and not _known(source):
            raise UnsupportedModel(
                f"{source} comes with Python code of its own, which is run only with "
                f"trust_remote_code=True; without it boe loads {', '.join(FORMATS)} and "
                "transformers' own masked LMs"
            )
        remote = trust_remote_code and bool(own_code)
        config = AutoConfig.from_pretrained(source, trust_remote_code=remote)
        if not remote and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise UnsupportedModel(f"{source} ({config.model_type}) has no masked-LM class")
        loader: Any = _remote_class(own_code, source) if remote else AutoModelForMaskedLM
        model, report = loader.from_pretrained(
            source,
            dtype=dtype or "auto",
            output_loading_info=True,
            trust_remote_code=remote,
            use_safetensors=None if allow_pickle else True,
        )
        words = AutoTokenizer.from_pretrained(tokenizer or source, trust_remote_code=remote)
    except UnsupportedModel:
        raise
    except Exception as error:
        # Damaged files surface as many kinds of exception, which all mean this.
        reason = first_line(error)
        if "safetensors" in reason and not allow_pickle:
            reason += "; pickled weights are read only with allow_pickle=True"
        raise FileNotFoundError(f"cannot load {source}: {reason}") from error
    absent = sorted(report["missing_keys"])
    if absent:
        # transformers fills these in at random and only logs it.
        raise FileNotFoundError(
            f"cannot load {source}: {len(absent)} weights are missing, such as {absent[0]}"
        )
    mask_id = words.mask_token_id if mask_id is None else mask_id
    if mask_id is None:
        raise UnsupportedModel(f"the tokenizer of {source} has no mask token; give mask_id")
    special = set(words.all_special_ids) - {mask_id}
    unnamed = range(len(words), model.get_input_embeddings().weight.shape[0])
    suppressed = (*sorted(special), *unnamed)
    return LoadedModel(_denoiser(model.to(device), mask_id, suppressed, remote), words, source)


def _denoiser(
    model: PreTrainedModel, mask_id: int, suppressed_ids: tuple[int, ...], remote: bool
) -> AttentionDenoiser:
    from boe.denoisers.intercepted_model import InterceptedDenoiser
    from boe.denoisers.transformers_model import TransformersDenoiser

    try:
        return TransformersDenoiser(model, mask_id, suppressed_ids=suppressed_ids)
    except UnsupportedModel as refusal:
        if not remote:
            raise
        try:
            return InterceptedDenoiser(model, mask_id, suppressed_ids=suppressed_ids)
        except UnsupportedModel as second:
            raise UnsupportedModel(f"{refusal}; and {second}") from second


def _known(source: str) -> bool:
    """Whether transformers has this architecture without the checkpoint's code."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    return PreTrainedConfig.get_config_dict(source)[0].get("model_type") in CONFIG_MAPPING


def _remote_class(auto_map: dict[str, str], source: str) -> Any:
    import transformers

    for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel"):
        if name in auto_map:
            return getattr(transformers, name)
    raise UnsupportedModel(f"the auto_map of {source} names no model class")
