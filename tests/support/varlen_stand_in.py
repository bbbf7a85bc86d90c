"""`torch.nn.attention.varlen.varlen_attn` for CPUs, as strict as the real one about what it is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from featcache.backbone.attention import varlen


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    """Text by text in float64: `[T, heads, d]`."""
    for states in (query, key, value):
        assert states.dtype in (torch.float16, torch.bfloat16)
        assert states.dim() == 3
        assert states.stride(-1) == 1
    if query.shape[-1] % 8 or query.shape[-1] > 256:
        raise RuntimeError("head_size must be a multiple of 8 and at most 256")
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q >= int(cu_seq_q.diff().max())
    assert max_k >= int(cu_seq_k.diff().max())
    assert (max_q, max_k) == (int(max_q), int(max_k))
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (states[begin:end].double().transpose(0, 1) for states in (query, key, value))
        k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
        place = torch.arange(end - begin)
        behind = place[:, None] - place[None, :]
        sees = torch.ones_like(behind, dtype=torch.bool)
        sees &= behind <= window[0] if window[0] >= 0 else sees
        sees &= -behind <= window[1] if window[1] >= 0 else sees
        scores = q @ k.transpose(1, 2) * (scale if scale is not None else query.shape[-1] ** -0.5)
        outputs.append((scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


def later(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    num_splits: int | None = None,
) -> torch.Tensor:
    """As torch 2.13 has it."""
    assert num_splits == 1
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError("Expect query and key/value to have the same number of heads")
    return plain(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def first(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> torch.Tensor:
    """As torch 2.10 has it."""
    assert return_aux is None
    if query.shape[1] != key.shape[1]:
        raise ValueError("query and key must have the same number of heads")
    window = (-1, 0) if is_causal else (-1, -1)
    return plain(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, window)


STAND_INS: dict[str, Callable[..., torch.Tensor]] = {"torch 2.10": first, "torch 2.13": later}


@contextmanager
def varlen_on_cpu(call: Callable[..., torch.Tensor]) -> Iterator[list[int]]:
    """Packed attention uses `call` on CPUs within it; the tokens of each call, checks included."""
    calls: list[int] = []
    names = frozenset(inspect.signature(call).parameters)

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[0].shape[0])
        return call(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "VARLEN_DEVICES", ("cpu",))
        patch.setattr(varlen, "varlen", lambda: (counted, names))
        varlen.varlen_agrees.cache_clear()
        try:
            yield calls
        finally:
            varlen.varlen_agrees.cache_clear()
