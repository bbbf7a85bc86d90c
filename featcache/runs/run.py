"""A run on disk: `reports/<run>/` with the head, its settings, its metrics and its predictions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.metrics import Scores
from featcache.heads.fit import Epoch
from featcache.heads.head import Head, load_head
from featcache.runs.predictions import Predictions, read_predictions, write_predictions
from featcache.system.durable import explained, fsync_folder, temporary_beside, write_file

RUN_FORMAT = 1
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """One trained head with everything that is known of it; `record` is the content of run.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    def metric(self, split: str, name: str) -> float:
        """One metric, e.g. `run.metric("test", "accuracy")`; NaN where the split was not scored."""
        return float(self.record["metrics"].get(split, {}).get(name, float("nan")))

    @property
    def history(self) -> list[Epoch]:
        return [Epoch(**line) for line in self.record["history"]]

    def head(self, which: str = "head") -> Head:
        """The best head, or with `last` the one after the last epoch."""
        return load_head(self.folder, which)

    def predictions(self, split: str, *, probabilities: bool = True) -> Predictions:
        """What its head said of every row of `split`; without `probabilities` in less time.

        Raises:
            HeadError: that split was not scored, or the file is damaged.
        """
        path = self.folder / f"predictions-{split}.parquet"
        if not path.is_file():
            raise HeadError(
                f"run {self.name} has no predictions of {split}",
                hint=f"train again with it in the cache: featcache extract --split {split}",
            )
        return read_predictions(path, probabilities=probabilities)


def save_run(
    reports_dir: Path,
    record: Mapping[str, Any],
    heads: Mapping[str, Head],
    predictions: Mapping[str, Predictions | tuple[np.ndarray, np.ndarray, np.ndarray]],
    files: Mapping[str, bytes] | None = None,
) -> Run:
    """Write a run under a name of its own; it appears whole or not at all.

    Args:
        record: becomes run.json; its `head` and `view` make the name.
        heads: by file name, e.g. `head` (best by validation) and `last`.
        predictions: by split; or row hashes uint8 `[N, 32]`, labels (int64 `[N]` or multi-hot `[N, C]`)
            and probabilities `[N, C]`, of which `Predictions.of` takes the largest or those from 0.5.
        files: what else belongs to the run, by file name.
    """
    stem = re.sub(r"[^\w.\-]+", "-", f"{record['head']}-{record['view']}").strip("-")
    names = heads["head"].label_names
    with explained(reports_dir):
        reports_dir.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(reports_dir / stem)
        temporary.mkdir()
        try:
            for name, head in heads.items():
                head.save(temporary, name)
            for split, found in predictions.items():
                whole = found if isinstance(found, Predictions) else Predictions.of(*found, names)
                write_predictions(temporary / f"predictions-{split}.parquet", whole)
            for name, content in (files or {}).items():
                write_file(temporary / name, content)
            folder, final = _take_name(reports_dir, stem, temporary, record)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Run(folder, final)


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
        raise HeadError(f"no run {name!r} in {reports_dir}", hint=there)
    run = _read(folder)
    if run is None:
        raise HeadError(f"cannot read {folder / RUN_FILE}, or it has another format")
    return run


def list_runs(reports_dir: Path) -> list[Run]:
    """All readable runs, oldest first."""
    found = [_read(path.parent) for path in reports_dir.glob(f"[!.]*/{RUN_FILE}")]
    return sorted((run for run in found if run), key=lambda run: (run.record["created"], run.name))


def best_run(runs: list[Run]) -> Run | None:
    """The first by `rank`; None of none."""
    return max(runs, key=rank, default=None)


def rank(run: Run) -> tuple[float, float, str, str]:
    """Higher is better: validation accuracy, then validation loss, then the newest; never test."""
    accuracy, loss = run.metric("validation", "accuracy"), run.metric("validation", "log_loss")
    known = accuracy == accuracy and loss == loss  # NaN sorts nowhere
    return (accuracy if known else -1.0, -loss if known else 0.0, run.record["created"], run.name)


def choose_run(reports_dir: Path, name: str | None) -> Run:
    """The run of that name; without one, the best by validation accuracy.

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


def scores_record(scores: Scores) -> dict[str, Any]:
    """Per-class table and confusion matrix (multi-label has none) as run.json holds them."""
    return {
        "per_class": [dataclasses.asdict(line) for line in scores.per_class],
        "confusion": None if scores.confusion is None else scores.confusion.tolist(),
    }


def _read(folder: Path) -> Run | None:
    try:
        record = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    needed = {"head", "view", "fingerprint", "metrics", "created", "seconds", "history"}
    if not isinstance(record, dict) or record.get("format") != RUN_FORMAT or not needed <= set(record):
        return None
    return Run(folder, record)


def _take_name(
    reports_dir: Path, stem: str, temporary: Path, record: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Give the finished folder the first free `<stem>-<number>`; its path and its run.json."""
    number = 1
    while True:
        folder = reports_dir / f"{stem}-{number}"
        if not folder.exists():
            final = {"format": RUN_FORMAT, "run": folder.name, **record}
            content = json.dumps(final, indent=1, ensure_ascii=False, default=_plain)
            write_file(temporary / RUN_FILE, content.encode("utf-8"))
            with contextlib.suppress(OSError):  # somebody else took the name just now
                temporary.rename(folder)
                fsync_folder(reports_dir)
                return folder, json.loads(content)
        number += 1


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in run.json")
