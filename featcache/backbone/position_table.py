"""More rows for a model's table of learned position embeddings.

Families that compute positions (rotary, ALiBi) or learn relative ones have no such table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache.errors import BackboneError
from featcache.settings import FeatureSettings

HOW = ("random", "copy", "interpolate")
SEED = 0  # of random rows: always the same, so that --seed never changes a feature
MOST = 1 << 17  # positions; a mistyped length should not ask for all of the memory
NAMES = ("position_embeddings", "wpe")  # what families call their table


@dataclass(frozen=True)
class Extension:
    """How positions beyond the learned ones are made.

    Attributes:
        how: `random`: drawn from a normal distribution, as the model's own were before it was trained.
            `copy`: the learned ones repeated from the first. `interpolate`: all of them lie on straight
            lines between the learned ones; the first and the last stay as they are.
        length: tokens of the longest text that there is room for.
    """

    how: str
    length: int

    @classmethod
    def of(cls, features: FeatureSettings) -> Extension | None:
        """The extension that the settings ask for, if any."""
        how = features.extend_positions
        return None if how == "none" else cls(how, features.longest)

    @property
    def document(self) -> dict[str, Any]:
        """Its part of the encoder document."""
        seed = {"seed": SEED} if self.how == "random" else {}
        return {"how": self.how, "length": self.length, **seed}


def position_table(model: nn.Module) -> nn.Embedding | None:
    """The model's table of learned absolute positions; None if it has none, or several."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith(NAMES)
    ]
    return found[0] if len(found) == 1 else None


def extend_table(model: Any, table: nn.Embedding, first: int, extension: Extension) -> None:
    """Give `table` of `model` rows for `extension.length` tokens; config and buffers grow with it.

    Args:
        first: the row that the first token of a text reads; the rows before it stay as they are.

    Raises:
        BackboneError: too long, or the model has another buffer of the table's length.
    """
    if extension.how not in HOW:
        raise BackboneError(
            f"positions cannot be extended by {extension.how!r}", hint=f"known: {', '.join(HOW)}"
        )
    if extension.length > MOST:
        raise BackboneError(
            f"--extend-positions to {extension.length:,} tokens: {MOST:,} at most",
            hint="use a smaller --max-length, or --long-text chunks",
        )
    rows = table.num_embeddings
    grown = [
        (module, name, longer_buffer(buffer, rows, first + extension.length))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if rows in buffer.shape
    ]
    stuck = [name for _, name, buffer in grown if buffer is None]
    if stuck:
        raise BackboneError(
            f"{type(model).__name__} cannot be extended: its {stuck[0]} are made for {rows} positions",
            hint="use --long-text chunks or head-tail instead",
        )
    spread = float(getattr(model.config, "initializer_range", 0.02))
    weight = extended(table.weight.detach(), first, extension, spread)
    table.weight = nn.Parameter(weight, requires_grad=False)
    table.num_embeddings = len(weight)
    for module, name, buffer in grown:
        setattr(module, name, buffer)
    if getattr(model.config, "max_position_embeddings", None) == rows:
        model.config.max_position_embeddings = len(weight)


def extended(weight: torch.Tensor, first: int, extension: Extension, spread: float) -> torch.Tensor:
    """The table `[first + n, H]` with more rows: `[first + extension.length, H]`, same dtype and device.

    Args:
        first: rows in front that are no positions.
        spread: standard deviation of random rows.
    """
    special, learned = weight[:first], weight[first:]
    count, width = learned.shape
    more = extension.length - count
    if extension.how == "interpolate":
        lines = learned.cpu().double().T[None]  # [1, H, n]; float32 would misplace the far positions
        between = nn.functional.interpolate(lines, extension.length, mode="linear", align_corners=True)
        return torch.cat([special, between[0].T.to(weight)])
    if extension.how == "copy":
        again = torch.arange(count, extension.length, device=weight.device) % count
        return torch.cat([weight, learned[again]])
    # The one generator whose stream numpy has promised never to change: features must come out the same.
    draw = np.random.RandomState(SEED).standard_normal((more, width)) * spread
    return torch.cat([weight, torch.from_numpy(draw).to(weight)])


def longer_buffer(buffer: torch.Tensor, rows: int, wanted: int) -> torch.Tensor | None:
    """`[..., wanted]` for a buffer `[..., rows]` that counts up or is constant; None for others."""
    if buffer.numel() != rows or buffer.shape[-1] != rows:
        return None
    flat = buffer.flatten()
    counting = torch.arange(rows, device=buffer.device, dtype=buffer.dtype)
    shape = (*buffer.shape[:-1], wanted)
    if torch.equal(flat, counting):
        return torch.arange(wanted, device=buffer.device, dtype=buffer.dtype).expand(shape)
    if bool((flat == flat[0]).all()):
        return flat[:1].expand(shape)
    return None
