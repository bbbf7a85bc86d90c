"""Which columns of a source hold text, label and second text: as named, or by usual names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from featcache.errors import SourceError, closest
from featcache.settings import DataSettings

# A column of an earlier rank is taken before those of later ones.
_TEXT_RANKS = (
    ("text", "文本"),
    (
        *("sentence", "text_a", "review", "content", "comment", "评论", "内容"),
        *("sentence1", "premise", "question", "question1"),
    ),
    ("document", "body", "utterance", "tweet", "query"),
    ("title", "headline"),
    ("正文", "评论内容", "评价内容", "文本内容", "评价", "句子", "微博", "comment_text", "review_text"),
    ("标题", "新闻标题", "问题", "摘要", "review_body", "reviewtext", "post", "message"),
)
_LABEL_RANKS = (
    ("label", "labels", "标签"),
    ("target", "class", "category", "sentiment", "stars", "y", "类别"),
    ("情感", "情感倾向", "情感标签", "情感极性", "分类", "类型", "标注", "label_name", "intent", "topic"),
    ("评分", "星级", "rating", "score", "cat"),
)
_YES_OR_NO = "是否"  # a column whose name begins so asks a question that a label answers
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("句子1", "句子2"),
)
USUAL_NAMES = frozenset(itertools.chain(("id", "idx", "index"), *_TEXT_RANKS, *_LABEL_RANKS, *_PAIRS))
_SHOWN = 20  # names in a message
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class SourceColumns(NamedTuple):
    """The columns of text, label and second text; no pair for single texts."""

    text: str
    label: str
    pair: str | None


@dataclass(frozen=True)
class ReadColumns:
    """The columns of a source that are read.

    Attributes:
        text: joined by a line break if there are several.
        label: none where labels are not needed.
        pair: of the second text.
        flags: each of the label columns is 0 or 1, and its name is a label.
    """

    text: tuple[str, ...]
    label: tuple[str, ...] = ()
    pair: str | None = None
    flags: bool = False

    @property
    def names(self) -> list[str]:
        return [*self.text, *self.label, *([self.pair] if self.pair is not None else [])]

    @property
    def single(self) -> SourceColumns | None:
        """The columns where text and label have one each, and need no work."""
        plain = len(self.text) == len(self.label) == 1 and not self.flags
        return SourceColumns(self.text[0], self.label[0], self.pair) if plain else None

    def text_of(self, values: Mapping[str, object]) -> object:
        """The text of a row; parts that are null or blank are left out of one that is joined."""
        parts = [values.get(name) for name in self.text]
        if len(parts) == 1:
            return parts[0]
        strange = next((part for part in parts if not (part is None or isinstance(part, str))), None)
        if strange is not None:
            return strange
        texts = [part for part in parts if isinstance(part, str)]
        return "\n".join(text for text in texts if text.strip()) if texts else None

    def label_of(self, values: Mapping[str, object]) -> object:
        """The label of a row; of columns of 0 and 1 the places of those that are 1."""
        if not self.flags:
            return values.get(self.label[0])
        flags = [_flag(name, values.get(name)) for name in self.label]
        return None if None in flags else [place for place, flag in enumerate(flags) if flag]

    def pair_of(self, values: Mapping[str, object]) -> object:
        return None if self.pair is None else values.get(self.pair)

    def note(self, columns: Sequence[str]) -> str:
        """What is read and what is not, in one line."""
        said = [f"text: {' + '.join(self.text)}"]
        said += [] if self.pair is None else [f"second text: {self.pair}"]
        said += [f"label{'s' if self.flags else ''}: {', '.join(self.label)}"] if self.label else []
        rest = [name for name in columns if name not in self.names]
        said += [f"not read: {_listed(rest)}"] if rest else []
        return "; ".join(said)


def pick_columns(columns: Sequence[str], data: DataSettings, where: str) -> ReadColumns:
    """The text, label and pair columns: as `data` names them, or by usual names.

    Raises:
        SourceError: a named column does not exist, or none or several columns have a usual name.
    """
    pair = None if data.pair_column is None else _named(columns, data.pair_column, "pair", where)
    if data.label_columns is not None:
        label = tuple(_named(columns, name, "label", where) for name in data.label_columns)
    else:
        label = (_column(columns, data.label_column, "label", where),)
    picked = _with_text(columns, data, where, ReadColumns((), label, pair, data.label_columns is not None))
    if len(set(picked.names)) < len(picked.names):
        raise SourceError(
            f"{where}: one column cannot be two of text, label and pair",
            hint="name them with --text-column, --label-column and --pair-column",
        )
    return picked


def pick_text_columns(columns: Sequence[str], data: DataSettings, where: str) -> ReadColumns:
    """The text and pair columns as `pick_columns` chooses them; a label column need not be there."""
    pair = None if data.pair_column is None else _named(columns, data.pair_column, "pair", where)
    taken = {name.lower() for name in (data.text_column, data.pair_column) if name}
    named = {name.lower() for name in (data.label_column, *(data.label_columns or ())) if name} - taken
    label = tuple(name for name in columns if name.lower() in named)
    picked = _with_text(columns, data, where, ReadColumns((), label, pair))
    if pair in picked.text:
        raise SourceError(
            f"{where}: one column cannot be both text and pair",
            hint="name them with --text-column and --pair-column",
        )
    return ReadColumns(picked.text, (), picked.pair)


def _with_text(columns: Sequence[str], data: DataSettings, where: str, picked: ReadColumns) -> ReadColumns:
    """`picked` with the text column; a pair of usual names is found together."""
    wanted = data.text_column
    if wanted is not None:
        parts = [wanted]
        if "," in wanted and wanted.lower() not in {name.lower() for name in columns}:
            parts = [part.strip() for part in wanted.split(",")]
        text = tuple(_named(columns, part, "text", where) for part in parts)
        return ReadColumns(text, picked.label, picked.pair, picked.flags)
    free = [column for column in columns if column not in (picked.pair, *picked.label)]
    if picked.pair is None:
        lowered = {column.strip().lower(): column for column in free}
        pairs = [names for names in _PAIRS if set(names) <= set(lowered)]
        if len(pairs) == 1:
            first, second = (lowered[name] for name in pairs[0])
            return ReadColumns((first,), picked.label, second, picked.flags)
    return ReadColumns((_column(free, None, "text", where),), picked.label, picked.pair, picked.flags)


def _column(columns: Sequence[str], wanted: str | None, role: str, where: str) -> str:
    if wanted is not None:
        return _named(columns, wanted, role, where)
    for rank in _TEXT_RANKS if role == "text" else (*_LABEL_RANKS, ()):
        found = [column for column in columns if column.strip().lower() in rank]
        if not rank:
            found = [column for column in columns if column.strip().startswith(_YES_OR_NO)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _column_error(f"more than one {role} column", found, role, where)
    raise _column_error(f"no {role} column found", columns, role, where)


def _named(columns: Sequence[str], wanted: str, role: str, where: str) -> str:
    same = [column for column in columns if column.lower() == wanted.lower()]
    if wanted in columns or len(same) == 1:
        return wanted if wanted in columns else same[0]
    close = closest(wanted, columns)
    ask = f" (did you mean {close!r}?)" if close else ""
    raise _column_error(f"no column {wanted!r}{ask}", columns, role, where)


def _column_error(what: str, columns: Sequence[str], role: str, where: str) -> SourceError:
    several = "; if each label has a column of 0 and 1: --label-columns A,B,C" if role == "label" else ""
    there = _listed([repr(column) for column in columns])
    return SourceError(f"{what} in {where}; columns: {there}", hint=f"name it with --{role}-column{several}")


def _flag(name: str, value: object) -> bool | None:
    """Whether the label `name` is given; None for a null, a blank and -1, which hide it."""
    text = "" if value is None or value != value else str(value).strip().lower()
    if text in ("", "-1", "-1.0"):
        return None
    if text not in _FLAGS:
        raise SourceError(
            f"column {name!r} has {value!r:.60}: a column of --label-columns has 0 or 1 in every row",
            hint="write 1 where the label applies and 0 where not",
        )
    return _FLAGS[text]


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
