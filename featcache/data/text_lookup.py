"""The texts of cached rows, found in the source by row hash: shown to people, and compared between splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.data.split import Split, load_splits
from featcache.errors import FeatcacheError
from featcache.fingerprint import row_hashes, row_keys
from featcache.settings import DataSettings
from featcache.system.stores import is_remote, shown
from featcache.system.text import normalised

LONGEST = 2000  # characters of a text that are shown


@dataclass(frozen=True)
class RowTexts:
    """The places of cached rows in their source.

    Attributes:
        splits: the source, by split; empty where it could not be read.
        places: int64 `[N]` by split: the row of the source's split for each cached row, -1 for none.
        reason: why there are no texts; empty where there are.
    """

    splits: Mapping[str, Split]
    places: Mapping[str, np.ndarray]
    reason: str = ""

    def text(self, split: str, row: int) -> str | None:
        """The text of one row; see `texts_of`."""
        return self.texts_of(split, [row])[0]

    def texts_of(self, split: str, rows: Sequence[int]) -> list[str | None]:
        """The texts of cached rows, at most LONGEST characters of each; None where not found.

        The texts of a pair are joined by a line break.
        """
        places = [self._place(split, row) for row in rows]
        found = [place for place in places if place >= 0]
        if not found:
            return [None] * len(rows)
        first, second = self.splits[split].texts(found), self.splits[split].pairs(found)
        whole = first if second is None else ["\n".join(pair) for pair in zip(first, second, strict=True)]
        cut = iter(text if len(text) <= LONGEST else text[:LONGEST] + "…" for text in whole)
        return [next(cut) if place >= 0 else None for place in places]

    def number(self, split: str, row: int) -> int | None:
        """The row of the source file or table, counted from 1; rows held out of it count too."""
        place = self._place(split, row)
        return None if place < 0 else int(self.splits[split].row_numbers[place]) + 1

    def _place(self, split: str, row: int) -> int:
        return int(self.places[split][row]) if split in self.places else -1


def find_texts(
    data: DataSettings, hashes: Mapping[str, np.ndarray], seed: int, *, own: DataSettings | None = None
) -> RowTexts:
    """The source's rows for cached rows; if the source cannot be read, the result has a `reason`.

    Args:
        data: where the texts are.
        hashes: row hashes uint8 `[N, 32]` by split.
        seed: that decided which rows were held out of train when the features were made.
        own: what this user set, where a run of anybody says where the texts are: a URL is read only if it is
            named here, too.
    """
    known = _places_of(data) if own is None else _places_of(own)
    if foreign := [place for place in _places_of(data) if place not in known and is_remote(place)]:
        return RowTexts({}, {}, foreign_place(foreign[0], "dataset or data_files"))
    try:
        # A row that is not usable any more must not hide the others.
        splits = load_splits(replace(data, skip_bad_rows=True), tuple(hashes), seed=seed)
        places = {name: _places(split, hashes[name]) for name, split in splits.items()}
    except FeatcacheError as error:
        return RowTexts({}, {}, error.what)
    return RowTexts(splits, places)


def foreign_place(url: str, setting: str) -> str:
    """Why a URL that a run names is not read."""
    return f"the run names {shown(url)}, which is read only if {setting} in featcache.toml names it too"


def _places_of(data: DataSettings) -> tuple[str, ...]:
    return tuple((data.data_files or {"": data.dataset}).values())


def text_keys(split: Split, hashes: np.ndarray) -> np.ndarray | None:
    """`row_keys` of the normalised texts (and pairs) of a split, uint64 `[N]`; None if it has other rows.

    Args:
        hashes: uint8 `[N, 32]`, of the rows wanted.
    """
    keys, done = [np.zeros(0, np.uint64)], 0
    for texts, pairs in split.batches():
        if not np.array_equal(row_hashes(texts, pairs), hashes[done : done + len(texts)]):
            return None
        done += len(texts)
        plain = None if pairs is None else [normalised(pair) for pair in pairs]
        keys.append(row_keys(row_hashes([normalised(text) for text in texts], plain)))
    return np.concatenate(keys) if done == len(hashes) else None


def _places(split: Split, wanted: np.ndarray) -> np.ndarray:
    parts = [row_hashes(texts, pairs) for texts, pairs in split.batches()]
    have = np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)
    if np.array_equal(have, wanted):
        return np.arange(len(wanted))
    if not len(have):
        return np.full(len(wanted), -1)
    items, asked = (np.ascontiguousarray(part).view("V32").ravel() for part in (have, wanted))
    order = np.argsort(items, kind="stable")
    found = np.minimum(np.searchsorted(items, asked, sorter=order), len(order) - 1)
    places = order[found]
    return np.where(items[places] == asked, places, -1)
