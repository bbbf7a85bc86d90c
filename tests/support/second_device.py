"""A device that stands in for a GPU where there is none: `meta`, whose tensors have values here.

Tensors on it are wrappers around tensors of the CPU. As on a GPU, an operation on tensors of two devices is
an error, except for single numbers of the CPU and for copies; numpy cannot read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

SECOND = torch.device("meta")
_MOVES = ("aten._to_copy.default", "aten.copy_.default")
# Whose indices may be on either device.
_INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten._index_put_impl_.default")
# Which take no single numbers of the CPU either.
_JOINED = ("aten.stack.default", "aten.cat.default")


class SecondTensor(torch.Tensor):
    """A tensor on the second device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> SecondTensor:
        made: SecondTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=SECOND, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"SecondTensor({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors on the second device where torch is asked for them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped, it would import torch's compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within it, the second device can be used, also by the threads of pools."""
    submit = ThreadPoolExecutor.submit

    def submit_with_device(pool: ThreadPoolExecutor, call: Callable[..., Any], *args: Any) -> Any:
        def work() -> Any:
            with _Mode():
                return call(*args)

        return submit(pool, work)

    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(ThreadPoolExecutor, "submit", submit_with_device)
        yield SECOND


@contextmanager
def copies_to_host() -> Iterator[list[str]]:
    """The operations that bring values from the second device to the host, as they happen; no `tolist`."""
    found: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            there = any(isinstance(each, SecondTensor) for each in args)
            if there and not isinstance(result, (SecondTensor, tuple, list, type(None))):
                found.append(str(func))
            return result

    with Watching():
        yield found


class _Operation(NamedTuple):
    """What is known of an operation: whether it moves tensors, who may be elsewhere, what it writes to."""

    moves: bool
    indexed: bool
    written: tuple[tuple[int, str], ...]  # arguments by position and name
    returns: bool


@cache
def _operation(func: Any) -> _Operation:
    written = tuple(
        (number, argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return _Operation(str(func) in _MOVES, str(func) in _INDEXED, written, bool(func._schema.returns))


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operation = _operation(func)
    given = list(_tensors((*args, *kwargs.values())))
    there = any(isinstance(each, SecondTensor) for each in given)
    if there and not operation.moves and _mixed(operation, str(func), args, kwargs):
        raise RuntimeError(f"{func}: expected all tensors to be on one device")
    asked = kwargs.get("device")
    second = isinstance(args[0], SecondTensor) if operation.moves else there
    if asked is not None:
        second = torch.device(asked) == SECOND or (there and not operation.moves)
    inner = {name: _inner(value) for name, value in kwargs.items()}
    if asked is not None:
        inner["device"] = torch.device("cpu")
    found = func(*_inner(args), **inner)
    if operation.written:
        written = [
            kwargs[name] if name in kwargs else args[number] for number, name in operation.written
        ]  # fmt: skip
        return None if not operation.returns else written[0] if len(written) == 1 else tuple(written)
    return _wrapped(found) if second else found


def _mixed(operation: _Operation, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a tensor of the CPU is where a GPU would refuse it, in an operation on the second device."""
    written = [kwargs[key] if key in kwargs else args[number] for number, key in operation.written]
    if any(not isinstance(each, SecondTensor) for each in _tensors(written)):
        return True  # also of a single number
    least = 0 if name in _JOINED else 1
    read = [*args[:1], *args[2:]] if operation.indexed else [*args, *kwargs.values()]
    return any(not isinstance(each, SecondTensor) and each.dim() >= least for each in _tensors(read))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _inner(value: Any) -> Any:
    if isinstance(value, SecondTensor):
        return value.inner
    return type(value)(map(_inner, value)) if type(value) in (tuple, list) else value


def _wrapped(found: Any) -> Any:
    if type(found) is torch.Tensor:
        return SecondTensor(found)
    return type(found)(map(_wrapped, found)) if isinstance(found, (tuple, list)) else found
