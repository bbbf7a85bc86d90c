"""The command and its workers as real processes, forked from one with the slow imports behind it.

A process of `subprocess` imports torch, transformers and datasets for three seconds before it does anything.
These have descriptors, signals and an exit code of their own, too, but begin after the imports. What depends
on how Python starts (encodings, variables that libraries read when they are imported) needs `subprocess`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

from featcache_cli.main import COMMANDS, main

PIPE = subprocess.PIPE
PRELOADED = [
    "torch", "transformers", "datasets.io", "datasets.packaged_modules", "h5py", "filelock", "pytest",
    "hypothesis", "scipy.io", "pandas", "sklearn.metrics", "safetensors.numpy", "safetensors.torch",
    "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
    "transformers.convert_slow_tokenizer", "featcache.extraction.api", "featcache.backbone.load",
    "featcache.backbone.encoder", "featcache.runs.train", "featcache.prediction.predictor",
    *(f"featcache_cli.commands.{name}" for name in COMMANDS),
]  # fmt: skip
READ_AT_START = ("HF_", "PYTHON")  # beginnings of variables


@functools.cache
def fork_server() -> Any:
    """The context of `multiprocessing` whose processes begin with `PRELOADED` imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    context.Process().start()  # the server starts now, with the variables of now
    _served.update(_read_at_start(os.environ))
    return context


_served: dict[str, str] = {}


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START)}


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a forked process with these variables is what a new one would be."""
    fork_server()
    return _read_at_start(env) == _served and env.get("LC_ALL") == "C.UTF-8"


class ForkedProcess:
    """A running process, with the part of `subprocess.Popen` that is used here.

    Args:
        begin: called in the process with `argv`, once its descriptors and variables are those that are given.
        env: all variables of the process.
        stdin, stdout, stderr: a descriptor, or `PIPE` for a pipe of bytes.
        own_group: it leads a process group of its own.
    """

    def __init__(
        self,
        begin: Callable[[list[str]], None],
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: int = PIPE,
        stdout: int = PIPE,
        stderr: int = PIPE,
        own_group: bool = False,
    ) -> None:
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        given, ours = [stdin, stdout, stderr], []
        for number, (asked, mode) in enumerate(zip(given, ("wb", "rb", "rb"), strict=True)):
            if asked == PIPE:
                ends = os.pipe()
                mine, given[number] = reversed(ends) if mode == "wb" else ends
                setattr(self, ("stdin", "stdout", "stderr")[number], os.fdopen(mine, mode))
                ours.append(given[number])
        start = _Start(begin, list(argv), dict(env), Path.cwd(), [_Passed(fd) for fd in given], own_group)
        self._process = fork_server().Process(target=start)
        self._process.start()
        self.pid: int = self._process.pid
        for descriptor in ours:
            os.close(descriptor)

    @property
    def returncode(self) -> int | None:
        """The exit code; negative: the signal that ended it; None while it runs."""
        return self.poll()

    def poll(self) -> int | None:
        """`returncode`, looked up now."""
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one; `subprocess.TimeoutExpired` after `timeout` seconds."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: bytes = b"", timeout: float | None = 180.0) -> tuple[bytes, bytes]:
        """Write `input`, read both pipes to their ends, and wait for the process."""
        found: dict[str, bytes] = {}

        def read(name: str, pipe: IO[bytes]) -> None:
            with pipe:
                found[name] = pipe.read()

        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [
            threading.Thread(target=read, args=(name, pipe), daemon=True)
            for name, pipe in pipes.items() if pipe is not None and not pipe.closed
        ]  # fmt: skip
        for reader in readers:
            reader.start()
        if self.stdin is not None and not self.stdin.closed:
            try:
                self.stdin.write(input)
                self.stdin.close()
            except BrokenPipeError:  # it has ended without reading all
                pass
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found.get("stdout", b""), found.get("stderr", b"")


class _Passed:
    """A descriptor that goes to the new process with the arguments of its function."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(passed: Any) -> int:
    return int(passed.detach())


@dataclass
class _Start:
    """What Python does in the new process before it runs a script, and the script."""

    begin: Callable[[list[str]], None]
    argv: list[str]
    env: dict[str, str]
    folder: Path
    streams: list[Any]
    own_group: bool

    def __call__(self) -> None:
        for number, descriptor in enumerate(self.streams):
            os.dup2(descriptor, number)
        for descriptor in set(self.streams):
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.folder)
        if self.own_group:
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        coded: dict[str, Any] = {
            "encoding": "utf-8",
            "errors": "surrogateescape",
            "closefd": False,
        }
        sys.stdin = os.fdopen(0, **coded)
        sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, **coded)
        sys.stderr = os.fdopen(
            2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace"
        )
        if threads := self.env.get("OMP_NUM_THREADS"):
            import torch

            torch.set_num_threads(int(threads))
        self.begin(self.argv)


def be_the_command(argv: list[str]) -> None:
    """`featcache ARGV`."""
    sys.argv = ["featcache", *argv]
    sys.exit(main())


def be_the_module(argv: list[str]) -> None:
    """`python -m ARGV`."""
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def start_worker(
    argv: list[str], *, stdin: int, stdout: int, stderr: IO[bytes], env: Mapping[str, str], process_group: int
) -> ForkedProcess:
    """In place of the `subprocess.Popen` of `featcache.system.workers`."""
    module = argv[argv.index("-m") + 1 :]
    pipes = {"stdin": stdin, "stdout": stdout, "stderr": stderr.fileno()}
    return ForkedProcess(be_the_module, module, env, **pipes, own_group=process_group == 0)
