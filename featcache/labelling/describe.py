"""Labels with descriptions: guesses and first texts before anybody has answered.

A description is encoded by the same backbone as the texts. How alike a text is to a label is counted in
standard deviations over all texts, since descriptions differ in how near they are to any text.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np

from featcache.errors import UsageError
from featcache.heads.probabilities import softmax
from featcache.labelling.pool import TextPool

SHARPNESS = 2.0  # of the probabilities, per standard deviation
_HINT = 'a line a label: "good" = "The guest liked it.", or several descriptions: "good" = ["...", "..."]'


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """The descriptions of each label, from a toml file.

    Raises:
        UsageError: the file cannot be read, or holds something else; names the label.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--describe {path}: {error}", hint=_HINT) from None
    found = {}
    for label, given in content.items():
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
            raise UsageError(f"--describe {path}: {label} has no description", hint=_HINT)
        if not all(one.strip() for one in texts):
            raise UsageError(f"--describe {path}: {label} has an empty description", hint=_HINT)
        found[label] = tuple(texts)
    if len(found) < 2:
        raise UsageError(
            f"--describe {path}: it describes {len(found)} labels, and two are needed", hint=_HINT
        )
    return found


def described_probabilities(pool: TextPool, described: np.ndarray, label_of: np.ndarray) -> np.ndarray:
    """Guesses float64 `[N, C]` from descriptions alone.

    Args:
        described: features of the descriptions `[M, D]`, standardised as the pool is.
        label_of: int `[M]`, which label each describes; every label has one at least.
    """
    unit = described / np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-12)
    classes = int(label_of.max()) + 1
    centres = np.stack([unit[label_of == label].mean(axis=0) for label in range(classes)])
    alike = (pool.x @ centres.T) / pool.length[:, None]
    deviation = alike.std(axis=0)
    return softmax(SHARPNESS * (alike - alike.mean(axis=0)) / np.where(deviation > 0, deviation, 1))
