"""A streamer that keeps what it is given."""

from __future__ import annotations

from torch import Tensor


class Streamer:
    """Transformers' protocol for streamers of diffusion models."""

    def __init__(self) -> None:
        self.final: list[int] = []
        self.drafts: list[list[int]] = []
        self.done: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.final += value.flatten().tolist()

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value.tolist())
        self.done.append(len(self.final))

    def end(self) -> None:
        self.ended = True
