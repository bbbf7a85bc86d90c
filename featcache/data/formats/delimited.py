"""csv and tsv files: how one is written, and its rows.

The parser is stricter than usual ones: a text called "NA" stays a text, a quote that is never closed
costs its line and no other, and a line with more or fewer fields than the first one is a broken row.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from featcache.data.columns import USUAL_NAMES
from featcache.data.formats.encodings import NAME_IT
from featcache.data.formats.lines import Lines, Row
from featcache.errors import SourceError
from featcache.settings import DataSettings

INTEGER = re.compile(r"[+-]?\d{1,18}")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": 'a quote in a quoted text that is not written twice: ""',
}


@dataclass(frozen=True)
class DelimitedLayout:
    """How a csv or tsv file is written.

    Attributes:
        quoted: a double quote is markup; else it is a character of the text.
        header: the first line names the columns.
    """

    delimiter: str
    quoted: bool
    header: bool
    columns: list[str]


def read_layout(
    lines: Lines, data: DataSettings, *, tabs: bool, header: bool = True, quoted: bool | None = None
) -> DelimitedLayout:
    """The layout of a file; the next line of `lines` is its header or first row afterwards.

    In a file with tabs all lines decide about quotes, so that it is read once more for that.

    Args:
        lines: of which nothing was read.
        data: a column that is named there shows that the first line is a header.
        tabs: only tabs separate fields.
        header: False: the file has none; True: it has one unless the first line looks like a row.
        quoted: whether quotes are markup, where that is known.

    Raises:
        SourceError: the file is empty, or its first line cannot be read or names a column twice.
    """
    lines.universal = True
    with lines.preview():
        first = next((text for _, text in lines if text.strip()), None)
    if first is None:
        raise SourceError(f"{lines.name} is empty", hint="leave it out, or name a file with rows")
    if wrong := lines.wrong_encoding(first):
        hint = NAME_IT if wrong.startswith("not") else "are its line ends missing?"
        raise SourceError(f"{lines.name}: the first line is {wrong}", hint=hint)
    candidates = "\t" if tabs else ",\t;"
    delimiter = next((mark for mark in candidates if mark in first), candidates[0])
    if delimiter != "\t":
        quoted = True
    else:
        if quoted is None:
            lines.rewind(universal=False)
            quoted = not _tabs_are_plain(text for _, text in lines)
        lines.rewind(universal=quoted)
    sample = _sample(lines, delimiter, quoted)
    columns, header = columns_of(sample, lines.name, data, header=header)
    return DelimitedLayout(delimiter, quoted, header, columns)


def columns_of(
    sample: Sequence[Sequence[str]], name: str, data: DataSettings, *, header: bool
) -> tuple[list[str], bool]:
    """The columns of a table by its first records, and whether the first one is the header.

    Args:
        header: False: it is none; True: it is one unless it looks like a row.

    Raises:
        SourceError: the header names a column twice.
    """
    if not header:
        return [f"column{place}" for place in range(1, len(sample[0]) + 1)], False
    if _has_header(sample, data):
        return _header(sample[0], name), True
    return _made_up_header(sample), False


def layout_of_pairs(sample: Sequence[Sequence[str]], name: str) -> DelimitedLayout | None:
    """The layout of lines with one tab each; None if neither a header nor labels are found in them."""
    if _usual(sample[0]) < 2 and _label_place(sample) is None:
        return None
    columns, header = columns_of(sample, name, DataSettings(), header=True)
    return DelimitedLayout("\t", quoted=False, header=header, columns=columns)


def delimited_rows(lines: Lines, layout: DelimitedLayout) -> Iterator[Row]:
    """The rows of a file; of one that cannot be parsed only the first line is given up."""
    records = _records(lines, layout.delimiter, layout.quoted)
    width = len(layout.columns)
    for number, record in enumerate(itertools.islice(records, int(layout.header), None), 1):
        line, fields, problem, further = record
        if fields is not None:
            problem = next((wrong for wrong in map(lines.wrong_encoding, fields) if wrong), None)
            if problem is None and len(fields) != width:
                problem = f"{len(fields)} fields; the first line has {width}"
        if fields is None or problem is not None:
            lines.put_back(further)
            yield Row(number, line, None, problem=problem)
        else:
            yield Row(number, line, dict(zip(layout.columns, fields, strict=True)))


class _Record(NamedTuple):
    """One record as it is written; `further` are the lines it takes after its first one."""

    line: int
    fields: list[str] | None
    problem: str | None = None
    further: Sequence[tuple[int, str]] = ()


def _records(lines: Lines, delimiter: str, quoted: bool) -> Iterator[_Record]:
    """The records of all lines that are not blank."""
    if quoted:
        return _quoted_records(lines, delimiter)
    plain = ((number, raw.rstrip("\r\n")) for number, raw in lines)
    return (_Record(number, text.split(delimiter)) for number, text in plain if text)


def _quoted_records(lines: Lines, delimiter: str) -> Iterator[_Record]:
    taken: list[tuple[int, str]] = []
    most = lines.limits.row_chars

    def feed() -> Iterator[str]:
        chars = 0
        for number, text in lines:
            chars = len(text) + (chars if taken else 0)
            taken.append((number, text))
            if len(taken) > 1 and chars > lines.limits.record_chars:
                raise csv.Error("a quote that is never closed")
            yield text

    def parser() -> Any:
        return csv.reader(feed(), delimiter=delimiter, strict=True)

    reader = parser()
    before = csv.field_size_limit()
    while True:
        taken.clear()
        csv.field_size_limit(most + 1)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reader = parser()
            problem = _CSV_ERRORS.get(str(error), str(error))
            yield _Record(taken[0][0], None, problem, taken[1:])
            continue
        finally:
            csv.field_size_limit(before)  # the limit is the process's
        if fields is None:
            return
        if fields:
            yield _Record(taken[0][0], fields, None, taken[1:])


def _sample(lines: Lines, delimiter: str, quoted: bool) -> list[list[str]]:
    """The fields of the first records, the broken ones left out; `lines` stand where they stood."""
    sample, chars = [], 0
    with lines.preview():
        for record in itertools.islice(_records(lines, delimiter, quoted), lines.limits.sample_rows):
            if record.fields is not None:
                sample.append(record.fields)
                chars += sum(map(len, record.fields))
            elif not sample:
                raise SourceError(
                    f"{lines.name}: the first line cannot be read: {record.problem}",
                    hint="is it a csv? --encoding and --no-header say how it is read",
                )
            else:
                lines.put_back(record.further)
            if chars > lines.limits.row_chars:
                break
    return sample


def _tabs_are_plain(lines: Iterable[str]) -> bool:
    """True if a quote in this tab-separated file is just a character.

    If every line has as many tabs, no field spans lines. Quotes are then markup only if each field
    with a quote is well quoted, and some field shows that a csv writer was at work: a doubled quote
    inside, or a column that is quoted on every line.
    """
    width: int | None = None
    stray = doubled = False
    always_quoted: set[int] | None = None
    for line in lines:
        if not (line := line.rstrip("\r\n")):
            continue
        tabs = line.count("\t")
        if tabs != (width := tabs if width is None else width):
            return False
        quoted = set()
        if '"' in line:
            for place, text in enumerate(line.split("\t")):
                if '"' in text and _QUOTED.fullmatch(text):
                    quoted.add(place)
                    doubled = doubled or '"' in text[1:-1]
                elif '"' in text:
                    stray = True
        always_quoted = quoted if always_quoted is None else always_quoted & quoted
    return stray or not (doubled or always_quoted)


def _has_header(sample: Sequence[Sequence[str]], data: DataSettings) -> bool:
    first = {name.strip().lower() for name in sample[0]}
    named = [data.text_column, data.pair_column, data.label_column, *(data.label_columns or ())]
    named += (data.text_column or "").split(",")
    if any(name and name.strip().lower() in first for name in named):
        return True
    return _usual(sample[0]) > 1 or _label_place(sample) is None


def _usual(fields: Sequence[str]) -> int:
    """How many fields are usual names: one may be a short text or a label such as "y"; two are a header."""
    return sum(name.strip().lower() in USUAL_NAMES for name in fields)


def _label_place(sample: Sequence[Sequence[str]]) -> int | None:
    """The place (-1 or 0) whose value in the first line is a label like those below it."""
    best: tuple[int, int] | None = None
    for place in (-1, 0) if len(sample[0]) > 1 else ():
        first, *others = (fields[place].strip() for fields in sample)
        numbers = all(INTEGER.fullmatch(value) for value in (first, *others))
        distinct = len({first, *others})
        if (numbers or first in others) and (best is None or distinct < best[0]):
            best = distinct, place
    return None if best is None else best[1]


def _header(fields: Sequence[str], name: str) -> list[str]:
    columns = [text.strip() or f"column{place}" for place, text in enumerate(fields, 1)]
    twice = sorted(column for column, times in Counter(columns).items() if times > 1)
    if twice:
        raise SourceError(
            f"{name}: the first line names a column twice: {', '.join(twice)}",
            hint="give every column a name of its own",
        )
    return columns


def _made_up_header(sample: Sequence[Sequence[str]]) -> list[str]:
    """text and label for a file of two columns without a header; else column1, ... and label."""
    width = len(sample[0])
    columns = ["text"] * 2 if width == 2 else [f"column{place}" for place in range(1, width + 1)]
    columns[cast(int, _label_place(sample))] = "label"
    return columns
