"""Runs compared with a base run, row by row: which differences are more than chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.paired import (
    Bootstrap,
    McNemar,
    ScoreDifference,
    holm,
    mcnemar,
    paired_bootstrap,
    right_rows,
)
from featcache.runs.predictions import Predictions
from featcache.runs.run import METRIC_NAMES, Run, best_run
from featcache.system.text import html_table
from featcache.system.units import percent_text

ALPHA = 0.05  # of all comparisons together


@dataclass(frozen=True)
class MatchedRows:
    """The predictions of two runs for the rows both have.

    Attributes:
        labels: int64 `[N]`, or uint8 multi-hot `[N, C]`; numbers float64 `[N]`.
        base, run: predictions, like `labels`.
        label_names: C names: those of the base, then those that only the run has; numbers have none.
        only_base, only_run: rows left out because the other one does not have them.
        leaked: bool `[N]`: rows that leak for one of the two.
    """

    labels: np.ndarray
    base: np.ndarray
    run: np.ndarray
    label_names: tuple[str, ...]
    only_base: int
    only_run: int
    leaked: np.ndarray

    def clean(self) -> MatchedRows | None:
        """The rows that do not leak; None where no row leaks, or every one."""
        rows = ~self.leaked
        if rows.all() or not rows.any():
            return None
        parts = {name: getattr(self, name)[rows] for name in ("labels", "base", "run", "leaked")}
        return replace(self, **parts)


@dataclass(frozen=True)
class Change:
    """One metric of a run against the base, with the p-value corrected for all comparisons made."""

    difference: ScoreDifference
    p: float
    corrected_p: float

    @property
    def tie(self) -> bool:
        return self.corrected_p >= ALPHA

    @property
    def worse(self) -> bool:
        return not self.tie and self.difference.value < 0


@dataclass(frozen=True, kw_only=True)
class PairedTests:
    """One run against the base on some rows.

    Attributes:
        rows: how many rows were compared.
        discordant: rows that only the base (`only_first`) or only the run predicts right, and McNemar's p.
        accuracy: exact McNemar test; interval by bootstrap.
        macro_f1: bootstrap.
    """

    rows: int
    discordant: McNemar
    accuracy: Change
    macro_f1: Change

    @property
    def tie(self) -> bool:
        """Neither metric tells the two apart."""
        return self.accuracy.tie and self.macro_f1.tie

    @property
    def worse(self) -> bool:
        """Significantly worse than the base in one metric at least."""
        return self.accuracy.worse or self.macro_f1.worse


@dataclass(frozen=True, kw_only=True)
class Comparison(PairedTests):
    """One run against the base on the rows both have.

    Attributes:
        only_base, only_run: rows left out because the other one does not have them.
        clean: the same on the rows that leak for neither; None where no row leaks, or every one.
    """

    run: Run
    only_base: int
    only_run: int
    clean: PairedTests | None

    @property
    def against_base(self) -> str:
        """`-1.5 [-2.9, -0.2]`: points of accuracy more or less, with their interval; `tie` before chance."""
        found = self.accuracy.difference
        value, low, high = (f"{100 * share:+.1f}" for share in (found.value, found.low, found.high))
        return f"{'tie ' * self.accuracy.tie}{value} [{low}, {high}]"


class _Tested(Protocol):
    @property
    def run(self) -> Run: ...

    @property
    def worse(self) -> bool: ...

    @property
    def against_base(self) -> str: ...


T = TypeVar("T", bound=_Tested)
M = TypeVar("M")


@dataclass(frozen=True)
class ComparedRuns(Generic[T]):
    """Runs compared with one base on one split; `refused`: those that cannot be compared, and why."""

    base: Run
    split: str
    made: tuple[T, ...]
    refused: tuple[tuple[Run, str], ...] = ()

    @property
    def worse(self) -> list[T]:
        return [comparison for comparison in self.made if comparison.worse]

    def _repr_html_(self) -> str:
        """One line a run, the base first, for a notebook."""
        numbers = self.base.record.numbers
        names = {"rmse": "RMSE", "mae": "MAE"} if numbers else METRIC_NAMES
        runs = [(self.base, ""), *((each.run, each.against_base) for each in self.made)]
        lines = [
            (run.name, run.record.head, run.record.short_view, *_scores(run, self.split, names), difference)
            for run, difference in [*runs, *((run, f"not compared: {why}") for run, why in self.refused)]
        ]
        against = f"{'RMSE' if numbers else 'accuracy'} against {self.base.name}"
        return html_table(
            ("run", "head", "view", *names.values(), against), lines,
            f"{self.split}{'' if numbers else ', in %'}; tie: the difference may be chance",
        )  # fmt: skip


Comparisons: TypeAlias = ComparedRuns[Comparison]


def compare_runs(
    runs: Sequence[Run],
    base: Run | None = None,
    split: str = "test",
    *,
    skip: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparisons:
    """Compare every run with the base: accuracy by McNemar's exact test, macro F1 by paired bootstrap.

    All p-values, two for each run, are corrected together (Holm): the probability of one false difference
    or more is at most 5 %. Those of the rows that do not leak are corrected apart from those of all rows.

    Args:
        base: by default the best of `runs` by validation accuracy, whatever `split` is. It is not compared
            with itself.
        skip: leave out runs that cannot be compared, with the reason, instead of raising.

    Raises:
        HeadError: no runs; no predictions of the base; without `skip` also: no predictions of another run,
            no row in common with the base, or other labels of the same rows.
    """
    base = base or best_run(list(runs))
    if base is None:
        raise HeadError("no runs to compare", hint="train one with: featcache train-head --epochs 100")
    own = base.predictions(split, probabilities=False)
    raw, refused = matched_runs(
        base, runs, split, lambda run: match(own, run.predictions(split, probabilities=False)), skip=skip
    )
    whole = _paired_tests({run.folder: matched for run, matched in raw}, resamples, seed)
    some = {run.folder: rows for run, matched in raw if (rows := matched.clean())}
    clean = _paired_tests(some, resamples, seed)
    made = tuple(
        Comparison(
            **vars(whole[run.folder]),
            run=run,
            only_base=matched.only_base,
            only_run=matched.only_run,
            clean=clean.get(run.folder),
        )
        for run, matched in raw
    )
    return ComparedRuns(base, split, made, refused)


def matched_runs(
    base: Run, runs: Sequence[Run], split: str, match: Callable[[Run], M], *, skip: bool
) -> tuple[list[tuple[Run, M]], tuple[tuple[Run, str], ...]]:
    """The rows that each run has with the base, and the runs that cannot be compared with it, and why.

    Args:
        match: finds the rows of a run; the base is left out.
        skip: see `compare_runs`.

    Raises:
        HeadError: without `skip`, a run that cannot be compared.
    """
    found: list[tuple[Run, M]] = []
    refused: list[tuple[Run, str]] = []
    for run in runs:
        if run.folder.resolve() == base.folder.resolve():
            continue
        try:
            found.append((run, match(run)))
        except HeadError as error:
            if not skip:
                what = f"{run.name} cannot be compared with {base.name} on {split}: {error.what}"
                raise HeadError(what, hint=error.hint) from error
            refused.append((run, error.what))
    return found, tuple(refused)


def _scores(run: Run, split: str, names: Iterable[str]) -> list[str]:
    write = "{:.4g}".format if run.record.numbers else percent_text
    return [write(run.metric(split, name)) for name in names]


def match(base: Predictions, run: Predictions) -> MatchedRows:
    """The rows both have, found by row hash and label; of equal rows the first with the first, and so on.

    Raises:
        HeadError: single-label beside multi-label, no row in common, or another label for the same row.
    """
    if base.multi_label != run.multi_label:
        raise HeadError("one is single-label, the other multi-label", hint="compare runs of one task")
    if base.multi_label and set(base.label_names) != set(run.label_names):
        raise HeadError(
            f"they have other labels: {_other_names(base, run)}", hint="compare runs of the same labels"
        )
    names = tuple(dict.fromkeys((*base.label_names, *run.label_names)))
    labels, predicted = (_renumbered(part, run.label_names, names) for part in (run.labels, run.predicted))
    here, there = same_rows(base.row_hash, base.labels, run.row_hash, labels)
    _check_labels(base, run, here, there)
    if not len(here):
        raise HeadError("they have no row in common", hint="runs on the same data can be compared")
    left_out = (len(base) - len(here), len(run) - len(here))
    leaked = np.zeros(len(here), bool)
    for part, rows in ((base, here), (run, there)):
        if part.leaked is not None:
            leaked |= part.leaked[rows]
    return MatchedRows(
        base.labels[here], base.predicted[here], predicted[there], names, *left_out, leaked=leaked
    )


def same_rows(
    base_hash: np.ndarray, base_labels: np.ndarray, run_hash: np.ndarray, run_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the rows that two runs have, by row hash and label, equal rows in their order."""
    if np.array_equal(base_hash, run_hash) and np.array_equal(base_labels, run_labels):
        every = np.arange(len(base_labels))  # the usual case, without sorting
        return every, every
    return _same_rows(_keys(base_hash, base_labels), _keys(run_hash, run_labels))


def _paired_tests(pairs: Mapping[Path, MatchedRows], resamples: int, seed: int) -> dict[Path, PairedTests]:
    """All pairs, with p-values that are corrected together."""
    measured = [_measure(matched, resamples, seed) for matched in pairs.values()]
    corrected = holm([p for test, boot in measured for p in (test.p, boot.macro_f1.p)]).tolist()
    return {
        folder: PairedTests(
            rows=len(matched.labels),
            discordant=test,
            accuracy=Change(boot.accuracy, test.p, corrected[2 * place]),
            macro_f1=Change(boot.macro_f1, boot.macro_f1.p, corrected[2 * place + 1]),
        )
        for place, ((folder, matched), (test, boot)) in enumerate(zip(pairs.items(), measured, strict=True))
    }


def _measure(matched: MatchedRows, resamples: int, seed: int) -> tuple[McNemar, Bootstrap]:
    labels, base, run = matched.labels, matched.base, matched.run
    classes = len(matched.label_names)
    test = mcnemar(right_rows(labels, base), right_rows(labels, run))
    return test, paired_bootstrap(labels, base, run, classes, resamples=resamples, seed=seed)


def _renumbered(values: np.ndarray, old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray:
    """Labels in the order `old` as labels in the order `new`, which has them all."""
    if old == new[: len(old)] and (values.ndim == 1 or len(old) == len(new)):
        return values
    if values.ndim == 1:
        return np.asarray(np.array([new.index(name) for name in old], np.int64)[values])
    return np.asarray(values[:, [old.index(name) for name in new]])


def _keys(row_hash: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row hash and label(s) as one item for each row `[N]`, compared by its bytes."""
    wide = labels.astype(">f8" if labels.dtype.kind == "f" else ">i8") if labels.ndim == 1 else labels
    label_bytes = wide.view(np.uint8).reshape(len(labels), -1)
    return _items(np.concatenate([row_hash, label_bytes], axis=1))


def _items(rows: np.ndarray) -> np.ndarray:
    """uint8 `[N, B]` -> `[N]`."""
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()


def most_frequent(run: Run, split: str) -> tuple[str, float] | None:
    """The most frequent label of a split, and the share of its rows: the accuracy of always predicting it.

    None for multi-label, for no rows, and where `run.json` has no scores by class.
    """
    scores = run.record.scores.get(split)
    if scores is None or scores.confusion is None or not any(line.support for line in scores.per_class):
        return None
    most = max(scores.per_class, key=lambda line: line.support)
    return most.label, most.support / sum(line.support for line in scores.per_class)


def _same_rows(base: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of equal items in both: the first with the first, the second with the second, and so on."""
    numbers = np.unique(np.concatenate([base, run]), return_inverse=True)[1]
    parts = numbers[: len(base)], numbers[len(base) :]
    many = len(numbers) + 1
    first, second = (part * many + _occurrence(part) for part in parts)
    places = np.intersect1d(first, second, assume_unique=True, return_indices=True)[1:]
    return places[0], places[1]


def _occurrence(numbers: np.ndarray) -> np.ndarray:
    """How many equal numbers come before each, int64 `[N]`."""
    order = np.argsort(numbers, kind="stable")
    ranked = numbers[order]
    found = np.empty(len(numbers), np.int64)
    found[order] = np.arange(len(numbers)) - np.searchsorted(ranked, ranked)
    return found


def _check_labels(base: Predictions, run: Predictions, here: np.ndarray, there: np.ndarray) -> None:
    """Refuse rows that both have with another label: they are left over on both sides."""
    left = (np.delete(part.row_hash, used, axis=0) for part, used in ((base, here), (run, there)))
    other = len(_same_rows(*(_items(part) for part in left))[0])
    if other:
        names = _other_names(base, run)
        raise HeadError(
            f"{other} of their {other + len(here)} shared rows have another label"
            + (f"; labels that only one has: {names}" if names else ""),
            hint="train both on the same labels",
        )


def _other_names(base: Predictions, run: Predictions) -> str:
    """Label names that only one of them has, the first few."""
    names = sorted(set(base.label_names) ^ set(run.label_names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
