"""On CUDA, attention within texts of any lengths in one kernel: `varlen_attn`, flash attention in 16 bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from featcache.backbone.attention.sdpa import Scoring, attention_by_runs, repeat_heads
from featcache.backbone.packing import PackedLayout

VARLEN_DEVICES = ("cuda",)


def attention_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedLayout, scoring: Scoring
) -> torch.Tensor:
    """All texts in one call of `varlen_attn`: `[1, T, heads, d]`."""
    call, arguments = varlen()
    heads, width = query.shape[1], query.shape[-1]
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, d]
    q, k, v = (states if states.stride(-1) == 1 else states.contiguous() for states in (q, k, v))
    options: dict[str, Any] = {}
    if not scoring.has_default_scale(width):
        options["scale"] = scoring.scale
    if "window_size" in arguments:
        left = scoring.window - 1 if scoring.window else -1
        options["window_size"] = (left, 0 if scoring.causal else left)
    elif scoring.causal:  # torch 2.10
        options["is_causal"] = True
    if "enable_gqa" in arguments:
        options["enable_gqa"] = k.shape[1] != heads
    else:
        k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    if "num_splits" in arguments:
        options["num_splits"] = 1  # a text's vector must not depend on the longest one beside it
    longest = packed.longest
    attended = call(q, k, v, packed.cu_seqlens, packed.cu_seqlens, longest, longest, **options)
    result: torch.Tensor = attended.unsqueeze(0)
    return result


@lru_cache(maxsize=1)
def varlen() -> tuple[Callable[..., Any], frozenset[str]]:
    """`varlen_attn` and the names of its arguments: torch 2.10 has `is_causal`, later versions windows.

    Raises:
        ImportError: a torch without it.
    """
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def runs_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring) -> bool:
    """Whether `attention_varlen` can take these: by what is known of it, then by trying it once."""
    if query.device.type not in VARLEN_DEVICES or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if query.shape[-1] != value.shape[-1] or query.shape[1] % key.shape[1]:
        return False
    trial = Scoring(scoring.scale, scoring.causal, 4 if scoring.window else None)
    return varlen_agrees(query.device, query.dtype, (query.shape[1], key.shape[1], query.shape[-1]), trial)


@lru_cache(maxsize=256)
def varlen_agrees(
    device: torch.device, dtype: torch.dtype, shapes: tuple[int, int, int], scoring: Scoring
) -> bool:
    """Whether `varlen_attn` gives what SDPA gives, on made-up texts; False also where it cannot run.

    Old GPUs, head sizes and builds without flash attention are found so, and need no list here.

    Args:
        shapes: heads, heads of the keys, and their width.
    """
    heads, key_heads, width = shapes
    layout = PackedLayout.of(np.array([17, 5, 5, 1, 40]), device)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, int(layout.lengths.sum()), count, width, generator=draw)
        .to(device, dtype)
        .transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    )
    try:
        _, arguments = varlen()
        if not scoring.has_default_scale(width) and "scale" not in arguments:
            return False
        if scoring.window and "window_size" not in arguments:
            return False
        found = attention_varlen(query, key, value, layout, scoring)
    except torch.OutOfMemoryError:
        raise  # it says nothing about varlen_attn
    except (ImportError, RuntimeError, ValueError, TypeError):
        return False
    exact = attention_by_runs(query.float(), key.float(), value.float(), layout, scoring)
    return bool((found.float() - exact).abs().max() <= 2e-2 * exact.abs().max())
