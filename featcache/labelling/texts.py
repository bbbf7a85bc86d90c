"""The texts to label: those of a file, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from featcache.data.formats.open import kind_of, open_rows
from featcache.errors import SourceError
from featcache.fingerprint import row_hashes
from featcache.settings import DataSettings
from featcache.system.text import normalised

RESERVED = 5  # one text in so many is kept for the estimate


@dataclass(frozen=True, eq=False)
class TextsToLabel:
    """Texts that differ in more than case, width and white space.

    Attributes:
        texts: N different texts, in file order.
        hashes: their row hashes in hexadecimal digits; an answer names its text so.
        all_rows: of each usable row of the file its text, and which of the N it is.
        notes: what was left out, as sentences.
    """

    texts: tuple[str, ...]
    hashes: tuple[str, ...]
    all_rows: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Sequence[str], notes: Sequence[str] = ()) -> TextsToLabel:
        """From texts in memory, each usable."""
        place: dict[str, int] = {}
        rows = [(text, place.setdefault(normalised(text), len(place))) for text in texts]
        first: dict[int, str] = {}
        for text, number in rows:
            first.setdefault(number, text)
        kept = tuple(first.values())
        if len(kept) < 2:
            raise SourceError(
                f"{len(kept)} different texts: there is nothing to choose from",
                hint="give more texts, or label these by hand",
            )
        repeated = len(rows) - len(kept)
        notes = [*notes, f"{repeated:,} texts are repeated; each is asked once"] if repeated else notes
        hashes = tuple(bytes(row).hex() for row in row_hashes(kept))
        return cls(kept, hashes, tuple(rows), tuple(notes))

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of a text by its hash."""
        return {one: number for number, one in enumerate(self.hashes)}

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 `[N]`, as good as drawn at random, and the same for a text wherever it is."""
        return np.array([int(one[:16], 16) for one in self.hashes], np.uint64)

    @cached_property
    def reserved(self) -> np.ndarray:
        """bool `[N]`: the texts that no strategy chooses, about one in `RESERVED`.

        The hash of a text decides, so that it stays reserved when texts are added to the file.
        """
        found = self.keys % np.uint64(RESERVED) == 0
        if not found.any():
            found[self.keys.argmin()] = True
        return np.asarray(found)

    @cached_property
    def order(self) -> np.ndarray:
        """int `[N]`: all texts in an order that is as good as random, and the same for all people."""
        return np.argsort(self.keys // np.uint64(RESERVED), kind="stable")

    @cached_property
    def reserved_order(self) -> tuple[int, ...]:
        """The reserved texts in that order."""
        return tuple(self.order[self.reserved[self.order]].tolist())


def read_texts(path: Path, data: DataSettings) -> TextsToLabel:
    """The texts of a file; a column with labels need not be there.

    Raises:
        SourceError: the file cannot be read, or has fewer than two different texts.
    """
    kind = kind_of(path)
    if not path.exists():
        raise SourceError(f"there is no file {path}", hint="give the file with the texts")
    if kind is None or kind == "folder":
        raise SourceError(f"{path}: unknown file type", hint="give a csv, jsonl, parquet, xlsx or txt file")
    opened = open_rows(path, kind, replace(data, pair_column=None))
    texts, broken = list[str](), list[str]()
    for batch in opened.batches:
        for row in batch.rows:
            if row.problem is not None or row.text is None:
                broken.append(f"row {row.line}: {row.problem}")
            else:
                texts.append(row.text)
    notes = [f"{len(broken):,} rows cannot be used, the first: {broken[0]}"] if broken else []
    return TextsToLabel.of(texts, (*opened.notes, *notes))
