"""What identifies a model: a digest of its class, facts and weights."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import torch
from torch import Tensor, nn

from boe.denoisers.base import Denoiser

_DIGEST_BYTES = 16


def fingerprint(denoiser: Denoiser) -> str:
    """A hexadecimal digest that changes with the model's class, facts, dtype or any weight.

    Weights are the state of the modules among the denoiser's attributes, and its tensors that
    are public. Those that are shared out over several processes are gathered one by one: all
    of them make this call, and get the digest of the whole model.

    Raises:
        TypeError: it has neither, so that nothing tells it from another of its class.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    kind = type(denoiser)
    digest.update(f"{kind.__module__}.{kind.__qualname__}\n{asdict(denoiser.facts)}\n".encode())
    found = False
    for name, value in sorted(vars(denoiser).items()):
        if isinstance(value, nn.Module):
            parts = {
                f"{name}.{key}": part
                for key, part in value.state_dict().items()
                if isinstance(part, Tensor)
            }
        elif isinstance(value, Tensor) and not name.startswith("_"):
            parts = {name: value}
        else:
            continue
        found = True
        for key, part in parts.items():
            digest.update(f"{key} {part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(_bytes(part))
    if not found:
        raise TypeError(f"{kind.__name__} has no module or tensor to take a fingerprint of")
    return digest.hexdigest()


def short_digest(ids: Tensor) -> str:
    """A digest of an item's canvas."""
    return hashlib.blake2b(_bytes(ids), digest_size=6).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    if (gather := getattr(tensor, "full_tensor", None)) is not None:
        tensor = gather()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
