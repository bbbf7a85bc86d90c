"""Features in two dimensions, for people to look at."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from featcache.errors import UsageError
from featcache.heads.fit import Standard

PROJECTIONS = ("auto", "pca", "umap")


def choose_projection(asked: str) -> str:
    """`pca` or `umap`; of `auto` UMAP where it is installed.

    Raises:
        UsageError: an unknown name, or UMAP that is not installed.
    """
    if asked not in PROJECTIONS:
        raise UsageError(f"--map {asked}: one of {', '.join(PROJECTIONS)}")
    there = find_spec("umap") is not None
    if asked == "umap" and not there:
        raise UsageError("UMAP is not installed", hint="pip install umap-learn, or --map pca")
    return "umap" if asked != "pca" and there else "pca"


def project(x: np.ndarray, method: str, seed: int = 0) -> tuple[np.ndarray, float | None]:
    """Features `[N, D]` -> float64 `[N, 2]`, and the share of the variance in it (PCA).

    PCA of standardised features, or UMAP (McInnes et al. 2018, arXiv:1802.03426) of centred ones by cosine.
    """
    if method == "umap":
        from umap import UMAP

        near = min(15, len(x) - 1)
        flat = UMAP(n_neighbors=near, metric="cosine", random_state=seed).fit_transform(x - x.mean(axis=0))
        return np.asarray(flat, np.float64), None
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="randomized", random_state=seed) if x.shape[1] > 1 else None
    standard = Standard.of(x)(x)
    if pca is None or not standard.any():
        return np.column_stack([standard[:, 0], np.zeros(len(x))]).astype(np.float64), None
    flat = pca.fit_transform(standard)
    return np.asarray(flat, np.float64), float(pca.explained_variance_ratio_.sum())
