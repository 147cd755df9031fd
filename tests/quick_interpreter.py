"""Triton's interpreter without what it works out anew at every operation on tiny tensors.

Most of its time goes to the shapes and types of tensors, of which there are few. Results are
the same: what is remembered is what Triton's own code made of the same shape or type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

Shape = tuple[int, ...]


def make_quick() -> None:
    """Changes the interpreter of this process."""
    _patch_the_language_once_per_launch()
    _leave_out_checks_without_effect()
    _remember_types_of_blocks()
    _remember_shapes_of_tensors()
    _remember_types_of_numpy()
    _compare_the_same_at_once()


def _patch_the_language_once_per_launch() -> None:
    """It would look through all of it at every call of a device function, most of its time."""
    patch_lang = interpreter._patch_lang
    # Of every module, with its names: they must outlive what is known by their address.
    known: dict[int, tuple[dict[str, Any], list[Any]]] = {}

    def where_needed(function: Any) -> Any:
        names = function.__globals__
        if id(names) not in known:
            known[id(names)] = names, [x for x in names.values() if x is tl or x is tl.core]
        _, languages = known[id(names)]
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return interpreter._LangPatchScope()
        return patch_lang(function)

    interpreter._patch_lang = where_needed


def _leave_out_checks_without_effect() -> None:
    """Sums and products of integers are done twice to assert what is not, without ``debug``."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


def _plain(shape: Any) -> Shape:
    return tuple([x.value if isinstance(x, tl.constexpr) else x for x in shape])


def _remember_types_of_blocks() -> None:
    known: dict[tuple[Shape, str], dict[str, Any]] = {}
    make = tl.block_type.__init__

    @wraps(make)
    def made(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
        key = _plain(shape), element_ty.name
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])
        # Pointers of one name may lie in different memory.
        self.element_ty = element_ty

    tl.block_type.__init__ = made

    others: dict[tuple[Shape, str], tl.block_type] = {}
    change = tl.block_type.with_element_ty

    def changed(self: tl.block_type, scalar_ty: tl.dtype) -> tl.block_type:
        if scalar_ty.is_ptr():
            return change(self, scalar_ty)
        key = _plain(self.shape), scalar_ty.name
        if key not in others:
            others[key] = change(self, scalar_ty)
        return others[key]

    tl.block_type.with_element_ty = changed


def _remember_shapes_of_tensors() -> None:
    known: dict[Shape, tuple[Any, Any]] = {}
    make = tl.tensor.__init__

    @wraps(make)
    def made(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in known:
            make(self, handle, type)
            known[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[key]

    tl.tensor.__init__ = made


def _remember_types_of_numpy() -> None:
    known: dict[str, Any] = {}
    find = interpreter._get_np_dtype

    def found(kind: tl.dtype) -> Any:
        if kind.name not in known:
            known[kind.name] = find(kind)
        return known[kind.name]

    interpreter._get_np_dtype = found


def _compare_the_same_at_once() -> None:
    """Types with themselves, and casts and broadcasts to what a tensor is already."""
    unwrap = tl.core._unwrap_if_constexpr
    tl.core._unwrap_if_constexpr = lambda x: x if type(x) is tl.tensor else unwrap(x)
    equal = tl.dtype.__eq__
    tl.dtype.__eq__ = lambda self, other: self is other or equal(self, other)

    semantic = interpreter.interpreter_semantic
    cast: Callable[..., tl.tensor] = semantic.cast
    broadcast: Callable[..., tuple[tl.tensor, tl.tensor]] = semantic.broadcast_impl_value

    def cast_to(x: tl.tensor, kind: tl.dtype, *options: Any, **named: Any) -> tl.tensor:
        return x if x.type.scalar is kind.scalar else cast(x, kind, *options, **named)

    def broadcast_to(left: tl.tensor, right: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
        # Tensors of one shape share it.
        return (left, right) if left.shape is right.shape else broadcast(left, right)

    semantic.cast, semantic.broadcast_impl_value = cast_to, broadcast_to
