"""A run on disk: `reports/<run>/` with its record, its head, its predictions and what else belongs to it."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from featcache.cache.view_names import LEXICAL
from featcache.errors import HeadError, closest
from featcache.heads.fit import Epoch
from featcache.heads.head import Head, load_head
from featcache.runs.predictions import Predictions, read_predictions
from featcache.runs.record import RUN_FILE, RunRecord, read_run_record
from featcache.system.durable import explained, fsync_folder, temporary_beside, write_file
from featcache.system.lock import locked
from featcache.system.text import html_table
from featcache.system.units import percent_text

METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1"}
WAIT = 30.0  # seconds for another process that renames or removes a run


@dataclass(frozen=True)
class Run:
    """One trained head in its folder; `record` is the content of its run.json."""

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        return self.folder.name

    def __repr__(self) -> str:
        which = "test" if "test" in self.record.metrics else "validation"
        name = "rmse" if self.record.numbers else "accuracy"
        return f"Run({self.name!r}, {which} {name} {self.metric(which, name):.4f})"

    def _repr_html_(self) -> str:
        """Its scores by split, for a notebook."""
        about = self.record
        names = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"} if about.numbers else METRIC_NAMES
        write = "{:.4g}".format if about.numbers else percent_text
        first = next(iter(names))
        lines = []
        for split, metrics in about.metrics.items():
            low, high = about.intervals.get(split, {}).get(first, (None, None))
            ends = "" if low is None or high is None else f"{write(low)} to {write(high)}"
            scores = [write(metrics[name]) for name in names if name in metrics]
            lines.append((split, f"{about.rows.get(split, 0):,}", *scores, ends))
        unit = "" if about.numbers else " (scores in %)"
        header = ("split", "rows", *names.values(), f"95 % interval of {names[first]}")
        return html_table(header, lines, f"{self.name}: {about.head} head on {about.short_view}{unit}")

    def metric(self, split: str, name: str, *, clean: bool = False) -> float:
        """One metric, e.g. `run.metric("test", "accuracy")`; NaN where the split was not scored.

        Args:
            clean: on the rows that do not leak, where some of the split do and others do not.
        """
        whole = self.record.metrics
        metrics = self.record.clean.metrics if clean and self.record.clean else {}
        return (metrics.get(split) or whole.get(split, {})).get(name, float("nan"))

    @property
    def history(self) -> list[Epoch]:
        """One line an epoch; empty for solvers without epochs."""
        return list(self.record.history)

    def head(self, which: str = "head") -> Head:
        """The best head by validation, or with `last` the one after the last epoch."""
        return load_head(self.folder, which)

    def predictions(self, split: str, *, probabilities: bool = True) -> Predictions:
        """The head's predictions for every row of `split`.

        Args:
            probabilities: read them too; they are most of the file.

        Raises:
            HeadError: that split was not scored, or the file is damaged.
        """
        if self.record.numbers:
            raise HeadError(
                f"run {self.name} predicts numbers, and no labels", hint="name a run that predicts labels"
            )
        return read_predictions(self.predictions_path(split), probabilities=probabilities)

    def predictions_path(self, split: str) -> Path:
        """The file of the predictions for `split`.

        Raises:
            HeadError: that split was not scored.
        """
        path = self.folder / f"predictions-{split}.parquet"
        if not path.is_file():
            raise HeadError(
                f"run {self.name} has no predictions of {split}",
                hint=f"train again with it in the cache: featcache extract --split {split}",
            )
        return path


class SavedPredictions(Protocol):
    """What a head predicts for every row of a split, labels or numbers."""

    def write(self, path: Path) -> None:
        """Write them as a parquet file."""


def file_stem(name: str) -> str:
    """`name` as the start of a file's name: `linear-last/cls` -> `linear-last-cls`."""
    return re.sub(r"[^\w.\-]+", "-", name).strip("-")


def save_run(
    reports_dir: Path,
    record: RunRecord,
    heads: Mapping[str, Head],
    predictions: Mapping[str, SavedPredictions],
    files: Mapping[str, bytes] | None = None,
) -> Run:
    """Write a run into a new folder, which appears whole or not at all.

    Args:
        record: becomes run.json; the folder is named after its `head` and `view`.
        heads: by file name, e.g. `head` (best by validation) and `last`.
        predictions: by split.
        files: what else belongs to the run, by file name.
    """
    stem = file_stem("no-backbone" if record.view == LEXICAL else f"{record.head}-{record.short_view}")
    with explained(reports_dir):
        reports_dir.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(reports_dir / stem)
        temporary.mkdir()
        try:
            for name, head in heads.items():
                head.save(temporary, name)
            for split, found in predictions.items():
                found.write(temporary / f"predictions-{split}.parquet")
            for name, content in (files or {}).items():
                write_file(temporary / name, content)
            return _take_name(reports_dir, stem, temporary, record)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _take_name(reports_dir: Path, stem: str, temporary: Path, record: RunRecord) -> Run:
    """Rename the finished folder to the first free `<stem>-<number>`, with that name in its run.json."""
    number = 1
    while True:
        folder = reports_dir / f"{stem}-{number}"
        if not folder.exists():
            write_file(temporary / RUN_FILE, replace(record, run=folder.name).to_bytes())
            with contextlib.suppress(OSError):  # another process has just taken the name
                temporary.rename(folder)
                fsync_folder(reports_dir)
                return Run(folder, read_run_record(folder))
        number += 1


def check_run_name(reports_dir: Path, name: str) -> None:
    """Refuse a name that no run can have, or that something in `reports_dir` has.

    Raises:
        HeadError: says which.
    """
    if not name or name != file_stem(name) or name.startswith("."):
        hint = "letters, digits, - _ and . make a name; it does not begin with a dot"
        raise HeadError(f"{name!r} is no name for a run", hint=hint)
    if (reports_dir / name).exists():
        raise HeadError(f"{reports_dir / name} exists already", hint="choose another name")


def rename_run(run: Run, name: str) -> Run:
    """The run under another name, in the same folder of runs; nothing is replaced.

    Two renames or removals in one folder of runs wait for each other; a training writes a folder of its own.

    Raises:
        HeadError: the name is not free, or no name; or the run has gone.
    """
    with _changing(run) as reports_dir:
        check_run_name(reports_dir, name)
        folder = reports_dir / name
        run.folder.rename(folder)
        fsync_folder(reports_dir)
        write_file(folder / RUN_FILE, replace(run.record, run=name).to_bytes())
    return Run(folder, read_run_record(folder))


def remove_run(run: Run) -> None:
    """Remove a run with its head and predictions; nobody finds half of it.

    Raises:
        HeadError: it has gone.
    """
    with _changing(run) as reports_dir:
        leaving = temporary_beside(run.folder)
        run.folder.rename(leaving)
        fsync_folder(reports_dir)
        shutil.rmtree(leaving)


@contextlib.contextmanager
def _changing(run: Run) -> Iterator[Path]:
    """The folder of runs that a run is in, while no other process renames or removes one there."""
    reports_dir = run.folder.parent
    with locked(reports_dir / ".runs", WAIT), explained(run.folder):
        if not (run.folder / RUN_FILE).is_file():
            raise HeadError(f"run {run.name} has gone from {reports_dir}", hint="see: featcache runs ls")
        yield reports_dir


def load_run(reports_dir: Path, name: str) -> Run:
    """The run of that name, or at that path.

    Raises:
        HeadError: no such run (lists those there are), or unreadable.
    """
    folder = reports_dir / name
    if not (folder / RUN_FILE).is_file():
        folder = Path(name)
    if not (folder / RUN_FILE).is_file():
        known = [run.name for run in reversed(list_runs(reports_dir))]
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        there = f"runs there: {', '.join(known[:20]) or 'none yet'}{more}"
        close = closest(name, known)
        ask = f"did you mean {close}? " if close else ""
        raise HeadError(f"no run {name!r} in {reports_dir}", hint=ask + there)
    return Run(folder, read_run_record(folder))


def list_runs(reports_dir: Path) -> list[Run]:
    """All readable runs, oldest first."""
    found = []
    for path in reports_dir.glob(f"[!.]*/{RUN_FILE}"):
        with contextlib.suppress(HeadError):
            found.append(Run(path.parent, read_run_record(path.parent)))
    return sorted(found, key=lambda run: (run.record.created, run.name))


def best_run(runs: list[Run]) -> Run | None:
    """The first of `ranked`; None of none."""
    return next(iter(ranked(runs)), None)


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Best first: validation accuracy, then validation loss, then the newest; never test.

    Of runs that predict numbers the lowest validation RMSE; they come after those that classify, as the two
    cannot be compared. Scores are those of the clean rows, unless a run is of an earlier version and
    has none.
    """
    clean = all(run.record.clean for run in runs)
    return sorted(runs, key=lambda run: _rank(run, clean=clean), reverse=True)


def _rank(run: Run, *, clean: bool) -> tuple[float, float, str, str]:
    """Higher is better."""
    if run.record.numbers:
        error = run.metric("validation", "rmse", clean=clean)
        return (-1.0, -error if error == error else -math.inf, run.record.created, run.name)
    accuracy, loss = (run.metric("validation", name, clean=clean) for name in ("accuracy", "log_loss"))
    known = accuracy == accuracy and loss == loss  # NaN sorts nowhere
    return (accuracy if known else -1.0, -loss if known else 0.0, run.record.created, run.name)


def choose_run(reports_dir: Path, name: str | None) -> Run:
    """The run of that name; without one, the best by validation, see `ranked`.

    Raises:
        HeadError: no such run, or none at all.
    """
    if name is not None:
        return load_run(reports_dir, name)
    run = best_run(list_runs(reports_dir))
    if run is None:
        raise HeadError(
            f"no trained head in {reports_dir}",
            hint="train one with: featcache train-head --epochs 100",
        )
    return run
