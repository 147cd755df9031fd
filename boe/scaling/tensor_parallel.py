"""One model over several GPUs: tensor parallelism by transformers' plan and DTensor.

Every rank holds a part of each layer's heads and of its MLP, and the whole of embeddings
and head. All ranks run the same decode: what a step reads (logits, gradients, attention
summed over heads) is the same on all, so that each takes the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from boe.denoisers import UnsupportedModel
from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.transformers_model import TransformersDenoiser
from boe_kernels.sharding import register_sharding_rules

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Weights that every rank keeps whole; the rest of the style is about training.
_WHOLE = ("replicated_with_grad_allreduce",)


class RankOutOfMemory(RuntimeError):
    """A rank ran out of memory in the midst of a step that it has with others."""


def parallelise(denoiser: AttentionDenoiser, mesh: DeviceMesh) -> None:
    """Share a denoiser's layers out over the ranks of ``mesh``, in place.

    Every rank calls this with the same weights, and from then on runs the same calls at the
    same time. A model too large for one GPU is loaded on the CPU: its layers move to
    the mesh's devices one by one, the rest of it afterwards.

    Args:
        denoiser: of a transformers model whose config has a plan (Llama, and with it LLaDA;
            Qwen2, and with it Dream; …), loaded with :func:`boe.load_model`.
        mesh: of one dimension.

    A rank that runs out of memory ends with :class:`RankOutOfMemory`: batches are not halved.

    Raises:
        UnsupportedModel: a model without a plan, or with one of another kind.
        ValueError: a mesh of several dimensions, or heads that it does not divide.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}")
    if not isinstance(denoiser, TransformersDenoiser):
        raise UnsupportedModel(
            f"{denoiser.name} is no transformers model: tensor parallelism needs its plan"
        )
    from torch.distributed.tensor.parallel import parallelize_module

    base = denoiser.model.base_model
    styles = _styles(denoiser.name, base)
    _check_heads(denoiser.model.config, mesh.size())
    register_sharding_rules()
    # Every rank has all the weights already: none are sent.
    parallelize_module(base, mesh, styles, src_data_rank=None)
    denoiser.model.to(_device_of(mesh))
    denoiser.sum_over_ranks = _sum_over(mesh)
    for name in ("predict", "entropy_gradient", "bridge_scores"):
        setattr(denoiser, name, _ending_together(getattr(denoiser, name)))


def _styles(name: str, base: Any) -> dict[str, Any]:
    """PyTorch's form of transformers' plan."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    known = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan: dict[str, str] = getattr(base.config, "base_model_tp_plan", None) or {}
    if not plan:
        raise UnsupportedModel(f"transformers has no plan to share {name} out over several GPUs")
    unknown = {style for style in plan.values() if style not in (*known, *_WHOLE)}
    if unknown:
        raise UnsupportedModel(
            f"transformers' plan for {name} has parts of a kind that is not supported: "
            f"{', '.join(sorted(unknown))}"
        )
    return {module: known[style]() for module, style in plan.items() if style in known}


def _check_heads(config: Any, ranks: int) -> None:
    for name in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, name, None)
        if count is not None and count % ranks:
            raise ValueError(f"the model's {name}, {count}, must be a multiple of {ranks} ranks")


def _device_of(mesh: DeviceMesh) -> str:
    if mesh.device_type == "cpu":
        return "cpu"
    return f"{mesh.device_type}:{torch.accelerator.current_device_index()}"


def _ending_together(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, whose lack of memory is not taken for one that all ranks have."""

    @wraps(call)
    def run(*given: Any, **options: Any) -> Any:
        try:
            return call(*given, **options)
        except torch.OutOfMemoryError as error:
            # The loop would go on in halves, and the other ranks with the whole batch.
            raise RankOutOfMemory(
                f"rank {dist.get_rank()} ran out of memory; what the ranks decode together cannot "
                f"be halved by one of them: take a smaller batch ({error})"
            ) from error

    return run


def _sum_over(mesh: DeviceMesh) -> Any:
    group = mesh.get_group()

    def total(part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    return total
