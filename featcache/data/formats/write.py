"""Labelled rows as csv, tsv, JSON, parquet or plain labels, appended chunk by chunk.

What is appended can be cut off again at any chunk, so that an interrupted run goes on from the last one
that is durable. A parquet file cannot grow like that: its chunks are kept as Arrow messages until the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.data.formats.row_lines import Chunk, Row, RowFile
from featcache.errors import SourceError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

DIGITS = 6  # of a probability in a text file
GROUP_ROWS = 1 << 16  # rows of a parquet row group
ARRAY = b"[\n"  # how a JSON array begins


class Answers:
    """What the head says of the usable rows of a chunk.

    Args:
        places: int64 `[M]`, which rows of the chunk.
        labels: M lists of label names; of one name each unless the head is multi-label.
        probability: float64 `[M]`, of the label; see `Prediction.probability`.
        probabilities: float64 `[M, C]`.
        truncated: bool `[M]`.
    """

    def __init__(
        self,
        places: np.ndarray,
        labels: list[list[str]],
        probability: np.ndarray,
        probabilities: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        self.places, self.labels, self.probability = places, labels, probability
        self.probabilities, self.truncated = probabilities, truncated


class Writer:
    """Rows with their answers as bytes to be appended to one file.

    Args:
        kind: one of `row_files.KINDS`; json is an array for rows that were read from one, else lines.
        names: C label names.
        several: multi-label: the prediction is a list of labels.
        prefix: put before the name of every added column.

    Raises:
        UsageError: an added column has the name of one that is there.
    """

    def __init__(
        self, kind: str, rows: RowFile, names: Sequence[str], *, several: bool, prefix: str = ""
    ) -> None:
        self.kind, self.rows, self.several = kind, rows, several
        self.array = kind == "json" and rows.array
        self._end = b",\n" if self.array else b"\n"  # of a row
        self.added = [
            prefix + name
            for name in ("prediction", "probability", *(f"probability:{name}" for name in names), "truncated")
        ]
        taken = sorted(set(self.added) & set(rows.columns))
        if taken and kind != "txt":
            raise UsageError(
                f"{rows.name} has a column {taken[0]!r} already",
                hint="name the added columns otherwise, e.g. --prefix new_",
            )
        self._encode: Callable[[Chunk, Answers], bytes] = {
            "csv": self._delimited,
            "tsv": self._delimited,
            "json": self._lines,
            "jsonl": self._lines,
            "txt": self._labels,
            "parquet": self._message,
        }[kind]

    def head(self) -> bytes:
        """What comes before the first row."""
        if self.kind in ("csv", "tsv"):
            return self._csv([[*self.rows.columns, *self.added]])
        return ARRAY if self.array else b""

    def chunk(self, chunk: Chunk, answers: Answers) -> bytes:
        """The rows of a chunk that have columns; one without a usable text has no answer."""
        return self._encode(chunk, answers)

    def finish(self, log: Path, target: Path) -> Path:
        """The file to be published, made of what was appended to `log`."""
        if self.array:
            return self._to_array(log, target)
        return self._to_parquet(log, target) if self.kind == "parquet" else log

    # -- text files -------------------------------------------------------------------------------

    def _delimited(self, chunk: Chunk, answers: Answers) -> bytes:
        said = self._said(answers, rounded=True)
        blank = [""] * len(self.added)
        lines = []
        for place, (row, values) in enumerate(zip(chunk.rows, self._values(chunk), strict=True)):
            if values is not None:
                self._refuse_new(values, row)
                lines.append(
                    [*(_cell(values.get(name)) for name in self.rows.columns), *said.get(place, blank)]
                )
        return self._csv([[_cell(value) for value in line] for line in lines])

    def _csv(self, lines: list[list[Any]]) -> bytes:
        if self.kind == "tsv" and self.rows.plain_tabs:
            return "".join("\t".join(line) + "\n" for line in lines).encode()
        out = io.StringIO()
        csv.writer(out, delimiter="\t" if self.kind == "tsv" else ",", lineterminator="\n").writerows(lines)
        return out.getvalue().encode()

    def _lines(self, chunk: Chunk, answers: Answers) -> bytes:
        said = self._said(answers, rounded=True)
        blank = [None] * len(self.added)
        found = []
        for place, (row, values) in enumerate(zip(chunk.rows, self._values(chunk), strict=True)):
            if values is not None:
                taken = set(values) & set(self.added)
                if taken:
                    raise SourceError(
                        f"{self.rows.name}, line {row.line}: it has a {sorted(taken)[0]!r} already",
                        hint="name the added columns otherwise, e.g. --prefix new_",
                    )
                whole = values | dict(zip(self.added, said.get(place, blank), strict=True))
                found.append(_json(whole) + self._end)
        return b"".join(found)

    def _to_array(self, log: Path, target: Path) -> Path:
        """A copy that is closed in the place of the last comma: `log` can still be gone on with."""
        shutil.copyfile(log, target)
        with target.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.truncate(file.tell() - len(self._end) if file.tell() > len(ARRAY) else len(ARRAY))
            file.seek(0, os.SEEK_END)
            file.write(b"\n]\n")
        return target

    def _labels(self, chunk: Chunk, answers: Answers) -> bytes:
        """One line a row, empty for one without an answer, so that lines stay side by side."""
        said = dict(zip(answers.places.tolist(), answers.labels, strict=True))
        lines = (" ".join(", ".join(said.get(place, [])).split()) for place in range(len(chunk.rows)))
        return "".join(line + "\n" for line in lines).encode()

    def _said(self, answers: Answers, *, rounded: bool) -> dict[int, list[Any]]:
        """The values of the added columns by the row's place."""
        digits = DIGITS if rounded else 17
        shares = answers.probabilities.round(digits).tolist()
        own = answers.probability.round(digits).tolist()
        cut = answers.truncated.tolist()
        return {
            place: [answers.labels[n] if self.several else answers.labels[n][0], own[n], *shares[n], cut[n]]
            for n, place in enumerate(answers.places.tolist())
        }

    def _values(self, chunk: Chunk) -> list[dict[str, Any] | None]:
        """The columns of each row; None for a row that has none."""
        if chunk.table is None:
            return [row.values for row in chunk.rows]
        try:
            found: list[dict[str, Any] | None] = chunk.table.to_pylist()
        except UnicodeDecodeError:
            raise SourceError(
                f"a column of texts of {self.rows.name} holds bytes that are no UTF-8",
                hint="a parquet file as --output keeps them",
            ) from None
        return found

    def _refuse_new(self, values: Mapping[str, Any], row: Row) -> None:
        if len(values) > len(self.rows.columns) or not values.keys() <= set(self.rows.columns):
            new = next(name for name in values if name not in self.rows.columns)
            raise SourceError(
                f"{self.rows.name}, line {row.line}: {new!r} is a column that no row before had",
                hint="a jsonl file as --output keeps what each row has",
            )

    # -- parquet ----------------------------------------------------------------------------------

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        own = self.rows.schema or pa.schema([(name, pa.large_string()) for name in self.rows.columns])
        text = pa.large_string()
        kinds = [pa.list_(text) if self.several else text]
        kinds += [pa.float64()] * (len(self.added) - 2) + [pa.bool_()]
        fields = [pa.field(name, kind) for name, kind in zip(self.added, kinds, strict=True)]
        return pa.schema([*own, *fields], metadata=own.metadata)

    def _message(self, chunk: Chunk, answers: Answers) -> bytes:
        """A stream of one Arrow record batch behind its length."""
        import pyarrow as pa

        schema = self._schema()
        said = self._said(answers, rounded=False)
        blank = [None] * len(self.added)
        kept = [
            place for place, row in enumerate(chunk.rows) if chunk.table is not None or row.values is not None
        ]
        rows = [said.get(place, blank) for place in kept]
        fields = list(schema)[-len(self.added) :]
        new = [pa.array([row[n] for row in rows], field.type) for n, field in enumerate(fields)]
        if chunk.table is not None:
            old = chunk.table.combine_chunks().to_batches()[0].columns
        else:
            values = [chunk.rows[place].values or {} for place in kept]
            for one, place in zip(values, kept, strict=True):
                self._refuse_new(one, chunk.rows[place])
            old = [
                pa.array([_text(one.get(name)) for one in values], pa.large_string())
                for name in self.rows.columns
            ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:  # of its own: dictionaries may differ by chunk
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


def _text(value: Any) -> str | None:
    """A value of a JSON row in a column of texts."""
    if value is None or isinstance(value, str):
        return _encodable(value)
    return json.dumps(value)


def _encodable(value: str | None) -> str | None:
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def _cell(value: Any) -> str:
    """A value in a csv cell: texts as they are, nulls empty, lists and the like as JSON."""
    if isinstance(value, str):
        return _encodable(value) or ""
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
    except UnicodeEncodeError:  # a lone surrogate in some column: as it was spelled
        return json.dumps(values, default=str).encode()
