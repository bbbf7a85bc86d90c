"""How good heads are, and what they cost from raw text on: beside no backbone, and beside what others use.

Every method is chosen on validation and scored on test. All frozen methods read one extraction, whose seconds
count for each of them, also where it was made by an earlier call.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.bench.peers.learning import PeerJob, ask_peer
from featcache.bench.peers.process import Unavailable
from featcache.bench.timing import DIGITS, Machine, this_machine, timed
from featcache.data.split import load_splits
from featcache.errors import HeadError, UsageError
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.leaks import Leaks
from featcache.evaluation.paired import mcnemar, right_rows
from featcache.extraction.api import extract_splits
from featcache.finetuning.finetune import finetune
from featcache.finetuning.recipe import Recipe
from featcache.fingerprint import row_hashes
from featcache.heads.numbers.registry import refuse_numbers
from featcache.runs.blend import blend_runs, blendable
from featcache.runs.leaks import find_leaks
from featcache.runs.run import Run
from featcache.runs.train import train_head
from featcache.runs.weighted_rows import draw_per_class
from featcache.settings import DataSettings, Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

LAST = "last"
HEADS = {  # method -> kind of head, view
    "no backbone": ("lexical", "lexical"),
    LAST: ("exact", "last/mean"),
    "depth": ("exact", "depth"),
    "depth and words": ("exact", "depth,lexical"),
}
MORE_HEADS = {"hidden layer": ("mlp", "depth"), "attentive": ("attentive", "depth")}
BLEND = "blend"  # of all heads that were trained before it
RECIPE = Recipe(epochs=3, lr=1e-4)
TUNED = {  # trained only where they are asked for: method -> part, view
    "top-blocks:4": ("top-blocks:4", "last/mean"),
    "top-blocks:4 and words": ("top-blocks:4", "last/mean,lexical"),
    "all blocks": ("all", "last/mean"),
}
PEERS = {  # of `featcache.bench.peers.learning_script` -> rows a class that it trains on; None: all
    "sentence-transformers": None,
    "model2vec": None,
    "autointent": None,
    "setfit": 64,  # made for few labels: it trains on pairs of texts
}
METHODS = (*HEADS, *MORE_HEADS, BLEND, *TUNED, *PEERS)
BASE = "depth and words"  # what the others are compared with


@dataclass(frozen=True)
class QualityRow:
    """One method on one set of texts.

    Attributes:
        test_accuracy, low, high: with its 95 % interval by bootstrap.
        clean_accuracy: on test rows whose text no earlier split has; None where no row leaks.
        p: of the exact McNemar test against `BASE` on the same rows; None for `BASE` itself.
        clean_p: the same on the rows of `clean_accuracy`.
        last_p: the same against the method `last`, on these rows, or on all where no row leaks.
        seconds: from raw text to a head that is ready, extraction included.
        head_seconds: of that the head's, n-grams included; of a blend those of all its heads.
        megabytes: of the features that are kept.
    """

    data: str
    method: str
    validation_accuracy: float
    test_accuracy: float
    low: float
    high: float
    clean_accuracy: float | None
    p: float | None
    seconds: float
    head_seconds: float
    megabytes: float
    clean_p: float | None = None
    last_p: float | None = None


@dataclass(frozen=True)
class QualityBenchmark:
    """What `bench_quality` returns; `left_out`: `set: method` that was not measured, with the reason."""

    rows: tuple[QualityRow, ...]
    left_out: dict[str, str]
    machine: Machine


@dataclass(frozen=True, eq=False)
class _Measured:
    """A method's answers on the test rows, bool `[N]` of which are right, and its row without `p`.

    Attributes:
        clean: numbers of the rows that do not leak; None where no row leaks, or every one.
    """

    row: QualityRow
    right: np.ndarray
    clean: np.ndarray | None

    def compared(self, base: _Measured | None, last: _Measured | None) -> QualityRow:
        """The row with its p-values against methods that were measured."""
        found: dict[str, Any] = {}
        if base is not None and base is not self:
            found["p"] = mcnemar(base.right, self.right).p
            if self.clean is not None:
                found["clean_p"] = mcnemar(base.right[self.clean], self.right[self.clean]).p
        if last is not None and last is not self:
            rows = slice(None) if self.clean is None else self.clean
            found["last_p"] = mcnemar(last.right[rows], self.right[rows]).p
        return dataclasses.replace(self.row, **found)


def bench_quality(
    settings: Settings,
    sets: Mapping[str, DataSettings],
    methods: Sequence[str] = tuple(HEADS),
    *,
    peer_python: str = sys.executable,
    on_progress: OnProgress = ignore,
) -> QualityBenchmark:
    """Accuracies and seconds of each method on each set.

    Args:
        settings: backbone, features (prompt, longest text) and seed.
        sets: texts with labels by name.
        methods: of `METHODS`.
        peer_python: the interpreter of the environment in which the peers are installed.
        on_progress: receives what is measured next as a stage.

    Raises:
        UsageError: an unknown method.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"no method {unknown[0]!r}", hint=f"there are: {', '.join(METHODS)}")
    rows: list[QualityRow] = []
    left_out: dict[str, str] = {}
    for name, data in sets.items():
        refuse_numbers(data.task, "bench quality")
        with tempfile.TemporaryDirectory(prefix="featcache-quality-") as reports:
            bench = _SetBench(name, _within(settings, data, reports), on_progress, peer_python)
            rows += bench.run(methods)
            left_out |= bench.left_out
    return tidied(
        QualityBenchmark(tuple(rows), left_out, this_machine("transformers", "scikit-learn")), digits=DIGITS
    )


def _within(settings: Settings, data: DataSettings, reports: str) -> Settings:
    """`settings` for one set, with its runs in `reports`."""
    paths = dataclasses.replace(settings.paths, reports_dir=reports)
    features = dataclasses.replace(settings.features, views=("depth", "last/mean"))
    return dataclasses.replace(settings, data=data, features=features, paths=paths)


class _SetBench:
    """The methods on one set of texts."""

    def __init__(self, name: str, settings: Settings, on_progress: OnProgress, peer_python: str) -> None:
        self.name, self.settings, self.on_progress, self.python = name, settings, on_progress, peer_python
        self.left_out: dict[str, str] = {}
        self.heads: list[tuple[Run, float]] = []  # of the frozen backbone and of words, with their seconds

    def run(self, methods: Sequence[str]) -> list[QualityRow]:
        if set(methods) & {*HEADS, *MORE_HEADS} - {"no backbone"}:
            self._tell("extraction")
            splits = ("train", "validation", "test")
            extract_splits(self.settings, splits)
        measured = {}
        for method in methods:
            self._tell(method)
            if (found := self._measure(method)) is not None:
                measured[method] = found
        base, last = measured.get(BASE), measured.get(LAST)
        return [each.compared(base, last) for each in measured.values()]

    def _measure(self, method: str) -> _Measured | None:
        if method in PEERS:
            return self._peer(method)
        try:
            run, seconds = timed(lambda: self._train(method))
        except (HeadError, UsageError) as error:
            self.left_out[f"{self.name}: {method}"] = str(error)
            return None
        if method == BLEND:
            seconds += sum(seconds for _, seconds in self.heads)
        elif method not in TUNED:
            self.heads.append((run, seconds))
        return self._of_run(method, run, seconds)

    def _train(self, method: str) -> Run:
        if method == BLEND:
            return blend_runs(self.settings, blendable(self.settings, [run for run, _ in self.heads]))
        if method in TUNED:
            part, view = TUNED[method]
            return finetune(self.settings, part, RECIPE, view)
        kind, view = (HEADS | MORE_HEADS)[method]
        return train_head(self.settings, kind, view)

    def _of_run(self, method: str, run: Run, seconds: float) -> _Measured:
        record, predictions = run.record, run.predictions("test")
        low, high = record.intervals["test"]["accuracy"]
        clean = Leaks(rows={} if predictions.leaked is None else {"test": predictions.leaked}).clean("test")
        made = QualityRow(
            data=self.name,
            method=method,
            validation_accuracy=record.metrics["validation"]["accuracy"],
            test_accuracy=record.metrics["test"]["accuracy"],
            low=low,
            high=high,
            clean_accuracy=None if clean is None else run.metric("test", "accuracy", clean=True),
            p=None,
            seconds=record.extraction_seconds + seconds,
            head_seconds=seconds,
            megabytes=(record.bytes_cached or 0) / 1e6,
        )
        return _Measured(made, right_rows(predictions.labels, predictions.predicted), clean)

    def _peer(self, method: str) -> _Measured | None:
        """A tool of `learning_script`, in a process of its own."""
        splits = load_splits(self.settings.data, ["train", "validation", "test"], seed=self.settings.seed)
        given, train, seed = PEERS[method], splits["train"], self.settings.seed
        if given:
            train = train.some(draw_per_class(train.labels, given, seed))
        try:
            answer = ask_peer(method, PeerJob.of(self.settings, {**splits, "train": train}), self.python)
        except Unavailable as error:
            self.left_out[f"{self.name}: {method}"] = str(error)
            return None
        labels = splits["test"].labels
        right = answer.test.argmax(axis=1) == labels
        hashes = {
            name: row_hashes(split.texts(slice(None)), split.pairs(slice(None)))
            for name, split in splits.items()
        }
        clean = find_leaks(self.settings, hashes, splits).clean("test")
        low, high = bootstrap_intervals(answer.test, labels)["accuracy"]
        validation = answer.validation.argmax(axis=1) == splits["validation"].labels
        made = QualityRow(
            data=self.name,
            method=f"{method}, {given} rows a class" if given else method,
            validation_accuracy=float(validation.mean()),
            test_accuracy=float(right.mean()),
            low=low,
            high=high,
            clean_accuracy=None if clean is None else float(right[clean].mean()),
            p=None,
            seconds=answer.seconds,
            head_seconds=0.0,
            megabytes=0.0,
        )
        return _Measured(made, right, clean)

    def _tell(self, stage: str) -> None:
        self.on_progress(Progress(f"{self.name}: {stage}"))
