"""Three texts of a run's test split, to be clicked on the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featcache.data.text_lookup import find_texts
from featcache.errors import FeatcacheError
from featcache.fingerprint import row_keys
from featcache.runs.numbers.predictions import read_number_predictions
from featcache.runs.run import Run
from featcache.settings import DataSettings

EXAMPLES = 3
LOOKED_AT = 300  # rows of the split
LONGEST = 200  # characters of an example and its second text
MOST_ROWS = 1_000_000  # of a run whose data are read for this

_SortedLabel = tuple[float, str]  # a place to sort it by, and its name
_TextAndLabel = tuple[_SortedLabel, str, str | None]  # with the second text of a pair


@dataclass(frozen=True)
class Example:
    """A text of the test split.

    Attributes:
        label: what its data say, not what the head predicts.
    """

    text: str
    pair: str | None
    label: str


def examples_of(run: Run, own: DataSettings) -> list[Example]:
    """Texts of different labels, as far as there are some, in the order of the labels.

    Which ones is decided by the hash of the row, and not by what the head says of them.

    Args:
        own: of `featcache.toml`; a URL that the run names is read only if these name it, too.

    Returns:
        At most EXAMPLES; none where the split cannot be read on this machine, or the run has none.
    """
    data = run.record.data
    if data is None or sum(run.record.rows.values()) > MOST_ROWS:
        return []
    try:
        hashes, labels = _rows(run)
        order = np.argsort(row_keys(hashes), kind="stable")[:LOOKED_AT]
        found = find_texts(data, {"test": hashes[order]}, run.record.seed, own=own)
        if "test" not in found.splits:
            return []
        split, places = found.splits["test"], found.places["test"]
        there = np.flatnonzero(places >= 0)
        texts, pairs = split.texts(places[there]), split.pairs(places[there])
    except FeatcacheError:
        return []
    seconds = [None] * len(texts) if pairs is None else pairs
    chosen, others = list[_TextAndLabel](), list[_TextAndLabel]()
    seen = set[_SortedLabel]()
    for row, text, pair in zip(order[there].tolist(), texts, seconds, strict=True):
        if text.strip() and len(text) + len(pair or "") <= LONGEST:
            (others if labels[row] in seen else chosen).append((labels[row], text, pair))
            seen.add(labels[row])
    ordered = sorted((chosen + others)[:EXAMPLES], key=lambda one: one[0])
    return [Example(text, pair, label) for (_, label), text, pair in ordered]


def _rows(run: Run) -> tuple[np.ndarray, list[_SortedLabel]]:
    """Row hashes of the test split, and for each row a place to sort its label by and its name.

    Raises:
        HeadError: the run has no predictions of that split, or they are damaged.
    """
    path = run.predictions_path("test")
    if run.record.numbers:
        scored = read_number_predictions(path)
        return scored.row_hash, [(number, f"{number:g}") for number in scored.labels.tolist()]
    found = run.predictions("test", probabilities=False)
    names = found.label_names
    if not found.multi_label:
        return found.row_hash, [(number, names[number]) for number in found.labels.tolist()]
    given = [np.flatnonzero(row).tolist() for row in found.labels]
    return found.row_hash, [(min(row, default=-1), ", ".join(names[n] for n in row)) for row in given]
