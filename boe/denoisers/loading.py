"""Loading a denoiser and its tokenizer from a checkpoint.

Three kinds of checkpoint are told apart by ``config.json``: published masked diffusion
models that we build ourselves (:mod:`boe.denoisers.published`), transformers' own masked
LMs, and models that come with code of their own, which is run only when that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boe.denoisers.attention_denoiser import AttentionDenoiser, check_block_length
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint, first_line, read_config
from boe.denoisers.placement import require_device
from boe.denoisers.published import Blueprint, blueprint_of
from boe.denoisers.tensor_parallel import act_together, device_of, lay_out
from boe.denoisers.transformers_loading import at, load_with_transformers
from boe.denoisers.weights import load_weights

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
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
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    mask_id: int | None = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    block_length: int | None = None,
    mesh: DeviceMesh | None = None,
) -> LoadedModel:
    """Load a masked language model as a denoiser.

    With ``mesh`` the model is shared out over several processes: each of them makes this
    call, and from then on the same calls of the denoiser at the same time. Each reads its own
    part of every matrix of the layers, straight to its device, and the rest (embeddings,
    head, norms) whole. A rank that runs out of memory later on ends with
    :class:`boe.denoisers.tensor_parallel.RankOutOfMemory`: batches are not halved.

    Args:
        source: a checkpoint directory, or a model id of the Hub.
        device: where the model is put, by default the CPU; not with ``mesh``, which says it.
        dtype: of the weights; the checkpoint's own by default.
        revision: branch, tag or commit of a Hub id; not of ``tokenizer``. Only a commit is sure
            to stay the same.
        mask_id: id of the mask token, where neither config nor tokenizer say.
        tokenizer: directory or Hub id of the tokenizer, where the checkpoint has none
            (MDLM and SEDD use "gpt2").
        allow_pickle: accept weights that are stored as pickles.
        trust_remote_code: run the Python code that the checkpoint comes with, if it is
            no model that we build ourselves.
        block_length: of a block-causal model that was trained with other blocks than its
            config or family says.
        mesh: of one dimension: the ranks that the layers are shared out over.

    Raises:
        FileNotFoundError: nothing can be loaded from ``source``; the message says why.
        UnsupportedModel: no masked LM, no mask token, or an architecture that cannot be
            used (see :class:`boe.denoisers.transformers_model.TransformersDenoiser`), or not
            with a mesh: no plan, or one of another kind, remote code, a quantised model.
        ValueError: a device that torch does not have, a revision of a directory, a mesh and a
            device, a mesh of several dimensions, or one that does not divide the model's heads
            or MLP columns.
        TypeError: ``dtype`` is no floating dtype of torch.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype or None, got {dtype!r}")
    if mesh is not None and device is not None:
        raise ValueError(f"device is the mesh's where a mesh is given, got {str(device)!r}")
    device = require_device("cpu" if device is None else device)
    for place in (source, tokenizer):
        _require_directory(place)
    if revision is not None and Path(source).exists():
        raise ValueError(f"revision is for ids of the Hub, but {source} is a directory here")
    folder, blueprint = _published(str(source), revision, allow_pickle)
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
            mesh=mesh,
        )
        _name_mask(words, mask_id)
        return LoadedModel(denoiser, words, str(source))
    denoiser, words = load_with_transformers(
        str(source),
        *(revision, device, dtype, mask_id, tokenizer, allow_pickle, trust_remote_code, mesh),
    )
    return LoadedModel(denoiser, words, str(source))


def build_published(
    checkpoint: Checkpoint,
    blueprint: Blueprint,
    mask_id: int,
    suppressed_ids: tuple[int, ...] = (),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mesh: DeviceMesh | None = None,
) -> AttentionDenoiser:
    """The denoiser that ``blueprint`` describes, with the weights of ``checkpoint``.

    Args:
        device: where it is put, unless ``mesh`` says it.
        mesh: the ranks that its layers are shared out over.

    Raises:
        CheckpointError: the weights do not fit or cannot be read, or, with a mesh, are pickled.
        UnsupportedModel, ValueError: it cannot be shared out
            (:func:`boe.denoisers.tensor_parallel.check_layout`).
    """
    model = blueprint.build()
    if mesh is not None:
        lay_out(model, mesh)
        device = device_of(mesh)
    load_weights(checkpoint, model, blueprint.keys, device=device, dtype=dtype)
    blocks = {} if blueprint.block_length is None else {"block_length": blueprint.block_length}
    denoiser = blueprint.denoiser(model, mask_id, suppressed_ids, **blocks)
    return denoiser if mesh is None else act_together(denoiser, mesh)


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
        if own and not any((Path(folder) / name).exists() for name in _TOKENIZER_FILES):
            raise FileNotFoundError(
                f"{place} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}); give tokenizer, a "
                "directory or Hub id that has the model's"
            ) from error
        raise FileNotFoundError(
            f"cannot load the tokenizer of {place}: {first_line(error)}"
        ) from error


def unnamed_ids(blueprint: Blueprint, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Rows of the embedding table that no token has: padding up to a round number."""
    named = set(tokenizer.get_vocab().values())
    return tuple(index for index in range(blueprint.vocab_size) if index not in named)


def _require_directory(place: str | Path | None) -> None:
    """Raise where ``place`` is a file, or is not there and can be no id of the Hub, which would
    not say so."""
    named = str(place or "")
    if Path(named).is_file():
        raise FileNotFoundError(f"cannot load {place}: it is a file; give the directory it is in")
    is_path = named.startswith(("/", ".", "~")) or named.count("/") > 1
    if is_path and not Path(named).exists():
        raise FileNotFoundError(f"cannot load {place}: there is no such directory")


def _published(
    source: str, revision: str | None, allow_pickle: bool
) -> tuple[Path, Blueprint | None]:
    """The local folder, and the blueprint if the checkpoint is one that we build."""
    folder = Path(source)
    if folder.exists():
        return folder, blueprint_of(read_config(folder))
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        config = Path(hf_hub_download(source, "config.json", revision=revision))
        blueprint = blueprint_of(read_config(config.parent))
        if blueprint is None:
            return folder, None
        patterns = [*_PUBLISHED_FILES, *(["*.bin"] if allow_pickle else [])]
        fetched = snapshot_download(source, revision=revision, allow_patterns=patterns)
        return Path(fetched), blueprint
    except UnsupportedModel:
        raise
    except Exception as error:
        raise FileNotFoundError(
            f"cannot load {source}{at(revision)}, which is no directory here: {first_line(error)}"
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
