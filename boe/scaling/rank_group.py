"""The processes of one torchrun that run one model together.

The first of them leads: it alone reads prompts, writes results and decides what is done
next. The others are told, and run the same calls.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Followers wait for the leader's word while it scores or stores: no sign that it is gone.
_PATIENCE = timedelta(days=30)
_JOINED: list[RankGroup] = []


@dataclass(frozen=True)
class RankGroup:
    """This process among those that run one model.

    Attributes:
        rank: its number; 0 leads.
        mesh: all of them, in one dimension.
        words: the process group through which the leader speaks.
    """

    rank: int
    mesh: DeviceMesh
    words: Any

    @classmethod
    def join(cls, count: int, device: str) -> RankGroup:
        """The group of ``count`` processes that torchrun started, which are joined once.

        Args:
            device: "cpu", or "cuda": one GPU per process, by its number on its host.

        Raises:
            ValueError: torchrun started another number, or none; a GPU is named or missing.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        from torch.distributed.device_mesh import init_device_mesh

        if count < 2:
            raise ValueError(f"tensor_parallel must be at least 2, got {count}")
        if world != count:
            raise ValueError(
                f"tensor_parallel = {count} needs {count} processes, and there are {world}: start "
                f"it by torchrun --nproc-per-node {count} -m …"
            )
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, one GPU per process, got {device!r}")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "cuda":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local} of this host has no GPU: torch sees "
                    f"{torch.cuda.device_count()}"
                )
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
        mesh = init_device_mesh(device, (count,))
        group = cls(dist.get_rank(), mesh, dist.new_group(backend="gloo", timeout=_PATIENCE))
        _JOINED.append(group)
        return group

    @classmethod
    def joined(cls) -> RankGroup:
        """The group that this process has joined, as ``torch.distributed`` has one of its own.

        Raises:
            RuntimeError: it has joined none.
        """
        if not _JOINED:
            raise RuntimeError("this process has joined no group: call RankGroup.join")
        return _JOINED[-1]

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, thing: Any = None) -> Any:
        """The leader's ``thing``, on all ranks; tensors in it must be on the CPU."""
        said = [thing]
        dist.broadcast_object_list(said, src=0, group=self.words)
        return said[0]

    def leave(self) -> None:
        """End the group: the last call of every process, if nothing has failed."""
        _JOINED.clear()
        dist.destroy_process_group()
