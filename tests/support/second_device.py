"""A device that stands in for a GPU where there is none: `meta`, whose tensors have values here.

Tensors on it are wrappers around tensors of the CPU. As on a GPU, an operation on tensors of two devices is
an error, except for single numbers of the CPU and for copies; numpy cannot read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

SECOND = torch.device("meta")
_MOVES = ("aten._to_copy.default", "aten.copy_.default")
# Whose indices may be on either device.
_INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten._index_put_impl_.default")


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


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    there = [each for each in flat if isinstance(each, SecondTensor)]
    asked = kwargs.get("device")
    moves = str(func) in _MOVES
    here = [each for each in flat if type(each) is torch.Tensor and each.dim() > 0]
    if there and here and not moves and str(func) not in _INDEXED:
        raise RuntimeError(f"{func}: expected all tensors to be on one device")
    if moves:
        second = torch.device(asked) == SECOND if asked is not None else isinstance(args[0], SecondTensor)
    else:
        second = bool(there) or (asked is not None and torch.device(asked) == SECOND)
    flat = [each.inner if isinstance(each, SecondTensor) else each for each in flat]
    inner_args, inner_kwargs = tree_unflatten(flat, spec)
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    found = func(*inner_args, **inner_kwargs)
    if written := _written(func, args, kwargs):
        return None if not func._schema.returns else written[0] if len(written) == 1 else tuple(written)
    if not second or not isinstance(found, (torch.Tensor, tuple, list)):
        return found
    return tree_map(lambda each: SecondTensor(each) if type(each) is torch.Tensor else each, found)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to, which it then returns, if anything."""
    return [
        kwargs[argument.name] if argument.name in kwargs else args[number]
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
