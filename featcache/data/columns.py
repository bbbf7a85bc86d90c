"""Which columns of a source hold text, label and second text: as named, or by usual names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from featcache.errors import SourceError
from featcache.settings import DataSettings

_TEXT_RANKS = (
    ("text", "文本"),
    (
        *("sentence", "text_a", "review", "content", "comment", "评论", "内容"),
        *("sentence1", "premise", "question", "question1"),
    ),
    ("document", "body", "utterance", "tweet", "query"),
    ("title", "headline"),
)
_LABEL_RANKS = (
    ("label", "labels", "标签"),
    ("target", "class", "category", "sentiment", "stars", "y", "类别"),
)
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
)
_NO_LABEL = "(no label is needed)"
USUAL_NAMES = frozenset(itertools.chain(("id", "idx", "index"), *_TEXT_RANKS, *_LABEL_RANKS, *_PAIRS))


class SourceColumns(NamedTuple):
    """The columns of text, label and second text; no pair for single texts."""

    text: str
    label: str
    pair: str | None


def pick_columns(columns: Sequence[str], data: DataSettings, where: str) -> SourceColumns:
    """The text, label and pair columns: as `data` names them, or by usual names.

    Raises:
        SourceError: a named column does not exist, or none or several columns have a usual name.
    """
    pair = None if data.pair_column is None else _named(columns, data.pair_column, "pair", where)
    label = _column(columns, data.label_column, "label", _LABEL_RANKS, where)
    free = [column for column in columns if column not in (pair, label)]
    if data.text_column is None and pair is None:
        lowered = {column.strip().lower(): column for column in free}
        pairs = [names for names in _PAIRS if set(names) <= set(lowered)]
        if len(pairs) == 1:
            return SourceColumns(lowered[pairs[0][0]], label, lowered[pairs[0][1]])
    text = _column(
        free if data.text_column is None else columns, data.text_column, "text", _TEXT_RANKS, where
    )
    if len({text, label, pair}) < 3:
        raise SourceError(
            f"{where}: one column cannot be two of text, label and pair",
            hint="name them with --text-column, --label-column and --pair-column",
        )
    return SourceColumns(text, label, pair)


def pick_text_columns(columns: Sequence[str], data: DataSettings, where: str) -> tuple[str, str | None]:
    """The text and pair columns as `pick_columns` chooses them; a label column need not be there."""
    label = data.label_column
    named = {name.lower() for name in (data.text_column, data.pair_column) if name}
    if label is None or label.lower() not in {name.lower() for name in columns} - named:
        columns, data = [*columns, _NO_LABEL], replace(data, label_column=_NO_LABEL)
    picked = pick_columns(columns, data, where)
    return picked.text, picked.pair


def _column(
    columns: Sequence[str],
    wanted: str | None,
    role: str,
    ranks: Sequence[Sequence[str]],
    where: str,
) -> str:
    if wanted is not None:
        return _named(columns, wanted, role, where)
    for rank in ranks:
        found = [column for column in columns if column.strip().lower() in rank]
        if len(found) == 1:
            return found[0]
        if found:
            raise _column_error(f"more than one {role} column", found, role, where)
    raise _column_error(f"no {role} column found", columns, role, where)


def _named(columns: Sequence[str], wanted: str, role: str, where: str) -> str:
    same = [column for column in columns if column.lower() == wanted.lower()]
    if wanted in columns or len(same) == 1:
        return wanted if wanted in columns else same[0]
    raise _column_error(f"no column {wanted!r}", columns, role, where)


def _column_error(what: str, columns: Sequence[str], role: str, where: str) -> SourceError:
    there = ", ".join(repr(column) for column in columns)
    return SourceError(f"{what} in {where}; columns: {there}", hint=f"name it with --{role}-column")
