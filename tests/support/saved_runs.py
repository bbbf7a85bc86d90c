"""Runs on disk with made-up predictions, for tests of what is read back and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from featcache.heads.head import Head
from featcache.runs.predictions import Predictions
from featcache.runs.record import RunRecord, SplitScores
from featcache.runs.run import Run, save_run

BINARY = ("bad", "good")


@dataclass(frozen=True)
class NoHead:
    """The part of a head that `save_run` needs; it cannot predict."""

    label_names: tuple[str, ...]

    def save(self, folder: Path, name: str) -> None:
        """Write an empty document."""
        (folder / f"{name}.json").write_text("{}", encoding="utf-8")


def hashes(texts: Iterable[object]) -> np.ndarray:
    """uint8 `[N, 32]`; equal texts, equal hashes."""
    digests = b"".join(hashlib.sha256(str(text).encode()).digest() for text in texts)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def predictions(
    labels: Sequence[Any] | np.ndarray,
    predicted: Sequence[Any] | np.ndarray,
    texts: Iterable[object] | None = None,
    names: tuple[str, ...] = BINARY,
) -> Predictions:
    """Label numbers `[N]`, or multi-hot `[N, C]`; row i is the text `i` unless they are given."""
    true, guessed = np.asarray(labels), np.asarray(predicted)
    multi = true.ndim == 2
    true, guessed = (part.astype(np.uint8 if multi else np.int64) for part in (true, guessed))
    sure = guessed.astype(bool) if multi else np.eye(len(names), dtype=bool)[guessed]
    probabilities = np.where(sure, 0.9, 0.1 / max(len(names) - 1, 1))
    rows = hashes(range(len(true)) if texts is None else texts)
    return Predictions(rows, true, guessed, probabilities, names)


def save(reports: Path, head: str = "linear", view: str = "last/mean", **splits: Predictions) -> Run:
    """A run with these predictions by split, and the metrics that belong to them."""
    names = next(iter(splits.values())).label_names
    record = RunRecord(
        head=head,
        view=view,
        fingerprint="0" * 64,
        metrics={split: _metrics(found) for split, found in splits.items()},
        intervals={split: {"accuracy": (0.8125, 0.925)} for split in splits},
        scores={split: SplitScores() for split in splits},
        created="2025-01-01T00:00:00+0000",
        seconds=12.34,
        extraction_seconds=1234.5,
        epochs=100,
        best_epoch=7,
        parameters=1538,
        rows={split: len(found) for split, found in splits.items()},
        label_names=names,
        history=(),
    )
    return save_run(reports, record, {"head": cast(Head, NoHead(names))}, splits)


def _metrics(found: Predictions) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    f1 = f1_score(found.labels, found.predicted, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(found.labels, found.predicted)),
        "macro_f1": float(f1),
        "log_loss": 0.5,
    }


def noisy(labels: np.ndarray, wrong: int, classes: int = 2, *, start: int = 0) -> np.ndarray:
    """`labels` with `wrong` rows, from row `start` on, moved to the next class."""
    found = labels.copy()
    found[start : start + wrong] = (found[start : start + wrong] + 1) % classes
    return found
