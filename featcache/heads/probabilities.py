"""From logits to probabilities."""

from __future__ import annotations

import numpy as np


def probabilities_of(logits: np.ndarray, temperature: float, *, multi_label: bool) -> np.ndarray:
    """Logits `[N, C]` -> float64 probabilities `[N, C]`: softmax, or a sigmoid each for multi-label."""
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scaled)))
    return softmax(scaled)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` -> float64 probabilities `[N, C]`; without SciPy, which takes long to import."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
