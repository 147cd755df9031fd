"""From the names of a checkpoint to the parameters of a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from boe.denoisers.base import UnsupportedModel
from boe.denoisers.checkpoint import Checkpoint, CheckpointError, listed
from boe.denoisers.tensor_parallel import filled, own_part


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a checkpoint compare with the parameters of a model.

    Attributes:
        missing: names that the model needs and the checkpoint lacks.
        unexpected: names that the model has no place for.
        misshaped: (name, shape in the checkpoint, shape in the model).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = [
            listed(f"{len(names)} {what}", list(names))
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        if self.misshaped:
            shapes = [
                f"{name} is {list(got)}, not {list(due)}" for name, got, due in self.misshaped
            ]
            parts.append(listed(f"{len(shapes)} of another shape", shapes))
        return "; ".join(parts) or "all weights fit"


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a stored tensor, and where they go: ``place[index]``."""

    place: str
    index: tuple[int | slice, ...] = (slice(None),)
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Pieces:
    """A stored tensor of ``shape`` that is part of a parameter, or holds several."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class KeyMap:
    """Names in the checkpoint and the parameters that they become.

    Attributes:
        names: parameter of the model by name in the checkpoint.
        pieces: tensors that are cut up or put together (fused projections, experts), by
            name in the checkpoint. Together they must fill their parameters.
        optional: names in the checkpoint that may be absent, because the model computes
            them itself.
        ignored: names in the checkpoint that carry nothing the model needs.
    """

    names: Mapping[str, str]
    pieces: Mapping[str, Pieces] = field(default_factory=dict)
    optional: frozenset[str] = field(default_factory=frozenset)
    ignored: frozenset[str] = field(default_factory=frozenset)

    def compare(self, checkpoint: Checkpoint, model: nn.Module) -> KeyReport:
        """What does not fit, found from headers alone."""
        stored = checkpoint.tensors
        sizes = {name: tuple(t.shape) for name, t in _places(model).items()}
        shapes = {name: sizes[place] for name, place in self.names.items()}
        shapes |= {name: parts.shape for name, parts in self.pieces.items()}
        needed = [name for name in shapes if name not in self.optional]
        return KeyReport(
            missing=tuple(name for name in needed if name not in stored),
            unexpected=tuple(
                name for name in stored if name not in shapes and name not in self.ignored
            ),
            misshaped=tuple(
                (name, stored[name].shape, due)
                for name, due in shapes.items()
                if name in stored and stored[name].shape != due
            ),
        )

    def __contains__(self, name: object) -> bool:
        """Whether the tensor stored under ``name`` becomes a parameter or part of one."""
        return name in self.names or name in self.pieces

    def __iter__(self) -> Iterator[str]:
        return chain(self.names, self.pieces)

    def __len__(self) -> int:
        return len(self.names) + len(self.pieces)


def load_weights(
    checkpoint: Checkpoint,
    model: nn.Module,
    keys: KeyMap,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Fill ``model``, built without memory (on the meta device), from ``checkpoint``.

    A parameter comes into being when its tensor is read, on ``device`` and in ``dtype``
    (the checkpoint's own by default), so that there are never two copies of the model. Of a
    parameter that is laid out over ranks (:func:`boe.denoisers.tensor_parallel.lay_out`) this
    rank's part is read and no more.

    Raises:
        CheckpointError: weights are missing, unexpected, of another shape or unreadable, or
            they are pickled and should be read in part.
        UnsupportedModel: a parameter that is laid out over ranks is stored in pieces.
    """
    report = keys.compare(checkpoint, model)
    if not report.fits:
        raise CheckpointError(f"cannot load {checkpoint.folder}: weights do not fit: {report}")
    parts = _parts(model, keys)
    dtype = checkpoint.dtype if dtype is None else dtype
    for name, tensor in checkpoint.stream(device, parts):
        if name in keys.pieces:
            for piece in keys.pieces[name].pieces:
                part = _room_for(model, piece.place, device, dtype)[piece.index]
                part.copy_(tensor[piece.start : piece.stop])
            continue
        place = keys.names.get(name)
        if place is None:
            continue
        owner, leaf = _owner(model, place)
        if leaf in owner._buffers:
            owner.register_buffer(leaf, tensor)
        else:
            tensor = tensor.to(dtype)
            if name in parts:
                tensor = filled(owner.get_parameter(leaf), tensor)
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    tie: Callable[[], None] | None = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    hollow = [name for name, tensor in _places(model).items() if tensor.is_meta]
    if hollow:
        raise CheckpointError(
            f"cannot load {checkpoint.folder}: {listed('no weights for', hollow)}"
        )
    model.to(device)


def _parts(model: nn.Module, keys: KeyMap) -> dict[str, tuple[slice, ...]]:
    """What this rank reads of the stored tensors that become parameters laid out over ranks."""
    spread = {
        place: part
        for place, parameter in model.named_parameters()
        if (part := own_part(parameter)) is not None
    }
    cut = [p.place for pieces in keys.pieces.values() for p in pieces.pieces if p.place in spread]
    if cut:
        raise UnsupportedModel(f"{cut[0]} is stored in pieces: a rank cannot read a part of it")
    return {name: spread[place] for name, place in keys.names.items() if place in spread}


def _room_for(
    model: nn.Module, place: str, device: str | torch.device, dtype: torch.dtype
) -> Tensor:
    """The parameter ``place``, with memory."""
    owner, leaf = _owner(model, place)
    parameter = owner.get_parameter(leaf)
    if parameter.is_meta:
        memory = torch.empty(parameter.shape, dtype=dtype, device=device)
        parameter = nn.Parameter(memory, requires_grad=False)
        setattr(owner, leaf, parameter)
    return parameter


def _owner(model: nn.Module, place: str) -> tuple[nn.Module, str]:
    owner, _, leaf = place.rpartition(".")
    return model.get_submodule(owner), leaf


def _places(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
