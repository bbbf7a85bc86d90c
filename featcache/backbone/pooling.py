"""From the token states of a packed batch to one vector for each text.

A view may join several poolings, and steps may follow them, as in models of sentence-transformers. All steps
are taken in float32, before a vector is stored: a stored unit vector of float16 has a length of 1 within
0.1 %.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from featcache.backbone.packing import PackedLayout, split_runs
from featcache.backbone.token_rows import ATTENTIVE
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


def pool_weightedmean(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The mean in which the i-th token of a text weighs i, in float32: `[T, H]` -> `[B, H]`.

    SGPT: Muennighoff 2022, arXiv:2202.08904.
    """
    pooled = []
    for run in split_runs(states, packed):
        weights = torch.arange(1, run.shape[1] + 1, dtype=torch.float32, device=run.device)
        pooled.append((run * weights[:, None]).sum(1) / weights.sum())
    return torch.cat(pooled)


def pool_mean_sqrt_len(states: torch.Tensor, packed: PackedLayout) -> torch.Tensor:
    """The sum over all tokens over the square root of their number, in float32: `[T, H]` -> `[B, H]`."""
    runs = split_runs(states, packed)
    return torch.cat([run.sum(1, dtype=torch.float32) / run.shape[1] ** 0.5 for run in runs])


POOLINGS: dict[str, Callable[[torch.Tensor, PackedLayout], torch.Tensor]] = {
    "cls": pool_cls,
    "mean": pool_mean,
    "last": pool_last,
    "max": pool_max,
    "weightedmean": pool_weightedmean,
    "mean_sqrt_len": pool_mean_sqrt_len,
}
STEPS = ("dense", "layernorm", "normalized", "firstN")
VIEW = re.compile(r"(last|-?\d+)/([a-z_+]+)((?:-(?:dense|layernorm|normalized|first[1-9]\d{0,5}))*)")


# Poolings that take one token of each text: which one. The others need all tokens.
POOLED_TOKEN = {"cls": "first", "last": "last"}


@dataclass(frozen=True, order=True)
class View:
    """One (layer, pooling) pair.

    Attributes:
        layer: 0 for the embeddings, i for the output of block i, up to the number of blocks.
        pooling: keys of `POOLINGS` joined by `+`, then the steps that follow, each after a `-`; or
            `attentive`, which was learnt and is that of one head.
        name: canonical, e.g. `last/mean` or `-4/cls+mean-normalized`: the same pair always has the same name.
    """

    layer: int
    pooling: str
    name: str

    @property
    def joined(self) -> tuple[str, ...]:
        """The poolings whose vectors are put side by side; mostly one."""
        return tuple(self.pooling.partition("-")[0].split("+"))

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done with the pooled vector: `dense`, `layernorm`, `normalized` or `firstN`, in order."""
        return tuple(self.pooling.split("-")[1:])


def parse_view(text: str, blocks: int) -> View:
    """`last/cls`, `-4/mean` or `9/max` as a View of a backbone with that many blocks.

    Raises:
        UsageError: not layer/pooling, an unknown pooling, or a layer outside the backbone.
    """
    match = VIEW.fullmatch(text.strip())
    learned = match is not None and match[2] + match[3] == ATTENTIVE
    if not match or not (learned or set(match[2].split("+")) <= set(POOLINGS)):
        raise UsageError(
            f"{text!r} is no view",
            hint=f"a view is layer/pooling, e.g. last/cls or -4/mean; poolings: {', '.join(POOLINGS)}, "
            f"joined as in cls+mean; steps that may follow: {', '.join(STEPS)}, as in mean-normalized",
        )
    layer = blocks if match[1] == "last" else int(match[1])
    layer = layer + blocks + 1 if layer < 0 else layer
    if not 0 <= layer <= blocks:
        raise UsageError(
            f"view {text!r}: the backbone has {blocks} blocks",
            hint=f"layers are 0 (embeddings) to {blocks}, or -1 (= last) to -{blocks + 1}",
        )
    name = "last" if layer == blocks else str(layer - blocks - 1)
    return View(layer, match[2] + match[3], f"{name}/{match[2]}{match[3]}")
