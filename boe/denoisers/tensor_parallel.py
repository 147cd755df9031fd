"""One model over several GPUs: tensor parallelism by transformers' plan and DTensor.

Every rank holds a part of each layer's heads and of its MLP, and the whole of embeddings
and head. All ranks run the same decode: what a step reads (logits, gradients, attention
summed over heads) is the same on all, so that each takes the same decisions.

A model is laid out before it has weights (:func:`lay_out`), and each rank then reads its
part of them (:func:`boe.load_model` with a mesh); or it is shared out while every rank holds
all of it (:func:`parallelise`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from boe.denoisers.attention_denoiser import AttentionDenoiser
from boe.denoisers.base import UnsupportedModel
from boe.denoisers.transformers_model import TransformersDenoiser
from boe_kernels.sharding import register_sharding_rules

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Weights that every rank keeps whole: where the rest of the style is about training, and
# embeddings, of which a step reads the whole table. transformers 5.17 adds the latter to the
# plan of a model whose head is tied.
_WHOLE = ("replicated_with_grad_allreduce", "embedding_rowwise")
# The widths that a plan splits: heads of the attention, columns of the MLP.
_SPLIT = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
# What runs the network, and with it communication between the ranks.
_RUNS = ("predict", "predict_window", "predict_changed", "entropy_gradient", "bridge_scores")
_NO_TRANSFORMER = "{} is no transformers model: tensor parallelism needs its plan"

AnyDenoiser = TypeVar("AnyDenoiser", bound=AttentionDenoiser)


class RankOutOfMemory(RuntimeError):
    """A rank ran out of memory in the midst of a step that it has with others."""


def parallelise(denoiser: AttentionDenoiser, mesh: DeviceMesh) -> None:
    """Share the layers of a denoiser in memory out over the ranks of ``mesh``, in place.

    Every rank calls this with the same weights, and from then on runs the same calls at the
    same time. For a checkpoint use ``boe.load_model(source, mesh=mesh)``, which needs no rank
    to hold the whole model. Layers move to the mesh's devices one by one, the rest of the model
    afterwards.

    Args:
        denoiser: of a transformers model whose config has a plan (Llama, and with it LLaDA;
            Qwen2, and with it Dream; …).
        mesh: of one dimension.

    A rank that runs out of memory ends with :class:`RankOutOfMemory`: batches are not halved.

    Raises:
        UnsupportedModel: a model without a plan, or with one of another kind.
        ValueError: a mesh of several dimensions, heads or MLP columns that it does not divide,
            or a model that is shared out already.
    """
    if not isinstance(denoiser, TransformersDenoiser):
        raise UnsupportedModel(_NO_TRANSFORMER.format(denoiser.name))
    if any(own_part(weight) is not None for weight in denoiser.model.parameters()):
        raise ValueError(f"denoiser is shared out over ranks already, got {denoiser.name}")
    lay_out(denoiser.model, mesh)
    denoiser.model.to(device_of(mesh))
    act_together(denoiser, mesh)


def lay_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Make the layers' parameters DTensors over ``mesh``, of which each rank holds its part.

    Without communication. A model without memory (on the meta device) stays so.

    Raises:
        UnsupportedModel, ValueError: as :func:`check_layout`.
    """
    check_layout(type(model).__name__, getattr(model, "config", None), mesh)
    from torch.distributed.tensor.parallel import parallelize_module

    base: Any = model.base_model
    register_sharding_rules()
    # Where there are weights, every rank has all of them: none are sent.
    parallelize_module(base, mesh, _styles(type(model).__name__, base.config), src_data_rank=None)


def check_layout(name: str, config: Any, mesh: DeviceMesh) -> None:
    """Find out from a config alone whether a model can be shared out over ``mesh``.

    Args:
        name: what messages call the model.
        config: transformers' config; anything else if it is no transformers model.

    Raises:
        UnsupportedModel: a model without a plan, with one of another kind, or quantised.
        ValueError: a mesh of several dimensions, or heads or MLP columns that it does not divide.
    """
    from transformers import PreTrainedConfig

    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}")
    if not isinstance(config, PreTrainedConfig):
        raise UnsupportedModel(_NO_TRANSFORMER.format(name))
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(
            f"{name} is quantised, which does not go with a mesh: layers are shared out in the "
            "dtype in which they compute"
        )
    _styles(name, config)
    for width in _SPLIT:
        count = getattr(config, width, None)
        if count is not None and count % mesh.size():
            raise ValueError(
                f"the model's {width}, {count}, must be a multiple of {mesh.size()} ranks"
            )


def act_together(denoiser: AnyDenoiser, mesh: DeviceMesh) -> AnyDenoiser:
    """``denoiser``, whose layers are laid out over ``mesh``, made one of its ranks in place."""
    denoiser.sum_over_ranks = _sum_over(mesh)
    for name in _RUNS:
        setattr(denoiser, name, _ending_together(getattr(denoiser, name)))
    return denoiser


def device_of(mesh: DeviceMesh) -> str:
    """This rank's device: the current one where the mesh is of accelerators."""
    if mesh.device_type == "cpu":
        return "cpu"
    return f"{mesh.device_type}:{torch.accelerator.current_device_index()}"


def own_part(parameter: Tensor) -> tuple[slice, ...] | None:
    """The index of this rank's part in the whole of ``parameter``; ``None`` for a plain tensor."""
    if not torch.distributed.is_available():
        return None
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(parameter, DTensor):
        return None
    (placement,) = parameter.placements
    index = [slice(None)] * parameter.dim()
    if isinstance(placement, Shard):
        # Widths are multiples of the number of ranks (check_layout): all parts are of one size.
        size = parameter.shape[placement.dim] // parameter.device_mesh.size()
        start = size * parameter.device_mesh.get_local_rank()
        index[placement.dim] = slice(start, start + size)
    return tuple(index)


def filled(parameter: Tensor, part: Tensor) -> Tensor:
    """A tensor laid out as the DTensor ``parameter``, with ``part`` as this rank's own."""
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _styles(name: str, config: Any) -> dict[str, Any]:
    """PyTorch's form of transformers' plan."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    known = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    if not plan:
        raise UnsupportedModel(f"transformers has no plan to share {name} out over several GPUs")
    unknown = {style for style in plan.values() if style not in (*known, *_WHOLE)}
    if unknown:
        raise UnsupportedModel(
            f"transformers' plan for {name} has parts of a kind that is not supported: "
            f"{', '.join(sorted(unknown))}"
        )
    return {module: known[style]() for module, style in plan.items() if style in known}


def _ending_together(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, whose lack of memory is not taken for one that all ranks have."""

    @wraps(call)
    def run(*given: Any, **options: Any) -> Any:
        try:
            return call(*given, **options)
        except torch.OutOfMemoryError as error:
            # The loop would go on in halves, and the other ranks with the whole batch.
            raise RankOutOfMemory(
                f"rank {torch.distributed.get_rank()} ran out of memory; what the ranks decode "
                "together cannot be halved by one of them: take a smaller batch "
                f"({error})"
            ) from error

    return run


def _sum_over(mesh: DeviceMesh) -> Callable[[Tensor], Tensor]:
    group = mesh.get_group()

    def total(part: Tensor) -> Tensor:
        whole = part.clone()
        torch.distributed.all_reduce(whole, group=group)
        return whole

    return total
