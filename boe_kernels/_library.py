"""Registration of our operators with PyTorch (``torch.ops.boe_kernels``).

An op is defined once with its schema, one implementation for every device (the path
to run is an argument), a fake for tracing, and a differentiable form: a
``torch.autograd.Function`` whose forward and backward are themselves registered ops,
so that ``torch.compile``, ``opcheck`` and ``torch.func.grad`` see every step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from boe_kernels._autocast import in_given_dtypes

NAMESPACE = "boe_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def define_op(
    name: str,
    signature: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: type[torch.autograd.Function] | None = None,
) -> Any:
    """Define ``boe_kernels::name`` and return the callable to use for it.

    Args:
        signature: the schema without the name, e.g. ``"(Tensor x) -> Tensor"``. All
            arguments are positional.
        implementation: runs the op below autograd, on any device.
        fake: shapes, dtypes and strides of the results, from the arguments' alone.
        differentiable: the op's autograd function, with ``setup_context``. An op without
            one (every backward op) refuses to be differentiated.
    """
    implementation, fake = in_given_dtypes(implementation), in_given_dtypes(fake)
    _LIBRARY.define(f"{name}{signature}")
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    apply: Callable[..., Any]
    transformable: Callable[..., Any]
    if differentiable is None:
        apply = transformable = partial(_RefuseDerivative.apply, name, op)
    else:
        eager = _eager_form(differentiable, op, implementation)
        apply, transformable = eager.apply, differentiable.apply

    def autograd_kernel(keyset: Any, *args: Any) -> Any:
        _refuse_forward_mode(name, args)
        if torch.is_grad_enabled() and _any_requires_grad(args):
            return apply(*args)
        # Not under AutoDispatchBelowAutograd: a library path may use autograd inside.
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)
    return _DifferentiableOp(op, implementation, apply, transformable)


def _eager_form(
    function: Any, op: Any, implementation: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The same function with ``forward(ctx, ...)``, which costs a third as much to apply.

    PyTorch inspects the signature of a function with ``setup_context`` on every call;
    only ``torch.func`` needs that form.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = as_new(implementation(*args) if _unobserved(args) else op(*args))
            function.setup_context(ctx, args, output)
            return output

        backward = staticmethod(function.backward)

    Eager.__name__ = Eager.__qualname__ = function.__name__
    return Eager


def as_new(output: Any) -> Any:
    """An autograd function's output, a tensor or a tuple, without the mark of a view.

    Results that are another shape or layout of the memory they were made in would otherwise
    refuse to be modified in place.
    """
    if isinstance(output, tuple):
        return tuple(map(as_new, output))
    return output.data if type(output) is torch.Tensor and output._is_view() else output


class _DifferentiableOp:
    """Calls an op, or its autograd function directly where a graph is to be recorded.

    ``torch.func`` differentiates an autograd function itself, and cannot see one that is
    applied inside an operator's autograd kernel. In plain eager mode, where nothing looks
    at the calls of operators, both run the implementation itself: a trip through the
    dispatcher to a Python kernel takes some 20 µs, more when caches are cold.
    """

    def __init__(
        self,
        op: Any,
        implementation: Callable[..., Any],
        apply: Callable[..., Any],
        transformable: Callable[..., Any],
    ) -> None:
        self.op = op
        self._implementation = implementation
        self._apply = apply
        self._transformable = transformable

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.op(*args)
        if torch._C._are_functorch_transforms_active():
            return self._transformable(*args)
        if torch.is_grad_enabled() and _any_requires_grad(args):
            _refuse_forward_mode(self.op._opname, args)
            return self._apply(*args)
        return self._implementation(*args) if _unobserved(args) else self.op(*args)


def _unobserved(args: tuple[Any, ...]) -> bool:
    """Whether nothing could tell a call of an op's implementation from one of the op."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and forward_ad._current_level < 0
        and all(
            type(arg) in (torch.Tensor, torch.nn.Parameter) and not arg.is_meta
            for arg in args
            if isinstance(arg, torch.Tensor)
        )
    )


def _any_requires_grad(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)


def _refuse_forward_mode(name: str, args: tuple[Any, ...]) -> None:
    # Without this check forward-mode differentiation would return zero tangents.
    if forward_ad._current_level < 0:
        return
    for arg in args:
        if isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise RuntimeError(
                f"{NAMESPACE}::{name} has no forward-mode derivative; "
                "call the op with backend='reference' for forward-mode differentiation"
            )


class _RefuseDerivative(torch.autograd.Function):
    """Runs an op without a derivative and explains itself when one is asked for."""

    @staticmethod
    def forward(name: str, op: Any, *args: Any) -> Any:
        return op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{NAMESPACE}::{ctx.name} cannot be differentiated; "
            "call the op with backend='reference' for second derivatives"
        )
