"""Labelled rows as csv, tsv, JSON, parquet or plain labels, appended batch by batch.

What is appended can be cut off again after any batch, so that an interrupted call goes on from the last one
that is durable. A parquet file cannot grow like that: its batches are kept as Arrow messages until the end.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.data.formats.lines import Row
from featcache.data.formats.open import RowBatch, RowFile
from featcache.errors import SourceError, UsageError
from featcache.system.text import one_line, spreadsheet_cell

if TYPE_CHECKING:
    import pyarrow as pa

DIGITS = 6  # of a probability in a text file
GROUP_ROWS = 1 << 16  # rows of a parquet row group
ABSTENTION = ("abstained", "out_of_scope", "reason")  # columns
ARRAY = b"[\n"  # how a JSON array begins
_OTHER_NAMES = "name the added columns otherwise, e.g. --prefix new_"


@dataclass(frozen=True)
class OutputForm:
    """How labelled rows are written.

    Attributes:
        kind: one of `open.KINDS`; json is an array for rows that were read from one, else lines.
        prefix: put before the name of every added column.
        raw_cells: csv and tsv: write texts that a spreadsheet would calculate as they are, without the `'`
            that `spreadsheet_cell` puts in front.
    """

    kind: str
    prefix: str = ""
    raw_cells: bool = False


@dataclass(frozen=True)
class RowAbstentions:
    """For which of M rows a head gives no answer.

    Attributes:
        abstained: bool `[M]`.
        out_of_scope: float64 `[M]`, see `Prediction.out_of_scope`.
        reasons: M sentences; None for an answer.
    """

    abstained: np.ndarray
    out_of_scope: np.ndarray
    reasons: list[str | None]


@dataclass(frozen=True)
class RowNumbers:
    """The numbers that a head predicts for M rows.

    Attributes:
        values: float64 `[M]`.
        low, high: ends of their intervals, `[M]`; of None for a head without intervals.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class RowPredictions:
    """What the head predicts for the usable rows of a batch.

    Attributes:
        places: int64 `[M]`, which rows of the batch.
        labels: M lists of label names; of one name each, or none without an answer, unless the head is
            multi-label.
        probability: float64 `[M]`, of the label; see `Prediction.probability`.
        probabilities: float64 `[M, C]`.
        truncated: bool `[M]`.
        mostly_unknown: how many of the texts are mostly unknown to the model's vocabulary.
        abstentions: None for a head that always answers.
        numbers: predicted numbers and the ends of their intervals; None of labels. `labels` then has the
            number of each row as a text, and there are no probabilities.
    """

    places: np.ndarray
    labels: list[list[str]]
    probability: np.ndarray
    probabilities: np.ndarray
    truncated: np.ndarray
    mostly_unknown: int = 0
    abstentions: RowAbstentions | None = None
    numbers: RowNumbers | None = None


class Writer:
    """Rows with their predictions as bytes to be appended to one file.

    Args:
        names: C label names.
        several: multi-label: the prediction is a list of labels.
        abstains: the head may give no answer; columns say where, and why.

    Attributes:
        changed: cells that were not written as they are, see `OutputForm.raw_cells`.

    Raises:
        UsageError: the file has a column with the name of an added one.
    """

    def __init__(
        self, form: OutputForm, rows: RowFile, names: Sequence[str], *, several: bool, abstains: bool = False
    ) -> None:
        self.kind, self.rows, self.several, self.abstains = form.kind, rows, several, abstains
        self.names, self.raw_cells, self.changed = names, form.raw_cells, 0
        self.array = form.kind == "json" and rows.array
        self._end = b",\n" if self.array else b"\n"  # of a row
        self.added = [form.prefix + name for name in self._added_names()]
        taken = sorted(set(self.added) & set(rows.columns))
        if taken and form.kind != "txt":
            raise UsageError(f"{rows.name} has a column {taken[0]!r} already", hint=_OTHER_NAMES)

    def _added_names(self) -> list[str]:
        """Names of the added columns."""
        shares = (f"probability:{name}" for name in self.names)
        return ["prediction", "probability", *shares, "truncated", *(ABSTENTION if self.abstains else ())]

    def _added_types(self) -> list[pa.DataType]:
        """Types of the added columns in a parquet file."""
        import pyarrow as pa

        text = pa.large_string()
        types = [pa.list_(text) if self.several else text]
        types += [pa.float64()] * (1 + len(self.names)) + [pa.bool_()]
        return types + ([pa.bool_(), pa.float64(), text] if self.abstains else [])

    def head(self) -> bytes:
        """What comes before the first row."""
        if self.kind in ("csv", "tsv"):
            mark = codecs.BOM_UTF8 if self.rows.needs_mark else b""
            return mark + self._csv([list(map(self._cell, (*self.rows.columns, *self.added)))])
        return ARRAY if self.array else b""

    def batch(self, batch: RowBatch, predictions: RowPredictions) -> bytes:
        """The rows of a batch that could be parsed; those without a usable text have no prediction."""
        if self.kind == "txt":
            return _labels(batch, predictions)
        if self.kind == "parquet":
            return self._message(batch, predictions)
        rows = self._with_added(batch, predictions)
        if self.kind in ("csv", "tsv"):
            found = ((*self._in_columns(row, values), *added) for row, values, added in rows)
            return self._csv([list(map(self._cell, cells)) for cells in found])
        return b"".join(self._json_row(row, values, added) for row, values, added in rows)

    def finish(self, log: Path, target: Path) -> Path:
        """The file to be published, made of what was appended to `log`."""
        if self.array:
            return self._to_array(log, target)
        return self._to_parquet(log, target) if self.kind == "parquet" else log

    def _with_added(
        self, batch: RowBatch, predictions: RowPredictions
    ) -> Iterator[tuple[Row, dict[str, Any], list[Any]]]:
        """Each row that has columns, these, and the values of the added columns."""
        added = self._added_values(predictions, DIGITS)
        blank = [None] * len(self.added)
        for place, (row, values) in enumerate(zip(batch.rows, self._columns(batch), strict=True)):
            if values is not None:
                yield row, values, added.get(place, blank)

    def _added_values(self, predictions: RowPredictions, digits: int) -> dict[int, list[Any]]:
        """The values of the added columns by the row's place."""
        labels: Sequence[Any] = predictions.labels
        if not self.several:
            labels = [one[0] if one else None for one in labels]
        columns = [
            labels,
            predictions.probability.round(digits).tolist(),
            *predictions.probabilities.round(digits).T.tolist(),
            predictions.truncated.tolist(),
        ]
        if held := predictions.abstentions:
            columns += [held.abstained.tolist(), held.out_of_scope.round(digits).tolist(), held.reasons]
        rows = zip(*columns, strict=True)
        return dict(zip(predictions.places.tolist(), map(list, rows), strict=True))

    def _columns(self, batch: RowBatch) -> Sequence[dict[str, Any] | None]:
        """The columns of each row; None for a row that could not be parsed."""
        if batch.table is None:
            return [row.values for row in batch.rows]
        try:
            values: list[dict[str, Any]] = batch.table.to_pylist()
        except UnicodeDecodeError:
            raise SourceError(
                f"a column of texts of {self.rows.name} holds bytes that are not UTF-8",
                hint="a parquet file as --output keeps them",
            ) from None
        return values

    def _in_columns(self, row: Row, values: Mapping[str, Any]) -> Iterator[Any]:
        """The values of a row in the order of the file's columns; an error for one in no column."""
        new = values.keys() - set(self.rows.columns)
        if new:
            raise SourceError(
                f"{self.rows.name}, line {row.line}: {next(n for n in values if n in new)!r} is a column"
                " that no row before had",
                hint="a jsonl file as --output keeps what each row has",
            )
        return map(values.get, self.rows.columns)

    # -- text files -------------------------------------------------------------------------------

    def _cell(self, value: Any) -> str:
        text = _cell(value)
        if self.raw_cells or not isinstance(value, str):
            return text
        shown = spreadsheet_cell(text)
        self.changed += shown != text
        return shown

    def _csv(self, lines: list[list[str]]) -> bytes:
        if self.kind == "tsv" and self.rows.plain_tabs:
            return "".join("\t".join(line) + "\n" for line in lines).encode()
        out = io.StringIO()
        csv.writer(out, delimiter="\t" if self.kind == "tsv" else ",", lineterminator="\n").writerows(lines)
        return out.getvalue().encode()

    def _json_row(self, row: Row, values: dict[str, Any], added: list[Any]) -> bytes:
        if taken := values.keys() & set(self.added):
            raise SourceError(
                f"{self.rows.name}, line {row.line}: it has a {sorted(taken)[0]!r} already", hint=_OTHER_NAMES
            )
        return _json(values | dict(zip(self.added, added, strict=True))) + self._end

    def _to_array(self, log: Path, target: Path) -> Path:
        """A copy in which the end of the array replaces the last comma; `log` can still be appended to."""
        shutil.copyfile(log, target)
        with target.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.truncate(max(size - len(self._end), len(ARRAY)))
            file.seek(0, os.SEEK_END)
            file.write(b"\n]\n")
        return target

    # -- parquet ----------------------------------------------------------------------------------

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        own = self.rows.schema or pa.schema([(name, pa.large_string()) for name in self.rows.columns])
        fields = [pa.field(name, kind) for name, kind in zip(self.added, self._added_types(), strict=True)]
        return pa.schema([*own, *fields], metadata=own.metadata)

    def _message(self, batch: RowBatch, predictions: RowPredictions) -> bytes:
        """A stream of one Arrow record batch, after its length."""
        import pyarrow as pa

        schema = self._schema()
        added = self._added_values(predictions, 17)
        blank = [None] * len(self.added)
        kept = [
            place for place, row in enumerate(batch.rows) if batch.table is not None or row.values is not None
        ]
        rows = [added.get(place, blank) for place in kept]
        fields = list(schema)[-len(self.added) :]
        new = [pa.array([row[n] for row in rows], field.type) for n, field in enumerate(fields)]
        if batch.table is not None:
            old = batch.table.combine_chunks().to_batches()[0].columns
        else:
            found = [[*self._in_columns(batch.rows[place], batch.rows[place].values or {})] for place in kept]
            old = [
                pa.array([_text(row[n]) for row in found], pa.large_string())
                for n in range(len(self.rows.columns))
            ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:  # one each: dictionaries may differ by batch
            stream.write_batch(pa.RecordBatch.from_arrays([*old, *new], schema=schema))
        message: bytes = sink.getvalue().to_pybytes()
        return len(message).to_bytes(8, "little") + message

    def _to_parquet(self, log: Path, target: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, held, rows = self._schema(), [], 0
        with log.open("rb") as messages, pq.ParquetWriter(target, schema) as writer:
            while length := int.from_bytes(messages.read(8), "little"):
                held.append(pa.ipc.open_stream(messages.read(length)).read_all())
                rows += len(held[-1])
                if rows >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(held), row_group_size=rows)
                    held, rows = [], 0
            if held:
                writer.write_table(pa.concat_tables(held), row_group_size=max(rows, 1))
        return target


class NumberWriter(Writer):
    """As `Writer`, of a head that predicts numbers."""

    def __init__(self, form: OutputForm, rows: RowFile) -> None:
        super().__init__(form, rows, (), several=False)

    def _added_names(self) -> list[str]:
        return ["prediction", "prediction_low", "prediction_high", "truncated"]

    def _added_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        return [pa.float64()] * 3 + [pa.bool_()]

    def _added_values(self, predictions: RowPredictions, digits: int) -> dict[int, list[Any]]:
        if (found := predictions.numbers) is None:  # no row of the batch can be used
            return {}
        columns = (found.values, found.low, found.high, predictions.truncated)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return dict(zip(predictions.places.tolist(), map(list, rows), strict=True))


def _labels(batch: RowBatch, predictions: RowPredictions) -> bytes:
    """One line a row, empty for one without a prediction, so that lines stay side by side."""
    labels = dict(zip(predictions.places.tolist(), predictions.labels, strict=True))
    lines = (one_line(", ".join(labels.get(place, []))) for place in range(len(batch.rows)))
    return "".join(line + "\n" for line in lines).encode()


def _text(value: Any) -> str | None:
    """A value of a JSON row in a column of texts."""
    if value is None:
        return None
    return _encodable(value) if isinstance(value, str) else json.dumps(value)


def _encodable(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()


def _cell(value: Any) -> str:
    """A value in a csv cell: texts as they are, nulls empty, lists and the like as JSON."""
    if isinstance(value, str):
        return _encodable(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _json(values: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # a lone surrogate in some column is escaped
        return json.dumps(values, default=str).encode()
