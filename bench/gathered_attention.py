"""The strongest rival made of library calls: PyTorch's own backward on gathered rows.

Forward over all queries by the private flash operator, whose log-sum-exp is kept. Backward:
the active rows of q, the output, its gradient and the log-sum-exp are gathered, PyTorch's
flash backward is called on them, and the rows of dq are scattered into zeros. Nobody has to
write a kernel for it, and it is what a kernel has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.attention_providers import Inputs

# What a forward returns and its backward takes go by other names in some versions.
_ALIASES = {
    "rng_state": "philox_seed",
    "unused": "philox_offset",
    "output": "out",
    "log_sumexp": "logsumexp",
}


def gathered_aten(x: Inputs) -> Tensor:
    """Gradients through the active rows by ``aten``'s flash backward."""
    return _GatheredFlash.apply(x.q, x.k, x.v, x.active)


class _GatheredFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, active: Tensor) -> Tensor:
        forward, _ = _operators(q.device)
        facts = {"query": q, "key": k, "value": v}
        returned = call_by_schema(forward, facts)
        names = [returns.name for returns in forward._schema.returns]
        kept = {
            _ALIASES.get(name, name): value for name, value in zip(names, returned, strict=True)
        }
        out = kept.pop("out")
        ctx.save_for_backward(q, k, v, out, kept.pop("logsumexp"), active)
        ctx.kept = kept
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, active = ctx.saved_tensors
        _, backward = _operators(q.device)
        rows = {
            "grad_out": dout.index_select(2, active),
            "query": q.index_select(2, active),
            "out": out.index_select(2, active),
            # The CUDA kernel reads it as (B, H, A) without looking at its strides.
            "logsumexp": lse.index_select(2, active).contiguous(),
            "max_q": active.shape[0],
        }
        facts = {**ctx.kept, "key": k, "value": v, "dropout_p": 0.0, "is_causal": False, **rows}
        dq_rows, dk, dv = call_by_schema(backward, facts)
        dq = torch.zeros_like(q).index_copy_(2, active, dq_rows)
        return dq, dk, dv, None


def _operators(device: torch.device) -> tuple[Any, Any]:
    suffix = "_for_cpu" if device.type == "cpu" else ""
    name = f"_scaled_dot_product_flash_attention{suffix}"
    forward, backward = (getattr(torch.ops.aten, n).default for n in (name, f"{name}_backward"))
    return forward, backward


def call_by_schema(operator: Any, facts: Mapping[str, object]) -> Any:
    """Call a private operator by the argument names of this PyTorch's own schema.

    Arguments of which nothing is known keep their defaults.

    Raises:
        NotImplementedError: an argument without a default is unknown: the schema changed.
    """
    args, kwargs = [], {}
    for argument in operator._schema.arguments:
        if argument.name in facts:
            value = facts[argument.name]
        elif argument.has_default_value():
            value = argument.default_value
        else:
            raise NotImplementedError(
                f"{operator} wants {argument.name!r}, which this benchmark does not know"
            )
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return operator(*args, **kwargs)
