"""Worker processes: which of them this process is, and how they are started, heard and ended.

The environment variables are those of torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`,
`MASTER_ADDR`, `MASTER_PORT`), see https://docs.pytorch.org/docs/stable/elastic/run.html. This module alone
reads and writes them.

`WorkerProcesses` starts `python -m MODULE` several times; MODULE calls `run_worker`. The job of a worker is a
line of JSON on its standard input, which stays open: a worker ends when it closes, since its launcher is gone
then. Each line on its standard output is a message, a JSON object.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from featcache.errors import FeatcacheError, UsageError, restored
from featcache.system.machine import available_cores, core_groups, keep_to, short_waits
from featcache.system.outside import outside_error

CORES_A_WORKER = 4  # with `auto`, where workers compute on processors
GRACE = 5.0  # seconds in which a worker ends by itself before it is killed
MASTER = ("MASTER_ADDR", "MASTER_PORT")

Message = dict[str, Any]


@dataclass(frozen=True)
class Worker:
    """Which of several worker processes this process is.

    Attributes:
        rank: 0 to size - 1.
        size: number of workers on all machines, 2 or more.
        local_rank: number among the workers of this machine, from 0.
        local_size: number of workers on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Worker | None:
        """The worker that torchrun's variables describe; None where this process works alone.

        Args:
            environment: by default `os.environ`.

        Raises:
            UsageError: a variable is missing, is not a number, or is out of range.
        """
        given = os.environ if environment is None else environment
        if "WORLD_SIZE" not in given:
            return None
        size = _number(given, "WORLD_SIZE")
        rank = _number(given, "RANK", 0 if size == 1 else None)
        local_rank, local_size = _number(given, "LOCAL_RANK", rank), _number(given, "LOCAL_WORLD_SIZE", size)
        port = _number(given, "MASTER_PORT", 1)
        if rank >= size or local_rank >= local_size or not 0 < port < 65536:
            raise UsageError(
                f"RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank} of {local_size}, "
                f"MASTER_PORT {port}: out of range",
                hint="start workers by torchrun or --workers, or unset RANK and WORLD_SIZE",
            )
        return cls(rank, size, local_rank, local_size) if size > 1 else None


def require_master() -> None:
    """Check that the environment names the place where the workers of torchrun meet.

    Raises:
        UsageError: names the variables that are missing.
    """
    missing = [name for name in MASTER if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}",
            hint="start workers by torchrun or --workers, or unset RANK and WORLD_SIZE",
        )


def parse_count(asked: int | str) -> int:
    """The number of workers that `--workers` asks for.

    Raises:
        UsageError: not a whole number from 1.
    """
    count = int(asked) if str(asked).isdecimal() else 0
    if count < 1:
        raise UsageError(f"--workers {asked}: no number of workers", hint="auto, or 1 and more")
    return count


def _number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = given.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit():
        raise UsageError(f"{name}={text!r} in the environment: a whole number from 0 is needed")
    return int(text)


# -- in the launcher ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerExit:
    """The end of a worker process.

    Attributes:
        code: exit code; negative: the signal that killed it.
        last_words: the last line that it wrote to standard error.
    """

    code: int
    last_words: str


class WorkerProcesses:
    """Worker processes on this machine, each with an equal share of its cores; a context manager.

    Args:
        module: run by `python -m`; it calls `run_worker`.
        job: JSON-able, the same for all workers; they find `folder` in it, too: a folder that all share and
            that is removed at the end.
        count: how many; where there are more than cores, each has one thread.
        grace: seconds that workers have to end by themselves.
    """

    def __init__(self, module: str, job: Mapping[str, Any], count: int, *, grace: float = GRACE) -> None:
        self.grace = grace
        self.processes: list[subprocess.Popen[bytes]] = []
        self.running: set[int] = set()
        self._temporary = tempfile.TemporaryDirectory(prefix="featcache-")
        self.folder = Path(self._temporary.name)
        self._listeners: list[threading.Thread] = []
        self._messages: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        try:
            for cores in core_groups(available_cores(), count):
                self._start(module, {**job, "cores": cores, "folder": str(self.folder)}, count)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, module: str, job: Mapping[str, Any], count: int) -> None:
        rank = len(self.processes)
        with open(self._errors(rank), "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env=_environment(rank, count, len(job["cores"])),
                process_group=0,  # Ctrl-C comes to the launcher, which ends the workers
            )  # fmt: skip
        self.processes.append(process)
        self.running.add(rank)
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its exit code is reported
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        listener = threading.Thread(target=self._listen, args=(rank, process.stdout), daemon=True)
        self._listeners.append(listener)
        listener.start()

    def _listen(self, rank: int, pipe: IO[bytes]) -> None:
        for line in pipe:
            with contextlib.suppress(ValueError):  # a line that a dying worker did not finish
                self._messages.put((rank, json.loads(line)))
        self._messages.put((rank, None))

    def receive(self, timeout: float | None = None) -> tuple[int, Message | WorkerExit] | None:
        """The rank of a worker, and its next message or its end; None where none comes in `timeout` seconds.

        A worker's error is a message `{"error": [kind, what, hint]}`, see `error_of`.
        """
        try:
            rank, message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is not None:
            return rank, message
        self.running.remove(rank)
        lines = self._errors(rank).read_text(errors="replace").strip().splitlines()
        return rank, WorkerExit(self.processes[rank].wait(), lines[-1] if lines else "it said nothing")

    def _errors(self, rank: int) -> Path:
        return self.folder / f"errors-{rank}"

    def stop(self) -> None:
        """End the workers that still run: by SIGTERM, and after `grace` seconds by SIGKILL."""
        until = time.monotonic() + self.grace
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for listener in self._listeners:
            listener.join()
        for process in self.processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._temporary.cleanup()


def error_of(message: Message) -> FeatcacheError | None:
    """The error that a worker raised, of the class it had there; None for another message."""
    return restored(*message["error"]) if "error" in message else None


def _environment(rank: int, count: int, cores: int) -> dict[str, str]:
    """This process's environment with what torchrun sets; gloo talks over the loopback interface."""
    loopback = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    own = {"GLOO_SOCKET_IFNAME": loopback.pop()} if loopback else {}
    return own | short_waits(os.environ) | os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": str(max(cores, 1)),
    }  # fmt: skip


# -- in a worker ----------------------------------------------------------------------------------


def run_worker(work: Callable[[Worker, Message, Callable[..., None]], None]) -> int:
    """Be one worker process of `WorkerProcesses`; returns its exit code.

    Args:
        work: called with which worker this is, the job, and a function that sends its keyword arguments
            to the launcher as a message. A `FeatcacheError` that it raises is sent, too.
    """
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no message
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    keep_to(job["cores"])
    worker = Worker.from_environment()
    assert worker is not None

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    try:
        work(worker, job, send)
    except Exception as error:
        known = outside_error(error)
        if known is None:
            raise
        send(error=[type(known).__name__, known.what, known.hint])
        return known.exit_code
    return 0


def _end_with_launcher() -> None:
    """End when standard input does: the launcher is gone."""
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
