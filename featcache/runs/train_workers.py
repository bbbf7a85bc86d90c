"""`train-head --workers N`: several processes of this machine train one head, each on its share of the rows.

What they do together is in `heads.distributed`; how they are started is in `system.workers`.
`python -m featcache.runs.train_workers` is one of them.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from featcache.errors import FeatcacheError, HeadError, UsageError
from featcache.heads.distributed import WAIT, WorkerLost, join, usable_gpus
from featcache.heads.fit import Epoch
from featcache.heads.registry import check_parallel
from featcache.runs.run import Run, load_run
from featcache.runs.train import train_head
from featcache.settings import Settings
from featcache.system.documents import parse_document
from featcache.system.machine import available_cores
from featcache.system.workers import GRACE, Message, Worker, WorkerExit, WorkerProcesses, error_of, run_worker

MOST = 64  # workers, on machines with fewer cores


def train_with_workers(
    settings: Settings,
    workers: int,
    kind: str = "linear",
    view: str | None = None,
    *,
    progress: Callable[[Epoch], None] | None = None,
    wait: float = WAIT,
    grace: float = GRACE,
) -> Run:
    """As `train_head`, by several processes that share the cores equally.

    The result is that of one worker up to rounding. Workers are faster on many rows only: those of the
    linear head wait for each other in every step, so batches should have some thousand rows.

    Args:
        workers: how many; if there are more than cores, each has one thread.
        kind: `linear` or `exact`.
        wait: seconds for which a worker waits for another.
        grace: seconds that workers have to end by themselves when one of them has failed.

    Raises:
        UsageError: another kind of head, no possible number of workers.
        HeadError: a worker was killed or stopped answering; no run is saved.
        FeatcacheError: whatever `train_head` raises in a worker.
    """
    most = max(MOST, len(available_cores()))
    if not 1 <= workers <= most:
        raise UsageError(f"--workers {workers}: from 1 to {most} are possible here")
    if workers == 1:
        return train_head(settings, kind, view, progress=progress)
    check_parallel(kind)
    job = {"wait": wait, "kind": kind, "view": view, "settings": dataclasses.asdict(settings)}
    with WorkerProcesses("featcache.runs.train_workers", job, workers, grace=grace) as processes:
        run = _follow(processes, progress)
    return load_run(Path(settings.paths.reports_dir), run)


def _follow(processes: WorkerProcesses, progress: Callable[[Epoch], None] | None) -> str:
    """Listen until all workers have ended, or one failed and the others had time to; the name of the run."""
    run, failures = "", dict[int, FeatcacheError]()
    until: float | None = None
    while processes.running:
        heard = processes.receive(None if until is None else max(0.0, until - time.monotonic()))
        if heard is None:
            break
        rank, said = heard
        if isinstance(said, WorkerExit):
            if said.code:
                failures.setdefault(rank, _crash(rank, len(processes.processes), said))
        elif error := error_of(said):
            failures[rank] = error
        elif "run" in said:
            run = said["run"]
        elif progress:
            progress(Epoch(**said["epoch"]))
        if (failures or run) and until is None:
            until = time.monotonic() + processes.grace
    if failures and not run:
        raise min(failures.items(), key=lambda item: (isinstance(item[1], WorkerLost), item[0]))[1]
    return run


def _crash(rank: int, count: int, end: WorkerExit) -> HeadError:
    who = f"worker {rank + 1} of {count}"
    if end.code < 0:
        return HeadError(
            f"{who} was ended by {signal.Signals(-end.code).name}; no run was saved",
            hint="if memory was short: fewer workers need less",
        )
    return HeadError(f"{who} ended with exit code {end.code}: {end.last_words}")


def work(worker: Worker, job: Message, send: Callable[..., None]) -> None:
    """Train as one of the workers; the first one sends each epoch, and the name of the run."""
    settings = parse_document(Settings, job["settings"], "the settings of a worker", UsageError)
    gpus = usable_gpus(settings.backbone.device, worker.size)
    first = worker.rank == 0
    with join(worker, Path(job["folder"]) / "meeting", gpus=gpus, wait=job["wait"]) as group:
        tell = (lambda line: send(epoch=dataclasses.asdict(line))) if first else None
        run = train_head(settings, job["kind"], job["view"], progress=tell, group=group)
        if first:
            send(run=run.name)


if __name__ == "__main__":
    sys.exit(run_worker(work))
