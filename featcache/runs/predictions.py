"""A head's predictions for every row of a split, in a parquet file that any tool can open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.costs import cheapest
from featcache.evaluation.metrics import multi_hot
from featcache.system.durable import disk

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("row_hash", "label", "prediction")
PROBABILITY = "probability:"
LEAKED = "leaked"


@dataclass(frozen=True)
class Predictions:
    """One row a text, single-label or (`labels.ndim == 2`) multi-label.

    Attributes:
        row_hash: uint8 `[N, 32]`.
        labels: int64 `[N]`, or uint8 multi-hot `[N, C]`.
        predicted: like `labels`.
        probabilities: float64 `[N, C]`; `[N, 0]` where they were read without.
        label_names: C names, in the order of the probabilities.
        leaked: bool `[N]`: whether an earlier split has the row's text; None where that is not known, or of
            no row.
    """

    row_hash: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]
    leaked: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        row_hash: np.ndarray,
        labels: np.ndarray,
        probabilities: np.ndarray,
        label_names: tuple[str, ...],
        thresholds: np.ndarray | None = None,
        costs: np.ndarray | None = None,
        leaked: np.ndarray | None = None,
    ) -> Predictions:
        """Predictions by the largest probability, or the least expected cost where there are `costs`.

        Multi-label by `thresholds` `[C]` (default 0.5 each).
        """
        if labels.ndim == 1:
            predicted = cheapest(probabilities, costs)
        else:
            predicted = multi_hot(probabilities, thresholds)
        return cls(np.asarray(row_hash), labels, predicted, probabilities, label_names, leaked=leaked)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def __len__(self) -> int:
        return len(self.labels)

    def write(self, path: Path) -> None:
        """Write them as `write_predictions` does."""
        write_predictions(path, self)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Columns row_hash (hex), label and prediction (a text, or a list of texts), `probability:<label>`.

    A last column, `leaked`, is there where a row leaks.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = predictions.label_names
    columns = {
        "row_hash": pa.array([row.tobytes().hex() for row in predictions.row_hash], pa.string()),
        "label": _as_texts(predictions.labels, names),
        "prediction": _as_texts(predictions.predicted, names),
    }
    for number, name in enumerate(names):
        values = np.ascontiguousarray(predictions.probabilities[:, number], np.float64)
        columns[PROBABILITY + name] = pa.array(values)
    if predictions.leaked is not None and predictions.leaked.any():
        columns[LEAKED] = pa.array(predictions.leaked)
    with disk.open(path, "wb") as file:  # pyarrow opens only paths in UTF-8
        pq.write_table(pa.table(columns), file)


def read_predictions(path: Path, *, probabilities: bool = True) -> Predictions:
    """What `write_predictions` wrote.

    Args:
        probabilities: read them, too; they are most of the file.

    Raises:
        HeadError: missing, damaged, or with other content than predictions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            columns = list(file.schema_arrow.names)
            known = columns[-1:] == [LEAKED]
            columns = columns[: len(columns) - known]
            names = _label_names(columns, path)
            table = file.read(columns=None if probabilities else [*TEXTS, *[LEAKED] * known])
        hashes = read_hashes(table["row_hash"])
        labels, predicted = (_as_numbers(table[column], names) for column in ("label", "prediction"))
        shares = columns[3:] if probabilities else []
        numbers = [read_numbers(table[column], "a probability") for column in shares]
        leaked = read_flags(table[LEAKED]) if known else None
    except FileNotFoundError:
        raise HeadError(f"there is no {path}", hint="train with that split extracted") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise HeadError(f"cannot read {path}: {error}", hint="train that head again") from error
    if labels.shape != predicted.shape:
        raise HeadError(
            f"cannot read {path}: lists of labels beside single ones", hint="train that head again"
        )
    matrix = np.column_stack(numbers) if numbers else np.zeros((len(labels), 0))
    return Predictions(hashes, labels, predicted, matrix, names, leaked=leaked)


def _label_names(columns: list[str], path: Path) -> tuple[str, ...]:
    """The labels that the columns are for."""
    names = tuple(column.removeprefix(PROBABILITY) for column in columns[3:])
    fine = all(column.startswith(PROBABILITY) for column in columns[3:]) and len(set(names)) == len(names)
    if tuple(columns[:3]) != TEXTS or not names or not fine:
        found = ", ".join(columns[:5]) + (", ..." if len(columns) > 5 else "")
        wanted = f"{', '.join(TEXTS)}, {PROBABILITY}<label>, ..."
        raise HeadError(f"{path} holds no predictions: its columns are {found}", hint=f"wanted: {wanted}")
    return names


def _as_texts(values: np.ndarray, names: tuple[str, ...]) -> pa.Array:
    """Label numbers `[N]` as texts, multi-hot `[N, C]` as lists of texts."""
    import pyarrow as pa

    texts = pa.array(names, pa.string())
    if values.ndim == 1:
        return texts.take(pa.array(values, pa.int64()))
    ends = np.cumsum(np.count_nonzero(values, axis=1))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, texts.take(pa.array(np.nonzero(values)[1], pa.int64())))


def _as_numbers(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """The reverse of `_as_texts`: int64 `[N]` or uint8 `[N, C]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise ValueError("an empty label")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _numbers_of(column.cast(pa.string()), names)
    lists = column.cast(pa.list_(pa.string()))
    values = np.zeros((len(lists), len(names)), np.uint8)
    rows = pc.list_parent_indices(lists).to_numpy()
    values[rows, _numbers_of(pc.list_flatten(lists), names)] = 1
    return values


def _numbers_of(texts: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """Texts `[N]` -> their place in `names`, int64 `[N]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(texts, value_set=pa.array(names, pa.string()))
    if found.null_count:
        strange = pc.filter(texts, pc.is_null(found))[0].as_py()
        raise ValueError("an empty label" if strange is None else f"label {strange!r} has no probability")
    return np.asarray(found.to_numpy(), np.int64)


def read_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """Hex texts -> uint8 `[N, 32]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.utf8_length(column.cast(pa.string()))
    if column.null_count or not pc.all(pc.equal(lengths, 64), min_count=0).as_py():
        raise ValueError("row_hash is not 64 hexadecimal digits everywhere")
    content = bytes.fromhex("".join(column.to_pylist()))  # ValueError for other digits; skips blanks
    return np.frombuffer(content, np.uint8).reshape(len(column), 32)


def read_numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Finite float64 `[N]`.

    Args:
        what: one of them, for the message.

    Raises:
        ValueError: one is missing or not finite.
    """
    import pyarrow as pa

    values = np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    if column.null_count or not np.isfinite(values).all():
        raise ValueError(f"{what} is missing, NaN or infinite")
    return values


def read_flags(column: pa.ChunkedArray) -> np.ndarray:
    """bool `[N]`."""
    import pyarrow as pa

    if column.null_count:
        raise ValueError("leaked is empty in a row")
    return np.asarray(column.cast(pa.bool_()).to_numpy(), bool)
