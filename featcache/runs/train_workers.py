"""`train-head --workers N`: several processes of this machine train one head, each on its share of the rows.

They are started, listened to and ended here; what they do together is in `collective`. A worker's standard
input stays open for as long as whoever started it lives; its standard output says, line by line, how far the
training is and how it ended. `python -m featcache.runs.train_workers` is one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from featcache.errors import FeatcacheError, HeadError, UsageError, restored
from featcache.heads.distributed import WAIT, WorkerLost, join, usable_gpus
from featcache.heads.fit import Epoch
from featcache.heads.registry import check_parallel
from featcache.runs.run import Run, load_run
from featcache.runs.train import train_head
from featcache.settings import Settings, build_settings, options
from featcache.system.machine import available_cores, core_groups, keep_to

GRACE = 5.0  # seconds that workers have to end after one of them has failed, or when they are told to
MOST = 64  # workers, on machines with fewer cores


def train_with_workers(
    settings: Settings,
    workers: int,
    kind: str = "linear",
    view: str | None = None,
    *,
    progress: Callable[[Epoch], None] | None = None,
    wait: float = WAIT,
) -> Run:
    """As `train_head`, by `workers` processes that have an equal share of the cores each.

    The result is that of one worker up to rounding. It pays on many rows: the linear head's workers meet
    once a step, so batches should have some thousand rows.

    Args:
        workers: how many; where there are more than cores, each has one thread.
        kind: `linear` or `exact`.
        wait: seconds for which a worker waits for another.

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
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        job = {
            "size": workers, "meeting": str(Path(folder) / "meeting"), "wait": wait,
            "kind": kind, "view": view, "settings": _values(settings),
        }  # fmt: skip
        with _started(job, Path(folder)) as crew:
            run = crew.follow(progress)
    return load_run(Path(settings.paths.reports_dir), run)


class _Crew:
    """The workers that were started, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.listeners: list[threading.Thread] = []
        self.said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    def start(self, job: dict[str, Any], cores: list[int]) -> None:
        rank = len(self.workers)
        with open(self._errors_of(rank), "wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "featcache.runs.train_workers"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                env=_environment(max(len(cores), 1)), process_group=0,  # Ctrl-C comes to us, and we end them
            )  # fmt: skip
        self.workers.append(worker)
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its end will say so
            worker.stdin.write(json.dumps({**job, "rank": rank, "cores": cores}).encode() + b"\n")
            worker.stdin.flush()
        self.listeners.append(threading.Thread(target=self._listen, args=(rank, worker.stdout), daemon=True))
        self.listeners[-1].start()

    def _listen(self, rank: int, pipe: IO[bytes]) -> None:
        for line in pipe:
            with contextlib.suppress(ValueError):  # a line that a dying worker did not finish
                self.said.put((rank, json.loads(line)))
        self.said.put((rank, None))

    def follow(self, progress: Callable[[Epoch], None] | None) -> str:
        """Listen until all have ended, or until one has failed and the others had time to; the run's name."""
        run, failures = "", dict[int, FeatcacheError]()
        at_work, until = set(range(len(self.workers))), float("inf")
        while at_work:
            try:
                left = None if until == float("inf") else max(0.0, until - time.monotonic())
                rank, said = self.said.get(timeout=left)
            except queue.Empty:
                break
            if said is None:
                at_work.remove(rank)
                code = self.workers[rank].wait()
                if code and rank not in failures:
                    failures[rank] = self._crash(rank, code)
            elif "epoch" in said and progress:
                progress(Epoch(**said["epoch"]))
            elif "error" in said:
                failures[rank] = _error(*said["error"])
            run = (said or {}).get("run", run)
            if (failures or run) and until == float("inf"):
                until = time.monotonic() + GRACE
        if failures and not run:
            raise min(failures.items(), key=lambda item: (isinstance(item[1], WorkerLost), item[0]))[1]
        return run

    def _crash(self, rank: int, code: int) -> FeatcacheError:
        who = f"worker {rank + 1} of {len(self.workers)}"
        if code < 0:
            return HeadError(
                f"{who} was ended by {signal.Signals(-code).name}; no run was saved",
                hint="if memory was short: fewer workers need less",
            )
        lines = self._errors_of(rank).read_text(errors="replace").strip().splitlines()
        return HeadError(f"{who} ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")

    def _errors_of(self, rank: int) -> Path:
        return self.folder / f"errors-{rank}"

    def end(self) -> None:
        """End those that are still there."""
        until = time.monotonic() + GRACE
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for listener in self.listeners:
            listener.join()
        for worker in self.workers:
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def _started(job: dict[str, Any], folder: Path) -> Iterator[_Crew]:
    crew = _Crew(folder)
    try:
        for cores in core_groups(available_cores(), job["size"]):
            crew.start(job, cores)
        yield crew
    finally:
        crew.end()


def _environment(threads: int) -> dict[str, str]:
    """This process's, with so many threads; workers of one machine talk over its loopback."""
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    own = {"GLOO_SOCKET_IFNAME": loopback.pop()} if loopback else {}
    return own | os.environ | {"OMP_NUM_THREADS": str(threads)}


def _values(settings: Settings) -> dict[str, Any]:
    """All settings by name, JSON-able."""
    return {
        name: getattr(getattr(settings, option.section) if option.section else settings, name)
        for name, option in options().items()
    }


def _error(kind: str, what: str, hint: str | None) -> FeatcacheError:
    """A worker's error as it was raised there."""
    return WorkerLost(what, hint=hint) if kind == "WorkerLost" else restored(kind, what, hint)


# -- a worker -------------------------------------------------------------------------------------


def main() -> int:
    """Be one worker, as the line on standard input describes it; the exit code."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no line of ours
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_to(job["cores"])

    def say(**what: Any) -> None:
        print(json.dumps(what), file=pipe, flush=True)

    try:
        settings = build_settings(job["settings"])
        rank, size = job["rank"], job["size"]
        gpus = usable_gpus(settings.backbone.device, size)
        with join(rank, size, Path(job["meeting"]), local=rank, gpus=gpus, wait=job["wait"]) as group:
            tell = (lambda line: say(epoch=dataclasses.asdict(line))) if rank == 0 else None
            run = train_head(settings, job["kind"], job["view"], progress=tell, group=group)
            if rank == 0:
                say(run=run.name)
    except FeatcacheError as error:
        say(error=[type(error).__name__, error.what, error.hint])
        return error.exit_code
    return 0


def _end_with_parent() -> None:
    """End when standard input does: whoever started this worker is gone."""
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
