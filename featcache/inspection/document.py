"""An inspection as one plain JSON document, with the texts of the rows it names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from featcache.data.text_lookup import RowTexts
from featcache.inspection.inspection import Inspection, conflicts, near_pairs

MOST = 1000  # rows in each list


def findings(inspection: Inspection, texts: RowTexts, most: int = MOST) -> dict[str, Any]:
    """Everything an inspection found.

    Args:
        texts: where the rows stand in their source.
        most: rows in each list; the counts beside the lists are always of all.
    """
    show = _Shown(inspection, texts)
    found = {
        "view": next(iter(inspection.parts.values())).features.view,
        "threshold": inspection.threshold,
        "label_names": list(inspection.label_names),
        "splits": {name: part.features.x.shape[0] for name, part in inspection.parts.items()},
        "balance": _balance(inspection),
        "truncation": {name: _truncation(inspection, name) for name in inspection.parts},
        "duplicates": _duplicates(inspection, show, most),
        "leakage": _leakage(inspection, show, most),
        "label_errors": _label_errors(inspection, show, most),
        "outliers": {
            "rows": len(inspection.far),
            "beyond": _number(inspection.fence),
            "neighbours": inspection.neighbours,
            "list": [
                show(row, distance=_number(inspection.near.distance[inspection.rows.text[row]]))
                for row in inspection.far[:most].tolist()
            ],
        },
        "no_texts": texts.reason,
    }
    show.fill()
    return found


class _Shown:
    """Rows as people look them up; their texts come last and together, one read a split."""

    def __init__(self, inspection: Inspection, texts: RowTexts) -> None:
        self.rows, self.texts, self.names = inspection.rows, texts, inspection.label_names
        self.asked: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    def __call__(self, row: int, **more: Any) -> dict[str, Any]:
        split, place = self.rows.where(row)
        shown = {
            "split": split,
            "row": self.texts.number(split, place),
            "row_hash": self.rows.hashes[row].tobytes().hex(),
            "label": self.label(self.rows.labels[row]),
            "text": None,
            **more,
        }
        self.asked.setdefault(split, []).append((place, shown))
        return shown

    def fill(self) -> None:
        """Put the texts in."""
        for split, asked in self.asked.items():
            found = self.texts.texts_of(split, [place for place, _ in asked])
            for (_, shown), text in zip(asked, found, strict=True):
                shown["text"] = text

    def label(self, value: Any) -> str | list[str]:
        """A label number as its name, a multi-hot row `[C]` as a list of names."""
        if np.ndim(value) == 0:
            return self.names[int(value)]
        return [self.names[number] for number in np.flatnonzero(value)]


def _balance(inspection: Inspection) -> dict[str, dict[str, int]]:
    found = {}
    for name, part in inspection.parts.items():
        y = part.features.y
        counts = y.sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=len(inspection.label_names))
        found[name] = dict(zip(inspection.label_names, counts.tolist(), strict=True))
    return found


def _truncation(inspection: Inspection, split: str) -> dict[str, Any]:
    part = inspection.parts[split]
    y, cut, tokens = part.features.y, part.truncated, part.n_tokens
    by_label = (
        y[cut].sum(axis=0) if y.ndim == 2 else np.bincount(y[cut], minlength=len(inspection.label_names))
    )
    return {
        "rows": len(cut),
        "cut": int(cut.sum()),
        "max_length": part.max_length,
        "tokens": int(tokens.sum(dtype=np.int64)),
        "median_tokens": _number(np.median(tokens)) if len(tokens) else None,
        "longest_tokens": int(tokens.max(initial=0)),
        "cut_by_label": dict(zip(inspection.label_names, by_label.tolist(), strict=True)),
    }


def _duplicates(inspection: Inspection, show: _Shown, most: int) -> dict[str, Any]:
    rows, group = inspection.rows, inspection.near.group
    splits = {}
    for name in rows.splits:
        texts = rows.text[rows.part(name)]
        distinct = np.unique(texts)
        splits[name] = {
            "rows": len(texts),
            "texts": len(distinct),
            "equal": len(texts) - len(distinct),
            "near": len(distinct) - len(np.unique(group[distinct])),
        }
    pairs, cosines = near_pairs(inspection.near, inspection.threshold)
    several = conflicts(rows)
    repeats = np.bincount(rows.text)
    often = np.argsort(-repeats, kind="stable")[: min(most, np.count_nonzero(repeats > 1))]
    return {
        "splits": splits,
        "near_pairs": len(pairs),
        "near_list": [
            {"cosine": _number(cosine), "rows": [show(int(rows.first[text])) for text in pair]}
            for pair, cosine in zip(pairs[:most].tolist(), cosines[:most], strict=True)
        ],
        "equal_list": [show(int(rows.first[text]), times=int(repeats[text])) for text in often],
        "conflicting_texts": len(np.unique(rows.text[several])),
        "conflicting_rows": len(several),
        "conflict_list": [show(int(row)) for row in several[:most]],
    }


def _leakage(inspection: Inspection, show: _Shown, most: int) -> dict[str, Any]:
    rows, match = inspection.rows, inspection.match
    found: list[dict[str, Any]] = []
    for place, split in enumerate(rows.splits):
        for source, name in enumerate(rows.splits[:place]):
            here = (rows.split_of == place) & (match >= 0)
            here &= rows.split_of[match] == source
            same = here & (rows.text == rows.text[match])
            other = here & _differ(rows.labels, rows.labels[match])
            found.append(
                {
                    "split": split,
                    "in": name,
                    "rows": int(here.sum()),
                    "equal": int(same.sum()),
                    "near": int(here.sum() - same.sum()),
                    "other_label": int(other.sum()),
                }
            )
    leaked = np.flatnonzero(match >= 0)
    # Those that are not letter for letter the same come first: they are the ones nobody knows of.
    order = leaked[np.argsort(inspection.cosine[leaked], kind="stable")][:most]
    return {
        "pairs": found,
        "list": [
            show(int(row), **{"cosine": _number(inspection.cosine[row]), "as": show(int(match[row]))})
            for row in order
        ],
        "scores": [_cleaned(one) for one in inspection.scores],
    }


def _cleaned(found: Any) -> dict[str, Any]:
    """NaN as None, so that it is JSON."""
    plain = dataclasses.asdict(found)
    return {key: _number(value) if isinstance(value, float) else _ends(value) for key, value in plain.items()}


def _label_errors(inspection: Inspection, show: _Shown, most: int) -> dict[str, Any]:
    doubts, rows = inspection.doubts, inspection.rows
    by_split = np.bincount(rows.split_of[doubts.rows], minlength=len(rows.splits)).tolist()
    listed = []
    for row in doubts.rows[:most].tolist():
        said, label = doubts.probabilities[row], rows.labels[row]
        if label.ndim:
            given = {
                "suggested": show.label(said >= 0.5),
                "belief": _number(np.where(label, said, 1 - said).min()),
            }
        else:
            given = {"suggested": show.label(said.argmax()), "belief": _number(said[label])}
        listed.append(show(row, **given))
    return {
        "rows": len(doubts.rows),
        "splits": dict(zip(rows.splits, by_split, strict=True)),
        "unjudged": doubts.unjudged,
        "not_looked_for": doubts.reason,
        "list": listed,
    }


def _differ(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.asarray(one != two if one.ndim == 1 else (one != two).any(axis=1))


def _number(value: Any) -> float | None:
    """Six digits are enough for people; NaN is None."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _ends(value: Any) -> Any:
    return [_number(end) for end in value] if isinstance(value, tuple) else value
