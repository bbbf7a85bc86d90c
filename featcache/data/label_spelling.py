"""Labels that are probably one, such as `Positive` and `positive`: the user says whether they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featcache.data.labels import LabelledTable
from featcache.errors import SourceError
from featcache.settings import DataSettings
from featcache.system.text import normalised


def with_one_spelling(read: Mapping[str, LabelledTable], data: DataSettings) -> dict[str, LabelledTable]:
    """The splits with labels that differ in case, width or white space alone as `data.similar_labels` says.

    A merged label has the spelling that most rows have. Names that are declared are meant.

    Raises:
        SourceError: there are such labels, and nobody said whether they are one.
    """
    counts: Counter[str] = Counter()
    for one in read.values():
        if one.declared is None:
            for code, rows in enumerate(np.bincount(one.codes, minlength=len(one.values)).tolist()):
                counts[one.names[code]] += rows
    groups: dict[str, list[str]] = {}
    for name, rows in counts.items():
        if rows:
            groups.setdefault(normalised(name), []).append(name)
    similar = [sorted(names, key=lambda name: (-counts[name], name)) for names in groups.values()]
    similar = [names for names in similar if len(names) > 1]
    if not similar or data.similar_labels == "keep":
        return dict(read)
    if data.similar_labels == "ask":
        shown = "; ".join(
            " and ".join(f"{name!r} ({counts[name]:,})" for name in names) for names in similar[:5]
        )
        raise SourceError(
            f"labels that are probably one, with their rows: {shown}",
            hint="--similar-labels merge makes them one, --similar-labels keep says that they are not",
        )
    spelling = {name: names[0] for names in similar for name in names[1:]}
    return {split: _respelled(one, spelling) for split, one in read.items()}


def _respelled(one: LabelledTable, spelling: Mapping[str, str]) -> LabelledTable:
    if one.declared is not None:
        return one
    index: dict[str, int] = {}
    values: list[int | str] = []
    for name, value in zip(one.names, one.values, strict=True):
        kept = spelling.get(name, name)
        if kept not in index:
            index[kept] = len(index)
            values.append(kept if name in spelling else value)
    lookup = np.array([index[spelling.get(name, name)] for name in one.names], np.int64)
    places, codes = one.places, lookup[one.codes]
    if one.several:  # a row with both spellings has the label once
        places, codes = np.divmod(np.unique(places * len(index) + codes), len(index))
    merged = [f"{name!r} into {kept!r}" for name, kept in spelling.items() if name in one.names]
    notes = (*one.notes, *([f"merged labels: {', '.join(merged)}"] if merged else []))
    return replace(one, places=places, codes=codes, values=values, names=list(index), notes=notes)
