"""Attention within each text of a packed batch, as transformers' `AttentionInterface` calls it.

Linear layers do not care where a text begins; attention does. `packed_attention` is registered with
transformers as an attention implementation, so any model that goes through `AttentionInterface`
serves packed batches with its own, unchanged code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from featcache.packing import Layout, NotPackable
from featcache.tail import Keep, Kept, Tail, tail_attention

IMPLEMENTATION = "featcache_packed"


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
        query: `[1, heads, T, d]`; key and value alike, with as many or fewer heads.
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
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and window is None:
        return _attention_by_buckets(query, key, value, packed, scaling, causal), None
    return _attention_by_runs(query, key, value, packed, scaling, causal, window), None


def no_mask(*_: Any, **__: Any) -> None:
    """The mask of a packed batch, as `AttentionMaskInterface` asks for it: there is none."""


def register() -> None:
    """Make `packed_attention` known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


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
