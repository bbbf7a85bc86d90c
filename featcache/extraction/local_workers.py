"""`--workers N`: several processes on this machine at one extraction, each with a GPU or some cores.

The processes share the work as those of torchrun do, see `make_file`; here they are started and listened to.
`python -m featcache.extraction.local_workers` is one of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featcache.errors import BackboneError, UsageError
from featcache.extraction.extracted import Extracted
from featcache.extraction.job import Job
from featcache.extraction.worker_folder import WorkerFolder, combined_progress
from featcache.settings import Settings
from featcache.system.documents import parse_document
from featcache.system.machine import available_cores, core_groups
from featcache.system.progress import OnProgress, Progress
from featcache.system.workers import (
    CORES_A_WORKER,
    Message,
    Worker,
    WorkerExit,
    WorkerProcesses,
    error_of,
    parse_count,
    run_worker,
)

POLL = 0.1  # seconds between two looks at the workers' notes
GRACE = 10.0  # seconds in which a worker ends by itself


def worker_count(asked: int | str, device: str) -> int:
    """How many workers `asked` means: a number, or `auto`.

    Args:
        device: as the settings have it.

    Raises:
        UsageError: not a number of workers, or more than there are GPUs or cores.
    """
    cores, gpus = len(available_cores()), _gpus() if device in ("auto", "cuda") else 0
    if asked == "auto":
        return gpus or max(1, cores // CORES_A_WORKER)
    count = parse_count(asked)
    if device not in ("auto", "cuda", "cpu") and count > 1:
        raise UsageError(f"--workers {asked} on --device {device}", hint="leave --device out")
    most, what = (gpus, "GPUs") if gpus else (cores, "cores")
    if count > most:
        raise UsageError(f"--workers {asked}: there are {most} {what} here", hint=f"--workers {most}")
    return count


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


class LocalWorkersJob(Job):
    """A `Job` whose splits are made by `count` processes on this machine.

    A worker that is killed costs the commit unit it was at; the others take over. A worker's error ends all.
    """

    def __init__(
        self, settings: Settings, on_progress: OnProgress | None, *, force: bool, wait: float, count: int
    ) -> None:
        super().__init__(settings, on_progress, force=force, wait=wait)
        self.count = count

    def make(self, splits: Sequence[str]) -> dict[str, Extracted]:
        """See `Job.make`.

        Raises:
            FeatcacheError: what a worker raised; committed units are kept.
            BackboneError: all workers were killed.
        """
        began = time.perf_counter()
        job = {"settings": asdict(self.settings), "splits": list(splits), "force": self.force}
        self.note_encoder(splits[0], [f"{self.count} workers of {self._share()} each"])
        with WorkerProcesses("featcache.extraction.local_workers", job, self.count, grace=GRACE) as processes:
            results = self._listen(processes)
        seconds = time.perf_counter() - began
        made = {}
        for split, one in results.items():
            file, encoded, notes = (
                self.cache.file(Path(one["path"])),
                int(one["encoded"]),
                tuple(one["notes"]),
            )
            made[split] = Extracted.of(file, split, seconds, encoded=encoded, notes=notes)
        return made

    def _share(self) -> str:
        if self.settings.backbone.device in ("auto", "cuda") and _gpus():
            return "one GPU"
        cores = len(core_groups(available_cores(), self.count)[0])
        return f"{cores} cores" if cores > 1 else "one core"

    def _listen(self, processes: WorkerProcesses) -> dict[str, dict[str, Any]]:
        """The result of each split, from the worker that knows of most work; returns when all have ended."""
        folder, results, noted = WorkerFolder(processes.folder), dict[str, dict[str, Any]](), set[str]()
        while processes.running:
            rank, said = processes.receive(POLL) or (0, {})
            if isinstance(said, WorkerExit):
                self._check_exit(rank, said, last=not processes.running and not results)
            elif error := error_of(said):
                raise error
            elif "note" in said and said["note"] not in noted:
                noted.add(said["note"])
                self.note("", said["note"])
            elif "results" in said:
                for split, one in said["results"].items():
                    results[split] = max(results.get(split, one), one, key=lambda each: int(each["encoded"]))
            if progress := combined_progress(folder.notes()):
                self.on_progress(progress)
        return results

    def _check_exit(self, rank: int, end: WorkerExit, *, last: bool) -> None:
        """Say that a worker was killed; raise where it failed, or where none is left to take over."""
        if end.code > 0:
            raise BackboneError(
                f"worker {rank} ended with {end.code}: {end.last_words}",
                hint="run it again: what is finished is kept; --workers 1 shows the error itself",
            )
        if end.code == 0:
            return
        what = f"worker {rank} was killed (signal {-end.code})"
        if last:
            raise BackboneError(
                f"{what}, and no other is left",
                hint="was memory short? committed units are kept: run the same command again",
            )
        self.note("", f"{what}; the others go on with its work")


def work(worker: Worker, message: Message, send: Callable[..., None]) -> None:
    """Extract as one of the workers; sends each note, and at the end the results by split."""

    def on_progress(event: Progress) -> None:
        if event.stage == "note":
            send(note=event.text.replace("\n", " "))

    job = Job(
        parse_document(Settings, message["settings"], "the job of the workers", UsageError), on_progress,
        force=message["force"], worker=worker, folder=Path(message["folder"]),
    )  # fmt: skip
    results = {
        one.split: {"path": str(one.path.absolute()), "encoded": one.encoded, "notes": one.notes}
        for one in job.run(message["splits"])
    }
    send(results=results)


if __name__ == "__main__":
    sys.exit(run_worker(work))
