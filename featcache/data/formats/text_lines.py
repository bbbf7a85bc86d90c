"""Text files: a text a line, `text<TAB>label`, `label<TAB>text`, or fastText's `__label__x text`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from featcache.data.formats.delimited import DelimitedLayout, layout_of_pairs
from featcache.data.formats.lines import Lines, Row

_MARK = "__label__"


def plain_rows(lines: Lines) -> Iterator[Row]:
    """A row for every line, also for blank ones."""
    for number, raw in lines:
        text = raw.rstrip("\r\n")
        problem = lines.wrong_encoding(text)
        yield Row(number, number, None if problem else {"text": text}, problem=problem)


def tab_layout(lines: Lines) -> DelimitedLayout | None:
    """The layout of a file whose first lines have one tab each, and labels on one side of it; else None."""
    with lines.preview():
        texts = (text.rstrip("\r\n") for _, text in itertools.islice(lines, lines.limits.sample_rows))
        sample = [text.split("\t") for text in texts if text and not lines.wrong_encoding(text)]
    if len(sample) < 2 or any(len(fields) != 2 for fields in sample):
        return None
    return layout_of_pairs(sample, lines.name)


def is_fasttext(lines: Lines) -> bool:
    """Whether each of the first lines begins with a label, as fastText writes it."""
    with lines.preview():
        sample = [text for _, text in itertools.islice(lines, lines.limits.sample_rows) if text.strip()]
    return bool(sample) and all(text.lstrip("\ufeff").startswith(_MARK) for text in sample)


def fasttext_rows(lines: Lines) -> Iterator[Row]:
    """A row for every line that is not blank; labels are lists if some line has not exactly one."""
    several = any(len(_labels(text)[0]) != 1 for _, text in lines if text.strip())
    lines.rewind(universal=False)
    for row, (number, raw) in enumerate((line for line in lines if line[1].strip()), 1):
        if problem := lines.wrong_encoding(raw):
            yield Row(row, number, None, problem=problem)
            continue
        labels, text = _labels(raw)
        yield Row(row, number, {"text": text, "label": labels if several else labels[0]})


def _labels(line: str) -> tuple[list[str], str]:
    """The labels that a line begins with, and its text."""
    rest, labels = line.strip(), list[str]()
    while rest.startswith(_MARK):
        label, _, rest = rest.partition(" ") if "\t" not in rest.split(" ")[0] else rest.partition("\t")
        labels.append(label.removeprefix(_MARK))
        rest = rest.lstrip()
    return labels, rest
