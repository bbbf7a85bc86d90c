"""The whole job, from csv files to a compared head, beside what one would use instead: seconds and memory.

Each contender is a process, timed from its start to its end. What would take hours is not measured but
computed: a hundred epochs of the tutorials' loop from one, all steps of SetFit from some, and other numbers
of rows from two that were measured.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.bench.peers.learning import PeerJob, ask_peer
from featcache.bench.peers.process import Unavailable
from featcache.bench.timing import DIGITS, Machine, this_machine
from featcache.data.split import load_splits
from featcache.errors import FeatcacheError, UsageError
from featcache.heads.numbers.registry import refuse_numbers
from featcache.settings import DataSettings, Settings
from featcache.settings_file import to_toml
from featcache.system.documents import tidied
from featcache.system.machine import peak_memory_of
from featcache.system.progress import OnProgress, Progress, ignore

FEATCACHE, TUTORIAL, SETFIT = "featcache", "tutorial", "setfit"
PEERS = (TUTORIAL, "sentence-transformers", SETFIT)
SIZES = (1_000, 10_000, 100_000)  # rows for which the cost is told
EPOCHS = 100  # of the tutorials' loop
STEPS = 20  # of SetFit that are measured
SMALLER = 4  # the other number of rows that is measured is so many times smaller
HELD_OUT = 8  # a validation and a test row for so many train rows
WATCH = 0.05  # seconds between two looks at the memory of a process
LEAST = 40  # rows


@dataclass(frozen=True)
class ContenderCost:
    """What a contender takes.

    Attributes:
        rows: of train.
        seconds: of a whole process, and of what it did not do of its work.
        computed: what of the seconds was not measured; empty where all of it was.
        peak_bytes: most memory of the process; None where it was not measured.
    """

    contender: str
    rows: int
    seconds: float
    computed: str = ""
    peak_bytes: int | None = None


@dataclass(frozen=True)
class JobBenchmark:
    """What `bench_job` returns.

    Attributes:
        costs: for each contender at `SIZES` and at the two numbers of rows that were measured.
        unavailable: why a peer was left out, by name.
    """

    costs: tuple[ContenderCost, ...]
    unavailable: dict[str, str]
    machine: Machine


@dataclass(frozen=True)
class _JobTimes:
    """A contender at one number of rows.

    Attributes:
        seconds: of its process.
        more: seconds of the work that it did not do, and in words what that is.
        growth: with which power of the rows `more` grows.
    """

    rows: int
    seconds: float
    peak_bytes: int | None
    more: float = 0.0
    words: str = ""
    growth: int = 1


def bench_job(
    settings: Settings,
    *,
    rows: int = 1000,
    peers: Sequence[str] = PEERS,
    peer_python: str = sys.executable,
    peer_steps: int = STEPS,
    on_progress: OnProgress = ignore,
) -> JobBenchmark:
    """Seconds and memory of `featcache run` and of its peers on the same rows.

    Args:
        settings: encoder and data; the train split has the rows.
        rows: train rows; a quarter of them is measured, too.
        peers: of `PEERS`.
        peer_python: the interpreter of the environment in which the peers are installed.
        peer_steps: steps of SetFit that are measured.
        on_progress: receives what is measured next as a stage.

    Raises:
        UsageError: an unknown peer, or data that the peers do not take.
        FeatcacheError: `featcache run` failed.
    """
    if unknown := [name for name in peers if name not in PEERS]:
        raise UsageError(f"no peer {unknown[0]!r}", hint=f"there are: {', '.join(PEERS)}")
    refuse_numbers(settings.data.task, "bench job")
    costs, missing = list[ContenderCost](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="featcache-job-") as name:
        few = _CsvRows(settings, rows // SMALLER, Path(name, "few"))
        many = _CsvRows(settings, rows, Path(name, "many"))
        for contender in (FEATCACHE, *peers):
            found = []
            try:
                for data in (few, many):
                    on_progress(Progress(f"{contender}, {data.count:,} rows"))
                    found.append(_measure(contender, data, peer_python, peer_steps))
            except Unavailable as reason:
                missing[contender] = str(reason)
                continue
            costs += _costs(contender, *found)
    machine = this_machine("transformers", "scikit-learn")
    return tidied(JobBenchmark(tuple(costs), missing, machine), digits=DIGITS)


class _CsvRows:
    """Train rows, and an eighth as many of validation and test, as csv files.

    Attributes:
        count: of train.
    """

    def __init__(self, settings: Settings, rows: int, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        splits = load_splits(settings.data, ["train", "validation", "test"], seed=settings.seed)
        for name, split in splits.items():
            if split.has_pairs or split.labels.ndim > 1 or split.labels.min(initial=0) < 0:
                raise UsageError("bench job takes one text and one label a row")
            wanted = min(rows if name == "train" else -(-rows // HELD_OUT), len(split))
            if name == "train" and wanted < LEAST // SMALLER:
                raise UsageError(f"{wanted} rows are too few", hint=f"--rows {LEAST} or more")
            picked = np.linspace(0, len(split) - 1, wanted).astype(int)
            splits[name] = split.some(picked)
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("text", "label"))
                labels = (split.label_names[label] for label in split.labels[picked].tolist())
                writer.writerows(zip(split.texts(picked), labels, strict=True))
        self.splits, self.count = splits, len(splits["train"])
        data = DataSettings(dataset=str(folder), text_column="text", label_column="label")
        paths = replace(settings.paths, cache_dir=str(folder / "cache"), reports_dir=str(folder / "reports"))
        self.settings = replace(settings, data=data, paths=paths)


def _measure(contender: str, data: _CsvRows, python: str, steps: int) -> _JobTimes:
    """Run one contender on some rows."""
    if contender == FEATCACHE:
        return _run_featcache(data)
    answer = ask_peer(contender, PeerJob.of(data.settings, data.splits, steps=steps), python)
    seconds, learning = answer.process_seconds, answer.learning_seconds or 0.0
    measured = _JobTimes(data.count, seconds, answer.peak_bytes)
    if contender == TUTORIAL:
        more = (EPOCHS - 1) * learning
        return replace(measured, more=more, words=f"{EPOCHS} epochs from one")
    if contender == SETFIT and answer.steps and answer.all_steps:
        more = learning / answer.steps * (answer.all_steps - answer.steps)
        words = f"{answer.all_steps:,} steps from {answer.steps}"
        return replace(measured, more=more, words=words, growth=2)
    return measured


def _run_featcache(data: _CsvRows) -> _JobTimes:
    """`featcache run` in an empty folder; its seconds and memory."""
    file = data.folder / "settings.toml"
    file.write_text(to_toml(data.settings), encoding="utf-8")
    command = [sys.executable, "-m", "featcache_cli.main", "run", "--config", str(file), "--quiet"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        began, peak = time.perf_counter(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process:
            while process.poll() is None:
                peak = max(peak, peak_memory_of(process.pid) or 0)
                time.sleep(WATCH)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["no message"])[-1]
            raise FeatcacheError(
                f"featcache run ended with exit code {process.returncode}: {last}",
                hint="run that command by hand: it says more",
            )
    return _JobTimes(data.count, seconds, peak or None)


def _costs(contender: str, few: _JobTimes, many: _JobTimes) -> list[ContenderCost]:
    """The cost at both numbers of rows and at `SIZES`, the fewest rows first."""
    a_row = (many.seconds - few.seconds) / (many.rows - few.rows)
    found = {
        one.rows: ContenderCost(contender, one.rows, one.seconds + one.more, one.words, one.peak_bytes)
        for one in (few, many)
    }
    for rows in SIZES:
        if rows not in found:
            seconds = many.seconds + a_row * (rows - many.rows)
            seconds += many.more * (rows / many.rows) ** many.growth
            words = f"from {few.rows:,} and {many.rows:,} rows"
            found[rows] = ContenderCost(contender, rows, seconds, words)
    return [found[rows] for rows in sorted(found)]
