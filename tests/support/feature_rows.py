"""Made-up features and labels for the tests of heads."""

from __future__ import annotations

import numpy as np

from featcache.heads.features import LabelledFeatures


def clusters(
    rows: int, width: int = 6, classes: int = 3, seed: int = 0, noise: float = 1.5
) -> LabelledFeatures:
    """Overlapping classes, float32 and int64; features differ in mean and scale, every class has a row."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(0, classes, rows - classes)])
    x = centres[labels] + noise * draw.normal(size=(rows, width))
    scaled = x * np.linspace(0.2, 3, width) + np.linspace(-4, 4, width)
    return LabelledFeatures(scaled.astype(np.float32), labels)


def tagged(rows: int, width: int = 6, classes: int = 4, seed: int = 0) -> LabelledFeatures:
    """Several labels a row, uint8 multi-hot, each on one side of a noisy plane; features as of `clusters`."""
    x, _ = clusters(rows, width, seed=seed)
    planes = np.random.default_rng(98).normal(size=(classes, width))
    scaled = (x - np.linspace(-4, 4, width)) / np.linspace(0.2, 3, width)
    noise = np.random.default_rng(seed + 1000).normal(size=(rows, classes))
    labels = scaled @ planes.T + noise > np.linspace(-1, 2, classes)
    return LabelledFeatures(x, labels.astype(np.uint8))


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """float64, with scikit-learn's StandardScaler of `train`."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.astype(np.float64))
    return [scaler.transform(x.astype(np.float64)) for x in (train, *others)]
