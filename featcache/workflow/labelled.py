"""A table in memory with the columns that a prediction adds, as the kind of table that it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featcache.data.columns import pick_text_columns
from featcache.errors import SourceError
from featcache.settings import DataSettings
from featcache.workflow.tables import arrow_table

if TYPE_CHECKING:
    from featcache.prediction.predictor import NumberPrediction, Predictor


def labelled(predictor: Predictor, table: Any, data: DataSettings) -> Any:
    """`table` with `prediction`, `probability` and so on in columns behind its own.

    Args:
        data: which columns hold the texts.

    Raises:
        SourceError: it has no such column, or has one of the names that are added; or a text is empty.
    """
    arrow = arrow_table(table, "the table of texts")
    picked = pick_text_columns(arrow.column_names, data, "the table of texts")
    names = [*picked.text, *([picked.pair] if picked.pair is not None else [])]
    rows = arrow.select(names).to_pylist()
    texts = [picked.text_of(row) for row in rows]
    pairs = None if picked.pair is None else [picked.pair_of(row) for row in rows]
    added = columns_of(predictor, texts, pairs)
    if taken := [name for name in added if name in arrow.column_names]:
        raise SourceError(f"the table has a column {taken[0]} already", hint="rename or drop it")
    return _with_columns(table, arrow, added)


def columns_of(
    predictor: Predictor, texts: Sequence[Any], pairs: Sequence[Any] | None
) -> dict[str, list[Any]]:
    """The values of each added column, N each."""
    predictor.check_pairs(pairs is not None)
    if predictor.head.numbers is not None:
        numbers: list[NumberPrediction] = predictor.predict_numbers(texts, pairs)
        return {
            "prediction": [one.number for one in numbers],
            "prediction_low": [one.low for one in numbers],
            "prediction_high": [one.high for one in numbers],
            "truncated": [one.truncated for one in numbers],
        }
    found, several = predictor.predict(texts, pairs), predictor.head.multi_label
    labels = [list(one.labels) if several else None if one.abstained else one.label for one in found]
    columns: dict[str, list[Any]] = {
        "prediction": labels,
        "probability": [one.probability for one in found],
        "truncated": [one.truncated for one in found],
    }
    if predictor.head.abstention is not None:
        columns |= {"abstained": [one.abstained for one in found], "reason": [one.reason for one in found]}
    return columns


def _with_columns(table: Any, arrow: Any, added: Mapping[str, list[Any]]) -> Any:
    """The same kind of table: pandas by `assign`, datasets by `add_column`, others as Arrow tables."""
    if hasattr(table, "assign"):
        return table.assign(**added)
    if hasattr(table, "add_column"):
        for name, values in added.items():
            table = table.add_column(name, values)
        return table
    import pyarrow as pa

    for name, values in added.items():
        arrow = arrow.append_column(name, pa.array(values))
    return arrow
