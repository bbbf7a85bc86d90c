"""From the token states of a packed batch to one vector for each text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from featcache.backbone.packing import PackedLayout, split_runs
from featcache.errors import UsageError


def pool_cls(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The first token of each text: `[T, H]` -> `[B, H]`."""
    return states[packed.token_at("first")]


def pool_last(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The last real token of each text: `[T, H]` -> `[B, H]`."""
    return states[packed.token_at("last")]


def pool_mean(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The mean over all tokens of each text, special ones included, in float32: -> `[B, H]`."""
    return torch.cat([run.mean(1, dtype=torch.float32) for run in split_runs(states, packed)])


def pool_max(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The largest value over the tokens of each text: `[T, H]` -> `[B, H]`."""
    return torch.cat([run.amax(1) for run in split_runs(states, packed)])


POOLINGS: dict[str, Callable[[torch.Tensor, PackedLayout], torch.Tensor]] = {
    "cls": pool_cls,
    "mean": pool_mean,
    "last": pool_last,
    "max": pool_max,
}


# Poolings that take one token of each text: which one. The others need all tokens.
POOLED_TOKEN = {"cls": "first", "last": "last"}


@dataclass(frozen=True, order=True)
class View:
    """One (layer, pooling) pair.

    Attributes:
        layer: 0 for the embeddings, i for the output of block i, up to the number of blocks.
        pooling: a key of `POOLINGS`.
        name: canonical, e.g. `last/mean` or `-4/mean`: the same pair always has the same name.
    """

    layer: int
    pooling: str
    name: str


def parse_view(text: str, blocks: int) -> View:
    """`last/cls`, `-4/mean` or `9/max` as a View of a backbone with that many blocks.

    Raises:
        UsageError: not layer/pooling, an unknown pooling, or a layer outside the backbone.
    """
    match = re.fullmatch(r"(last|-?\d+)/([a-z]+)", text.strip())
    if not match or match[2] not in POOLINGS:
        raise UsageError(
            f"{text!r} is no view",
            hint=f"a view is layer/pooling, e.g. last/cls or -4/mean; poolings: {', '.join(POOLINGS)}",
        )
    layer = blocks if match[1] == "last" else int(match[1])
    layer = layer + blocks + 1 if layer < 0 else layer
    if not 0 <= layer <= blocks:
        raise UsageError(
            f"view {text!r}: the backbone has {blocks} blocks",
            hint=f"layers are 0 (embeddings) to {blocks}, or -1 (= last) to -{blocks + 1}",
        )
    name = "last" if layer == blocks else str(layer - blocks - 1)
    return View(layer, match[2], f"{name}/{match[2]}")
