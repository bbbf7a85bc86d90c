"""Attention within each text of a packed batch, as transformers' `AttentionInterface` calls it.

Linear layers do not care where a text begins; attention does. `packed_attention` is registered with
transformers as an attention implementation, so any model that goes through `AttentionInterface`
serves packed batches with its own, unchanged code.

On CUDA one kernel takes texts of any lengths (`torch.nn.attention.varlen.varlen_attn`: flash attention,
16 bits only). What it does not take there, and everything elsewhere, is one SDPA call for each run of
texts of one length, or on CPUs in 16 bits for each group of nearly one length.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from featcache.backbone.last_block import Keep, Kept, Tail, tail_attention
from featcache.backbone.packing import Layout, NotPackable

IMPLEMENTATION = "featcache_packed"
VARLEN_DEVICES = ("cuda",)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout | Keep | Tail | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text of a packed batch, as transformers' `AttentionInterface` calls it.

    Args:
        query: `[1, heads, T, d]`; key and value alike, with as many or fewer heads. Tokens after the last
            text belong to none, and get zeros.
        packed: where the texts lie; handed to the model as a keyword of its forward. In the highest
            block, what to keep or attend to instead of everything.
        sliding_window: a token sees those less than this many places away.

    Returns:
        `[1, T, heads, d]` and no attention weights.

    Raises:
        NotPackable: the layout did not arrive, or the model uses soft-capping, biases or sinks.
    """
    asked = [name for name in ("softcap", "position_bias", "s_aux") if others.get(name) is not None]
    if packed is None or attention_mask is not None or asked:
        raise NotPackable(f"{type(module).__name__} cannot run packed ({', '.join(asked) or 'mask'})")
    if isinstance(packed, Keep):
        raise Kept(query, key, value)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    layout = packed.layout if isinstance(packed, Tail) else packed
    window = sliding_window if sliding_window and layout.longest > sliding_window else None
    if isinstance(packed, Tail):
        return tail_attention(packed, scaling, causal, window), None
    if _runs_varlen(query, key, value, scaling, causal, window):
        tokens = int(packed.lengths.sum())
        q, k, v = (states[:, :, :tokens] for states in (query, key, value))
        attended = attention_varlen(q, k, v, packed, scaling, causal, window)
    elif query.device.type == "cpu" and query.dtype == torch.bfloat16 and window is None:
        return _attention_by_buckets(query, key, value, packed, scaling, causal), None
    else:
        attended = _attention_by_runs(query, key, value, packed, scaling, causal, window)
    more = query.shape[2] - attended.shape[1]  # tokens of no text, which fill the batch
    return functional.pad(attended, (0, 0, 0, 0, 0, more)) if more else attended, None


def no_mask(*_: Any, **__: Any) -> None:
    """The mask of a packed batch, as `AttentionMaskInterface` asks for it: there is none."""


def register() -> None:
    """Make `packed_attention` known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


def attention_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Layout,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """All texts in one call of `varlen_attn`, as this torch's has its arguments."""
    call, arguments = varlen()
    heads, width = query.shape[1], query.shape[-1]
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, d]
    q, k, v = (states if states.stride(-1) == 1 else states.contiguous() for states in (q, k, v))
    options: dict[str, Any] = {}
    if not _is_default(scaling, width):
        options["scale"] = scaling
    if "window_size" in arguments:
        left = window - 1 if window else -1
        options["window_size"] = (left, 0 if causal else left)
    elif causal:  # torch 2.10
        options["is_causal"] = True
    if "enable_gqa" in arguments:
        options["enable_gqa"] = k.shape[1] != heads
    else:
        k, v = _expanded(k, heads, axis=1), _expanded(v, heads, axis=1)
    if "num_splits" in arguments:
        options["num_splits"] = 1  # a text's vector must not depend on the longest one beside it
    longest = packed.longest
    attended = call(q, k, v, packed.cu_seqlens, packed.cu_seqlens, longest, longest, **options)
    result: torch.Tensor = attended.unsqueeze(0)
    return result


@lru_cache(maxsize=1)
def varlen() -> tuple[Callable[..., Any], frozenset[str]]:
    """`varlen_attn` and the names of its arguments: torch 2.10 knows `is_causal`, later ones windows.

    Raises:
        ImportError: a torch without it.
    """
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def _runs_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> bool:
    """Whether `attention_varlen` can take these: by what is known of it, then by trying it once."""
    if query.device.type not in VARLEN_DEVICES or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if query.shape[-1] != value.shape[-1] or query.shape[1] % key.shape[1]:
        return False
    shapes = query.shape[1], key.shape[1], query.shape[-1]
    return _varlen_agrees(query.device, query.dtype, shapes, scaling, causal, window is not None)


@lru_cache(maxsize=256)
def _varlen_agrees(
    device: torch.device,
    dtype: torch.dtype,
    shapes: tuple[int, int, int],
    scaling: float | None,
    causal: bool,
    windowed: bool,
) -> bool:
    """Whether `varlen_attn` gives what SDPA gives, on made-up texts; False also where it cannot run.

    Old GPUs, head sizes and builds without flash attention are found so, and need no list here.
    """
    heads, key_heads, width = shapes
    layout = Layout.of(np.array([17, 5, 5, 1, 40]), device)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, int(layout.lengths.sum()), count, width, generator=draw)
        .to(device, dtype)
        .transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    )
    window = 4 if windowed else None
    try:
        _, arguments = varlen()
        if not _is_default(scaling, width) and "scale" not in arguments:
            return False
        if windowed and "window_size" not in arguments:
            return False
        found = attention_varlen(query, key, value, layout, scaling, causal, window)
    except torch.OutOfMemoryError:
        raise  # says nothing of varlen_attn
    except (ImportError, RuntimeError, ValueError, TypeError):
        return False
    exact = _attention_by_runs(query.float(), key.float(), value.float(), layout, scaling, causal, window)
    return bool((found.float() - exact).abs().max() <= 2e-2 * exact.abs().max())


def _is_default(scaling: float | None, width: int) -> bool:
    return scaling is None or math.isclose(scaling, width**-0.5, rel_tol=1e-9)


def _expanded(states: torch.Tensor, heads: int, axis: int) -> torch.Tensor:
    """Heads that several queries share, once for each query."""
    shared = heads // states.shape[axis]
    return states if shared == 1 else states.repeat_interleave(shared, dim=axis)


def _attention_by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Layout,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """One SDPA call for each run of equally long texts; views in, one copy out."""
    if query.device.type == "cuda":  # the kernels for float32 and for masks know of no shared heads
        key, value = (_expanded(states, query.shape[1], axis=1) for states in (key, value))
    grouped = key.shape[1] != query.shape[1]
    outputs: list[torch.Tensor] = []
    for start, count, length in packed.runs:
        q, k, v = (
            states[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        mask = _window_mask(length, window, causal, query.device) if window and length > window else None
        attended = functional.scaled_dot_product_attention(
            q, k, v, mask, scale=scaling, is_causal=causal and mask is None, enable_gqa=grouped
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def _attention_by_buckets(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Layout,
    scaling: float | None,
    causal: bool,
) -> torch.Tensor:
    """SDPA on texts of nearly equal length together, padded to a multiple of PAD_STEP.

    On CPUs the 16-bit kernel is up to twice as fast at such lengths, and there are fewer calls.
    """
    heads, width = query.shape[1], value.shape[-1]
    output = query.new_empty(query.shape[2], heads * width)
    output[int(packed.lengths.sum()) :] = 0  # tokens of no text, which fill the batch
    for bucket in packed.buckets:
        q, k, v = (
            states[0]
            .transpose(0, 1)
            .index_select(0, bucket.gather)
            .unflatten(0, bucket.shape)
            .transpose(1, 2)
            for states in (query, key, value)
        )
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            None if causal else bucket.mask.to(q.dtype),  # a causal text never looks at its padding
            scale=scaling,
            is_causal=causal,
            enable_gqa=key.shape[1] != heads,
        )
        start, end = bucket.tokens
        torch.index_select(
            attended.transpose(1, 2).flatten(2).flatten(0, 1), 0, bucket.keep, out=output[start:end]
        )
    return output.view(1, -1, heads, width)


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Bool `[length, length]`: True where the row's token sees the column's."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near
