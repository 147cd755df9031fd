"""Rewriting a published checkpoint: safetensors, names of the classes that run it.

LLaDA becomes a Llama checkpoint and Dream a Qwen2 one, both marked as bidirectional. MDLM
and SEDD keep their names, and so do LLaDA2 and SDAR: transformers has their networks, but
not their block-causal attention. Pickled weights become safetensors. Tensors are read one at a
time and written in shards, so that memory is needed for one shard only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    CheckpointError,
)
from boe.denoisers.published import FORMATS, blueprint_of
from boe.files import prepare_directory

SHARD_BYTES = 4 << 30
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    format: str
    tensors: int
    bytes: int
    files: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_pickle: bool = False,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Rewrite the checkpoint in ``source`` as a new directory ``output``.

    Weights are written first and ``config.json`` last, so that a conversion which was
    interrupted leaves nothing that could be loaded.

    Args:
        source: a directory with a published checkpoint.
        output: a directory that does not exist or is empty.
        dtype: of the written weights; the checkpoint's own by default.
        shard_bytes: the largest shard, unless one tensor is larger.
        allow_pickle: accept weights that are stored as pickles.
        on_tensor: called with the tensors written and to write.

    Raises:
        CheckpointError: the weights do not fit the model or cannot be read.
        UnsupportedModel: it is none of the published formats.
        FileExistsError: ``output`` holds something already. OSError: nothing can be written there.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    source, output = Path(source), Path(output)
    checkpoint = Checkpoint.open(source, allow_pickle=allow_pickle)
    blueprint = blueprint_of(checkpoint.config)
    if blueprint is None:
        raise UnsupportedModel(f"{source} is none of the formats {', '.join(FORMATS)}")
    report = blueprint.keys.compare(checkpoint, blueprint.build())
    if not report.fits:
        raise CheckpointError(f"cannot convert {source}: weights do not fit: {report}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"cannot write {output}: it holds something already")
    prepare_directory(output)
    prefix_kept = blueprint.native_config is checkpoint.config
    total = len(checkpoint.tensors)

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for done, (name, tensor) in enumerate(checkpoint.stream()):
            if name in blueprint.keys:
                cast = dtype is not None and tensor.is_floating_point() and tensor.dim() > 0
                keep = name in blueprint.keys.optional or not cast
                place = name if prefix_kept else blueprint.keys.names[name]
                yield place, tensor if keep else tensor.to(dtype)
            on_tensor(done + 1, total)

    weight_map, size = _write_shards(renamed(), output, shard_bytes)
    files = tuple(dict.fromkeys(weight_map.values()))
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(output / INDEX_FILE, index)
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, output / name)
    written = dict(blueprint.native_config)
    # Its code would be looked for beside it.
    written.pop("auto_map", None)
    written["dtype"] = str(dtype or checkpoint.dtype).removeprefix("torch.")
    _write_json(output / CONFIG_FILE, written)
    return Converted(blueprint.format, len(weight_map), size, files)


def _write_shards(
    tensors: Iterator[tuple[str, Tensor]], output: Path, limit: int
) -> tuple[dict[str, str], int]:
    """File by tensor name, and bytes in all. Shards get their final names at the end."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal held, size
        part = output / f"part-{len(shards):05d}.partial"
        save_file(held, part, metadata={"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
            flush()
        held[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    if held:
        flush()
    weight_map: dict[str, str] = {}
    for k, names in enumerate(shards):
        file = f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        file = WEIGHTS_FILE if len(shards) == 1 else file
        (output / f"part-{k:05d}.partial").replace(output / file)
        weight_map |= dict.fromkeys(names, file)
    return weight_map, total


def _write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
