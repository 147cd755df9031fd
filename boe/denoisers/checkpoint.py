"""Checkpoint directories: what they hold, and streaming it into a model.

A directory holds ``config.json`` and weights: ``model.safetensors``, or shards with
``model.safetensors.index.json``. Headers are read when a checkpoint is opened, so that a
damaged file or a parameter that does not fit is found before gigabytes are read. Weights
are then read shard by shard (:mod:`boe.denoisers.weights`).

Pickled weights (``pytorch_model.bin``) can run code when they are loaded. They are refused
unless allowed, and even then loaded as bare tensors (``weights_only``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
_PICKLES = (PICKLE_INDEX_FILE, PICKLE_FILE)
_NAMED = 5

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class CheckpointError(FileNotFoundError):
    """A checkpoint is damaged or does not fit the model; the message says where and how."""


class PickledWeights(CheckpointError):
    """There are only pickled weights, and they were not allowed."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. ``dtype`` is ``None`` if it is not a floating one that we know."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * (4 if self.dtype is None else self.dtype.itemsize)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint directory.

    Attributes:
        config: the content of ``config.json``.
        tensors: what is stored, by name; in the order of the files.
        pickled: the weights are pickled.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    pickled: bool = False

    @classmethod
    def open(cls, folder: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
        """Read the config and the headers of all weight files.

        Raises:
            CheckpointError: a file is absent or damaged, or the index and the shards
                disagree. PickledWeights: there is nothing else, and ``allow_pickle`` is off.
        """
        folder = Path(folder)
        config = read_config(folder)
        if (folder / INDEX_FILE).exists() or (folder / WEIGHTS_FILE).exists():
            return cls(folder, config, _safetensors_headers(folder))
        if not allow_pickle:
            refuse_pickles(folder)
        if not any((folder / name).exists() for name in _PICKLES):
            raise CheckpointError(
                f"cannot load {folder}: it holds neither {WEIGHTS_FILE} nor {INDEX_FILE}"
            )
        return cls(folder, config, _pickle_headers(folder), pickled=True)

    @property
    def dtype(self) -> torch.dtype:
        """The one floating dtype of the weights.

        Raises:
            CheckpointError: there are several, or none.
        """
        found = {t.dtype for t in self.tensors.values() if t.dtype is not None and len(t.shape) > 1}
        if len(found) != 1:
            names = ", ".join(sorted(str(d).removeprefix("torch.") for d in found)) or "none"
            raise CheckpointError(
                f"cannot load {self.folder}: its weights come in several floating dtypes or in "
                f"none ({names}); give dtype"
            )
        return found.pop()

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def stream(
        self,
        device: str | torch.device = "cpu",
        parts: Mapping[str, tuple[slice, ...]] | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, file by file; no more than one is held at a time.

        Args:
            parts: indices of what is read of some tensors; the rest of them is not.

        Raises:
            CheckpointError: a file can no longer be read, or parts of pickled weights are
                asked for.
        """
        if self.pickled and parts:
            raise PickledWeights(
                f"cannot load {self.folder} in parts: its weights are pickled; convert it once "
                "with `boe convert --allow-pickle`"
            )
        for file in self.files:
            names = [name for name, tensor in self.tensors.items() if tensor.file == file]
            if self.pickled:
                yield from _read_pickle(file, names, device)
            else:
                yield from _read_safetensors(file, names, device, parts or {})


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        CheckpointError: it is absent or not a JSON object.
    """
    if not (folder / CONFIG_FILE).exists():
        raise CheckpointError(f"{folder} holds no {CONFIG_FILE}: not a transformers checkpoint")
    return _read_json(folder / CONFIG_FILE)


def refuse_pickles(folder: Path) -> None:
    """Raise :class:`PickledWeights` if the only weights in ``folder`` are pickled."""
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles and not any((folder / name).exists() for name in (INDEX_FILE, WEIGHTS_FILE)):
        raise PickledWeights(
            f"cannot load {folder}: its weights are pickled ({pickles[0]}), and a pickle can run "
            "code when it is loaded; if you trust it, convert it once with `boe convert "
            "--allow-pickle` or pass allow_pickle=True"
        )


def _safetensors_headers(folder: Path) -> dict[str, StoredTensor]:
    if not (folder / INDEX_FILE).exists():
        return _header(folder / WEIGHTS_FILE)
    promised = _index(folder / INDEX_FILE)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(promised.values())):
        for name, tensor in _header(_inside(folder, shard)).items():
            # Of a tensor that several shards hold the index says which one counts.
            if name not in found or promised.get(name) == shard:
                found[name] = tensor
    absent = [name for name in promised if name not in found]
    if absent:
        raise CheckpointError(
            f"cannot load {folder}: {listed(f'{INDEX_FILE} names tensors no shard holds', absent)}"
        )
    return found


def _header(file: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    tensors = {}
    with _reading(file), safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 (not a dict)
            part = stored.get_slice(name)
            tensors[name] = StoredTensor(
                file, tuple(part.get_shape()), _DTYPES.get(part.get_dtype())
            )
    return tensors


def _read_safetensors(
    file: Path,
    names: list[str],
    device: str | torch.device,
    parts: Mapping[str, tuple[slice, ...]],
) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with _reading(file), safe_open(file, framework="pt", device=str(device)) as stored:
        for name in names:
            if name in parts:
                tensor = stored.get_slice(name)[parts[name]]
            else:
                tensor = stored.get_tensor(name)
            # On the CPU it may be a window on the file, which can change or vanish.
            if tensor.device.type == "cpu":
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            yield name, tensor.contiguous()


def _pickle_headers(folder: Path) -> dict[str, StoredTensor]:
    if (folder / PICKLE_INDEX_FILE).exists():
        promised = _index(folder / PICKLE_INDEX_FILE)
        files = [_inside(folder, shard) for shard in sorted(set(promised.values()))]
    else:
        files = [folder / PICKLE_FILE]
    return {
        name: StoredTensor(
            file, tuple(tensor.shape), tensor.dtype if tensor.dtype.is_floating_point else None
        )
        for file in files
        for name, tensor in _unpickle(file).items()
    }


def _read_pickle(
    file: Path, names: list[str], device: str | torch.device
) -> Iterator[tuple[str, Tensor]]:
    state = _unpickle(file)
    for name in names:
        yield name, state.pop(name).clone().to(device)


def _unpickle(file: Path) -> dict[str, Tensor]:
    with _reading(file):
        # The old format cannot be mapped into memory.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"cannot load {file}: it is not a mapping of names to tensors")
    return state


def _index(file: Path) -> dict[str, str]:
    promised = _read_json(file).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(f"cannot load {file}: it has no weight_map")
    return promised


def _inside(folder: Path, name: str) -> Path:
    file = folder / name
    if Path(name).name != name:
        raise CheckpointError(f"cannot load {folder}: its index leads outside, to {name!r}")
    if not file.exists():
        raise CheckpointError(f"cannot load {folder}: the shard {name} is absent")
    return file


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot load {file}: it is not a JSON object")
    return content


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into one error that names the file."""
    if not file.exists():
        raise CheckpointError(f"cannot load {file}: it is absent")
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot load {file}: it is damaged or incomplete ({first_line(error)})"
        ) from error


def first_line(error: Exception) -> str:
    """What ``error`` says, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def listed(what: str, names: list[str]) -> str:
    """``what``: the first few of ``names``, and how many more there are."""
    rest = len(names) - _NAMED
    return f"{what}: {', '.join(names[:_NAMED])}" + (f" and {rest} more" if rest > 0 else "")
