"""Ranks of an evaluation that torchrun started: lm-eval gives each its share of requests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among the processes.

    Attributes:
        rank, world: its number, and how many there are.
        local: its number on its host, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun's variables say, joined by gloo: only small results are exchanged."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    def device(self, name: str | None) -> str:
        """The device of this rank's model, one GPU each.

        Raises:
            ValueError: a GPU is asked for, and there is none for this rank.
        """
        count = torch.cuda.device_count()
        name = device_kind(name)
        if not name.startswith("cuda"):
            return name
        number = int(name.partition(":")[2] or self.local)
        if number >= count:
            raise ValueError(
                f"device {name!r} of rank {self.rank} would be GPU {number}; torch sees {count}"
            )
        if self.world > 1 and ":" in name:
            raise ValueError(f"device must name no GPU where there are several ranks, got {name!r}")
        return f"cuda:{number}"

    def all_gather(self, tensor: Tensor) -> Tensor:
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts) if tensor.dim() == 0 else torch.cat(parts)

    def gather_object(self, thing: Any, dst: int = 0) -> list[Any] | None:
        if self.world == 1:
            return [thing]
        gathered: list[Any] | None = [None] * self.world if self.rank == dst else None
        dist.gather_object(thing, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def device_kind(name: str | None) -> str:
    """``name``, by default that of a GPU if there is one."""
    if name is not None:
        return name
    return "cuda" if torch.cuda.device_count() else "cpu"
