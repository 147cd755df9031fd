"""Models that transformers builds from a checkpoint: its own masked LMs, and those that come
with Python code of their own, which is run only when that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import (
    Checkpoint,
    CheckpointError,
    PickledWeights,
    first_line,
    refuse_pickles,
)
from boe.denoisers.published import FORMATS
from boe.denoisers.tensor_parallel import act_together, check_layout, device_of, lay_out
from boe.denoisers.weights import KeyMap, load_weights

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_with_transformers(
    source: str,
    revision: str | None,
    device: str | torch.device,
    dtype: torch.dtype | None,
    mask_id: int | None,
    tokenizer: str | Path | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    mesh: DeviceMesh | None,
) -> tuple[AttentionDenoiser, PreTrainedTokenizerBase]:
    """The denoiser and the tokenizer of a checkpoint that is none of the published formats.

    Arguments and errors are those of :func:`boe.load_model`; ``device`` counts only where there
    is no mesh.
    """
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoModelForMaskedLM,
        AutoTokenizer,
        PreTrainedConfig,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if not allow_pickle:
        refuse_pickles(Path(source))
    with _loading(source, revision, allow_pickle):
        content = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
        own_code = content.get("auto_map") or {}
        # Without the checkpoint's code, where transformers has the architecture itself.
        known = content.get("model_type") in CONFIG_MAPPING
        if own_code and not trust_remote_code and not known:
            raise UnsupportedModel(
                f"{source} comes with Python code of its own, which is run only with "
                f"trust_remote_code=True; without it boe loads {', '.join(FORMATS)} and "
                "transformers' own masked LMs"
            )
        remote = trust_remote_code and bool(own_code)
        if remote and mesh is not None:
            raise UnsupportedModel(
                f"{source} comes with Python code of its own, which does not go with a mesh: "
                "only transformers' own plans say how layers are shared out"
            )
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=remote)
        if not remote and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise UnsupportedModel(f"{source} ({config.model_type}) has no masked-LM class")
    if mesh is not None:
        check_layout(source, config, mesh)
    absent: list[str] = []
    with _loading(source, revision, allow_pickle):
        if mesh is None:
            loader: Any = _remote_class(own_code, source) if remote else AutoModelForMaskedLM
            model, report = loader.from_pretrained(
                source,
                revision=revision,
                dtype=dtype or "auto",
                output_loading_info=True,
                trust_remote_code=remote,
                use_safetensors=None if allow_pickle else True,
            )
            absent = sorted(report["missing_keys"])
        else:
            model = _read_in_parts(_local_folder(source, revision), config, dtype, mesh)
        words = AutoTokenizer.from_pretrained(
            tokenizer or source,
            revision=revision if tokenizer is None else None,
            trust_remote_code=remote,
        )
    if absent:
        # transformers fills these in at random and only logs it.
        raise FileNotFoundError(
            f"cannot load {source}: {len(absent)} weights are missing, such as {absent[0]}"
        )
    mask_id = words.mask_token_id if mask_id is None else mask_id
    if mask_id is None:
        raise UnsupportedModel(f"the tokenizer of {source} has no mask token; give mask_id")
    special = set(words.all_special_ids) - {mask_id}
    named = set(words.get_vocab().values())
    rows = model.get_input_embeddings().weight.shape[0]
    unnamed = [index for index in range(rows) if index not in named]
    suppressed = (*sorted(special), *unnamed)
    if mesh is not None:
        return act_together(_denoiser(model, mask_id, suppressed, remote), mesh), words
    return _denoiser(model.to(device), mask_id, suppressed, remote), words


def _read_in_parts(folder: Path, config: Any, dtype: torch.dtype | None, mesh: DeviceMesh) -> Any:
    """transformers' own masked LM, of whose layers this rank reads its part.

    Under the names that ``save_pretrained`` gives them: what transformers renames while it
    loads is not renamed here, and reported as missing and unexpected.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    if checkpoint.pickled:
        raise PickledWeights(
            f"cannot load {folder} in parts: its weights are pickled; save it once with "
            "transformers' save_pretrained, which writes safetensors"
        )
    with torch.device("meta"):
        model = MODEL_FOR_MASKED_LM_MAPPING[type(config)](config)
    stored = set(model.state_dict())
    # What is computed from the config, as rotary angles are, is no part of a checkpoint and
    # cannot be left without memory.
    for name, module in list(model.named_modules()):
        if any(buffer not in stored for buffer, _ in module.named_buffers(name, recurse=False)):
            model.set_submodule(name, type(module)(config))
    lay_out(model, mesh)
    # A parameter that is tied is there once.
    names = [name for name, _ in model.named_parameters()]
    names += [name for name, _ in model.named_buffers() if name in stored]
    keys = KeyMap({name: name for name in names}, ignored=frozenset(stored.difference(names)))
    load_weights(checkpoint, model, keys, device=device_of(mesh), dtype=dtype)
    return model


def _local_folder(source: str, revision: str | None) -> Path:
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))


@contextmanager
def _loading(source: str, revision: str | None, allow_pickle: bool) -> Iterator[None]:
    """Turns what transformers raises about ``source`` into one error that names it."""
    try:
        yield
    except (UnsupportedModel, CheckpointError):
        raise
    except Exception as error:
        # Damaged files surface as many kinds of exception, which all mean this.
        reason = first_line(error)
        if "safetensors" in reason and not allow_pickle:
            reason += "; pickled weights are read only with allow_pickle=True"
        raise FileNotFoundError(f"cannot load {source}{at(revision)}: {reason}") from error


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


def at(revision: str | None) -> str:
    """Names a revision behind what it is of."""
    return "" if revision is None else f" at {revision}"


def _remote_class(auto_map: dict[str, str], source: str) -> Any:
    import transformers

    for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel"):
        if name in auto_map:
            return getattr(transformers, name)
    raise UnsupportedModel(f"the auto_map of {source} names no model class")
