"""The numbers that a head predicts for every row of a split, in a parquet file that any tool can open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import HeadError
from featcache.runs.predictions import LEAKED, TEXTS, read_flags, read_hashes, read_numbers
from featcache.runs.run import Run
from featcache.system.durable import disk


@dataclass(frozen=True)
class NumberPredictions:
    """One row a text.

    Attributes:
        row_hash: uint8 `[N, 32]`.
        labels, predicted: float64 `[N]`.
        leaked: bool `[N]`, see `Predictions`.
    """

    row_hash: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    leaked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def clean(self) -> np.ndarray:
        """bool `[N]`: rows that do not leak; all of them where no row leaks, or every one."""
        if self.leaked is None or self.leaked.all():
            return np.ones(len(self), bool)
        return np.asarray(~self.leaked)

    @property
    def errors(self) -> np.ndarray:
        """float64 `[N]`: predicted minus label."""
        return np.asarray(self.predicted - self.labels)

    def write(self, path: Path) -> None:
        """Columns row_hash (hex), label and prediction (float64); `leaked` where a row leaks."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "row_hash": pa.array([row.tobytes().hex() for row in self.row_hash], pa.string()),
            "label": pa.array(self.labels, pa.float64()),
            "prediction": pa.array(self.predicted, pa.float64()),
        }
        if self.leaked is not None and self.leaked.any():
            columns[LEAKED] = pa.array(self.leaked)
        with disk.open(path, "wb") as file:  # pyarrow opens only paths in UTF-8
            pq.write_table(pa.table(columns), file)


def number_predictions(run: Run, split: str) -> NumberPredictions:
    """The numbers that the head of a run predicts for every row of `split`.

    Raises:
        HeadError: it predicts labels; that split was not scored, or the file is damaged.
    """
    if not run.record.numbers:
        raise HeadError(
            f"run {run.name} predicts labels, and no numbers", hint="name a run of --task regression"
        )
    return read_number_predictions(run.predictions_path(split))


def read_number_predictions(path: Path) -> NumberPredictions:
    """What `NumberPredictions.write` wrote.

    Raises:
        HeadError: missing, damaged, or with other content.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            found = file.read()
        if tuple(found.column_names[:3]) != TEXTS:
            raise ValueError(f"its columns are {', '.join(found.column_names[:5])}")
        return NumberPredictions(
            read_hashes(found["row_hash"]),
            read_numbers(found["label"], "a label"),
            read_numbers(found["prediction"], "a prediction"),
            read_flags(found[LEAKED]) if LEAKED in found.column_names else None,
        )
    except FileNotFoundError:
        raise HeadError(f"there is no {path}", hint="train with that split extracted") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise HeadError(f"cannot read {path}: {error}", hint="train that head again") from error
