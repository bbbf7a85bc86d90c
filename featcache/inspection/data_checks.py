"""Traps in the data that row hashes and counts show: each check looked at, and what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from featcache.backbone.tokens.unknown_tokens import MANY, WRONG_MODEL
from featcache.cache.catalog import CacheFile
from featcache.evaluation.leaks import EXACT, NORMALISED, leaked_rows
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.features import counts_of
from featcache.inspection.inspection import labels_differ
from featcache.runs.leaks import find_keys
from featcache.runs.record import RunRecord
from featcache.settings import Settings
from featcache.system.text import normalised
from featcache.system.units import share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, ngettext, noted

CheckState = Literal["good", "look", "bad"]

# Shares from which on a check says `look`, and from which on it says `bad`.
LEAKED = (0.0, 0.05)
REPEATED = (0.01, 0.2)
CONFLICTING = (0.0, 0.01)
ONE_LABEL = (0.8, 0.95)
TRUNCATED = (0.01, 0.2)
UNKNOWN = (0.001, MANY)
FEW_ROWS = 10  # a label with fewer train rows is hardly learned; with fewer test rows a miss may be chance
SHOWN_LABELS = 5


@dataclass(frozen=True)
class DataCheck:
    """What one check found.

    Attributes:
        name: what was looked at, e.g. `duplicates`.
        state: `good` is looked at and fine, `look` is worth a look, `bad` makes scores misleading.
        sentence: what was found, with its counts.
        hint: what to do; empty where nothing is to be done.
    """

    name: str
    state: CheckState
    sentence: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class RowsToCheck:
    """The rows of one split, as far as the checks look at them.

    Attributes:
        keys: of the texts, uint64 `[N]`, see `featcache.runs.leaks.find_keys`.
        labels: int64 `[N]`, uint8 multi-hot `[N, C]`, or float64 numbers `[N]`.
        truncated: how many texts were longer than `max_length` tokens.
        unknown_tokens: share of the tokens that the vocabulary does not have; None where it is not known.
    """

    keys: np.ndarray
    labels: np.ndarray
    truncated: int
    max_length: int
    unknown_tokens: float | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def first(self) -> np.ndarray:
        """The first row with the text of each row, int64 `[N]`."""
        _, first, number = np.unique(self.keys, return_index=True, return_inverse=True)
        return np.asarray(first[number])


def rows_to_check(
    settings: Settings, files: Mapping[str, CacheFile]
) -> tuple[dict[str, RowsToCheck], tuple[str, ...], str]:
    """The rows of cached splits, their label names, and the rule that texts are compared by.

    Args:
        files: by split, in the order train, validation, test; at least one.
    """
    hashes = {split: file.sealed.column("row_hash") for split, file in files.items()}
    keys, rule = find_keys(settings, hashes)
    rows = {
        split: RowsToCheck(
            keys=keys[split],
            labels=np.asarray(file.sealed.column("labels")),
            truncated=file.truncated,
            max_length=file.max_length,
            unknown_tokens=file.record.made.unknown_tokens,
        )
        for split, file in files.items()
    }
    return rows, next(iter(files.values())).document.labels.names, rule


def data_checks(
    splits: Mapping[str, RowsToCheck],
    label_names: Sequence[str],
    *,
    rule: str = NORMALISED,
    record: RunRecord | None = None,
) -> tuple[DataCheck, ...]:
    """All checks, those that are `good` too, always in the same order; a check that cannot be made is absent.

    Args:
        splits: in the order train, validation, test; `train` is required.
        label_names: C names; empty for numbers.
        rule: `NORMALISED` or `EXACT`, how the texts are compared that have the keys.
        record: of the run whose labels that are never predicted right are looked for.
    """
    found = [_leaks(splits, rule), _duplicates(splits), _conflicts(splits)]
    if task_of(splits["train"].labels) != REGRESSION:
        found += [_balance(splits["train"], label_names), _similar_labels(label_names)]
        found += _missed_labels(record) if record else []
    if all(rows.max_length for rows in splits.values()):  # an endpoint does not tell
        found.append(_truncated(splits))
    return (*found, *_unknown(splits))


def _leaks(splits: Mapping[str, RowsToCheck], rule: str) -> DataCheck:
    leaked = leaked_rows({split: rows.keys for split, rows in splits.items()})
    counts = {split: int(rows.sum()) for split, rows in leaked.items()}
    if not any(counts.values()):
        what = _("no row of a later split has a text of an earlier split")
        return DataCheck(noted("leaked rows"), "good", what + _compared(rule))
    state = _state(_highest(counts, splits), LEAKED)
    whole = [split for split, count in counts.items() if count and count == len(splits[split])]
    if whole:
        what = _(
            "every {splits} row has a text that an earlier split has: its score says nothing about new texts",
            splits=_and([_(split) for split in whole]),
        )
        hint = _("is one file two splits? Name other rows, or none: a part of train is held out then")
        return DataCheck("leaked rows", "bad", what + _compared(rule), hint)
    what = _("{rows} have a text that an earlier split has", rows=_counted(counts, splits))
    hint = _("trust the clean scores, which leave them out; featcache inspect lists them")
    return DataCheck("leaked rows", state, what + _compared(rule), hint)


def _compared(rule: str) -> str:
    said = " (texts compared exactly, as their source is not on this disk)"
    return _(said) if rule == EXACT else ""


def _duplicates(splits: Mapping[str, RowsToCheck]) -> DataCheck:
    counts = {split: int((rows.first != np.arange(len(rows.first))).sum()) for split, rows in splits.items()}
    if not any(counts.values()):
        return DataCheck(noted("duplicates"), "good", _("no text is twice in a split"))
    state = _state(_highest(counts, splits), REPEATED)
    hint = "they count twice in training and scores; featcache inspect lists them"
    what = _("{rows} repeat a text of their split", rows=_counted(counts, splits))
    return DataCheck("duplicates", state, what, "" if state == "good" else _(hint))


def _conflicts(splits: Mapping[str, RowsToCheck]) -> DataCheck:
    """Texts with other labels in other rows of the same split."""
    texts = rows = 0
    for one in splits.values():
        differs = labels_differ(one.labels, one.labels[one.first])
        texts_there = np.unique(one.first[differs])
        texts += len(texts_there)
        rows += int(np.isin(one.first, texts_there).sum())
    if not texts:
        return DataCheck(noted("conflicting labels"), "good", _("equal texts have equal labels"))
    state = _state(rows / sum(map(len, splits.values())), CONFLICTING)
    what = ngettext(
        "{count:,} text has different labels in {rows:,} rows",
        "{count:,} texts have different labels in {rows:,} rows",
        texts,
        rows=rows,
    )
    hint = _("no head can be right on all of them; featcache inspect lists them")
    return DataCheck("conflicting labels", state, what, hint)


def _balance(train: RowsToCheck, names: Sequence[str]) -> DataCheck:
    counts = counts_of(train.labels, len(names))
    most, least = int(counts.argmax()), int(counts.argmin())
    share = counts[most] / len(train)
    rare = [f"{names[place]} ({counts[place]:,})" for place in np.flatnonzero(counts < FEW_ROWS).tolist()]
    name, often = noted("label balance"), share_text(int(counts[most]), len(train))
    if (state := _state(share, ONE_LABEL)) != "good":
        said = _("{share} of the train rows have the label {label}", share=often, label=names[most])
        hint = _("accuracy says little: look at macro F1, and try --class-weight balanced")
        return DataCheck(name, state, said, hint)
    if rare:
        what = _("labels with fewer than {least} train rows: {labels}", least=FEW_ROWS, labels=_listed(rare))
        return DataCheck(name, "look", what, _("more rows of these labels help most"))
    both = "{share} of the train rows have the label {label}, {rare_share} {rarest}"
    seldom = share_text(int(counts[least]), len(train))
    what = _(both, share=often, label=names[most], rare_share=seldom, rarest=names[least])
    return DataCheck(name, "good", what)


def _similar_labels(names: Sequence[str]) -> DataCheck:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(normalised(name), []).append(name)
    alike = [_and(list(map(repr, group))) for group in groups.values() if len(group) > 1]
    if not alike:
        return DataCheck(noted("similar labels"), "good", _("no labels differ in case or blanks alone"))
    what = _("labels that differ in case or blanks alone: {labels}", labels=_listed(alike))
    return DataCheck("similar labels", "look", what, _("--similar-labels merge makes them one"))


def _missed_labels(record: RunRecord) -> list[DataCheck]:
    """Labels that have rows, and that the head never predicts right; of test, or else of validation."""
    split = "test" if "test" in record.scores else "validation"
    if split not in record.scores:
        return []
    lines = [line for line in record.scores[split].per_class if line.support]
    missed = [line for line in lines if line.recall == 0]
    if not missed:
        what = _("every label of {split} is predicted right at least once", split=_(split))
        return [DataCheck(noted("labels never predicted"), "good", what)]
    state: CheckState = "bad" if max(line.support for line in missed) >= FEW_ROWS else "look"
    counted = [_("{label} ({rows:,} rows)", label=line.label, rows=line.support) for line in missed]
    said = "labels of {split} that {run} never predicts right: {labels}"
    what = _(said, split=_(split), run=record.run or _("the head"), labels=_listed(counted))
    hint = _("they need more train rows, or --class-weight balanced")
    return [DataCheck("labels never predicted", state, what, hint)]


def _truncated(splits: Mapping[str, RowsToCheck]) -> DataCheck:
    counts = {split: rows.truncated for split, rows in splits.items()}
    longest = max(rows.max_length for rows in splits.values())
    if not any(counts.values()):
        what = _("no text is longer than {longest:,} tokens", longest=longest)
        return DataCheck(noted("truncated texts"), "good", what)
    state = _state(_highest(counts, splits), TRUNCATED)
    said = "{rows} are longer than {longest:,} tokens and were truncated"
    what = _(said, rows=_counted(counts, splits), longest=longest)
    hint = "--max-length reads more of them, --long-text chunks all of them"
    return DataCheck("truncated texts", state, what, "" if state == "good" else _(hint))


def _unknown(splits: Mapping[str, RowsToCheck]) -> Iterator[DataCheck]:
    known = {split: rows.unknown_tokens for split, rows in splits.items() if rows.unknown_tokens is not None}
    if not known:
        return
    split, share = max(known.items(), key=lambda item: item[1])
    state = _state(share, UNKNOWN)
    if share:
        said = "{share:.2%} of the tokens of {split} are unknown to the model's vocabulary"
        what = _(said, share=share, split=_(split))
    else:
        what = _("the model's vocabulary has every token")
    yield DataCheck(noted("unknown tokens"), state, what, _(WRONG_MODEL) if state != "good" else "")


def _state(share: float, limits: tuple[float, float]) -> CheckState:
    """`good` up to the first limit if that is 0, else below it; `bad` from the second on."""
    look, bad = limits
    if share >= bad:
        return "bad"
    return "look" if share > 0 and share >= look else "good"


def _highest(counts: Mapping[str, int], splits: Mapping[str, RowsToCheck]) -> float:
    return max((count / max(len(splits[split]), 1) for split, count in counts.items()), default=0.0)


def _counted(counts: Mapping[str, int], splits: Mapping[str, RowsToCheck]) -> str:
    """`12 of 8,000 train rows (0.2 %) and 3 of 1,000 test rows (0.3 %)`, without splits that have none."""
    said = "{count:,} of {rows:,} {split} rows ({share})"
    return _and(
        [
            _(said, count=n, rows=len(splits[split]), split=_(split), share=share_text(n, len(splits[split])))
            for split, n in counts.items()
            if n
        ]
    )


def _and(parts: Sequence[str]) -> str:
    """`a, b and c`"""
    if len(parts) < 2:
        return listed(parts)
    return _("{first} and {last}", first=listed(parts[:-1]), last=parts[-1])


def _listed(names: Sequence[str]) -> str:
    shown = listed(names[:SHOWN_LABELS])
    if len(names) <= SHOWN_LABELS:
        return shown
    return _("{shown} and {count} more", shown=shown, count=len(names) - SHOWN_LABELS)
