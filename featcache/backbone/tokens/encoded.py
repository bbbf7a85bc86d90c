"""What an encoder makes of texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BYTES_A_TOKEN = 3.5  # of UTF-8, roughly: a Chinese character has three, an English word piece four to five


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of N texts.

    Attributes:
        views: features `[N, D]` in the storage dtype, by view name.
        n_tokens: int32 `[N]`, tokens that were encoded; those in two windows count once.
        truncated: bool `[N]`.
    """

    views: dict[str, np.ndarray]
    n_tokens: np.ndarray
    truncated: np.ndarray
