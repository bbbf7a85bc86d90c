"""One process writes at a time; the others wait, or get an error that names it."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import CacheError, UsageError
from featcache.system.lock import discard_lock, holder, holder_path, is_locked, lock_path, locked

HOST = socket.gethostname()


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` and has `locked` and `Path`; killed at the end."""
    # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
    start = "import os, signal, sys, time\nfrom pathlib import Path\nfrom featcache.system.lock import *\n"
    start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", start + code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holding(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock and releases it at a line on its stdin."""
    code = f"with locked(Path({str(target)!r})):\n    print('held', flush=True); sys.stdin.readline()\n"
    with child(code + "print('free', flush=True); sys.stdin.readline()\n") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "held\n", process.stderr.read()
        yield process


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def unused_pid() -> int:
    """The id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_holder(target: Path, **changes: Any) -> None:
    who = {"pid": os.getpid(), "host": HOST, "since": "2024-01-02 03:04:05"} | changes
    holder_path(target).write_text(json.dumps(who))


# ---------------------------------------------------------------- told at once


def test_locked_names_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.h5"
    with holding(target) as other:
        began = time.perf_counter()
        with pytest.raises(CacheError) as caught, locked(target):
            pytest.fail("two hold the lock")
        assert time.perf_counter() - began < 1
        who = f"another process is writing {target}: process {other.pid} on {HOST} since "
        assert caught.value.what.startswith(who + time.strftime("%Y-")), caught.value.what
        assert "waited" not in caught.value.what
        found = holder(target)
        assert found is not None and (found.pid, found.host) == (other.pid, HOST)
        assert is_locked(target)
        with locked(tmp_path / "new" / "b.h5"):  # another file is another lock
            pass
    assert not is_locked(target)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_locked_takes_the_lock_of_a_dead_process(tmp_path: Path, by: signal.Signals) -> None:
    target = tmp_path / "a.h5"
    with holding(target) as other:
        other.send_signal(by)
        other.wait(timeout=10)
        assert holder_path(target).exists()  # it had no time to tidy up
        assert holder(target) is None and not is_locked(target)
        with locked(target):
            found = holder(target)
            assert found is not None and found.pid == os.getpid()
    assert not holder_path(target).exists()


def test_locked_does_not_name_a_dead_process(tmp_path: Path) -> None:
    """Another process has just taken the lock and has not written its `.holder` file yet."""
    target = tmp_path / "a.h5"
    with locked(target):
        leave_holder(target, pid=unused_pid())
        with pytest.raises(CacheError, match="has just started"), locked(target):
            pytest.fail("held twice")
        leave_holder(target, pid=unused_pid(), host="another.host")  # it may be running there
        with pytest.raises(CacheError, match=r"on another\.host since 2024"), locked(target):
            pytest.fail("held twice")
        leave_holder(target, pid=1)  # alive, and not ours to signal for most users
        with pytest.raises(CacheError, match="process 1 on"), locked(target):
            pytest.fail("held twice")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b'{"pid": 1}', b"\xff\xfe", b'{"pid": "x"}'])
def test_holder_is_none_for_an_unreadable_file(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path / "a.h5"):
        (tmp_path / "a.holder").write_bytes(content)
        with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path / "a.h5"):
            pytest.fail("held twice")


@pytest.mark.parametrize("pid", [10**30, -5, 0])
def test_holder_with_an_impossible_process_id(tmp_path: Path, pid: int) -> None:
    with locked(tmp_path / "a.h5"):
        leave_holder(tmp_path / "a.h5", pid=pid)
        with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path / "a.h5"):
            pytest.fail("held twice")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_locked_releases_the_lock_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), locked(tmp_path / "a.h5"):
        raise error
    with locked(tmp_path / "a.h5"):
        pass


def test_locked_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot write"), locked(tmp_path / "file" / "a.h5"):
        pytest.fail("locked")


# ---------------------------------------------------------------- waiting


def test_locked_waits_until_the_lock_is_released(tmp_path: Path) -> None:
    target, said = tmp_path / "a.h5", []
    with holding(target) as other:
        threading.Timer(0.5, let_go, [other]).start()
        began = time.perf_counter()
        with locked(target, wait=30, waiting=said.append):
            assert 0.4 < time.perf_counter() - began < 10
            found = holder(target)
            assert found is not None and found.pid == os.getpid()
    (text,) = said
    assert f"waiting for process {other.pid} on {HOST}" in text and "a.h5" in text


def test_locked_waits_until_the_holder_dies(tmp_path: Path) -> None:
    with holding(tmp_path / "a.h5") as other:
        threading.Timer(0.3, other.kill).start()
        with locked(tmp_path / "a.h5", wait=math.inf):
            pass


def test_locked_raises_lock_held_after_the_wait(tmp_path: Path) -> None:
    with holding(tmp_path / "a.h5") as other:
        began = time.perf_counter()
        with pytest.raises(CacheError) as caught, locked(tmp_path / "a.h5", wait=0.6):
            pytest.fail("two hold the lock")
        assert 0.5 < time.perf_counter() - began < 5
        assert f"process {other.pid} on" in caught.value.what and "waited 0.6 seconds" in caught.value.what


def test_locked_does_not_call_waiting_for_a_free_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "a.h5", wait=5, waiting=lambda text: pytest.fail(text)):
        pass


@pytest.mark.parametrize("wait", [-1, math.nan, -math.inf])
def test_locked_refuses_an_invalid_wait(tmp_path: Path, wait: float) -> None:
    with pytest.raises(UsageError, match="cannot wait"), locked(tmp_path / "a.h5", wait=wait):
        pytest.fail("locked")


def test_locked_ends_its_wait_at_an_interrupt(tmp_path: Path) -> None:
    with holding(tmp_path / "a.h5"):
        target = str(tmp_path / "a.h5")
        code = f"with locked(Path({target!r}), wait=60, waiting=lambda text: print(text, flush=True)): pass\n"
        with child(code) as waiter:
            assert waiter.stdout is not None and waiter.stderr is not None
            assert waiter.stdout.readline().startswith("waiting for")
            waiter.send_signal(signal.SIGINT)
            assert waiter.wait(timeout=10) != 0
            assert "KeyboardInterrupt" in waiter.stderr.read()
        assert is_locked(tmp_path / "a.h5")  # the other's hold is untouched


# ---------------------------------------------------------------- never two


def test_locked_is_exclusive_among_many_processes(tmp_path: Path) -> None:
    """Each process increments a number slowly; some remove the files of the lock, as `gc` does."""
    number, target = tmp_path / "number", tmp_path / "a.h5"
    number.write_text("0")
    code = (
        f"number, target = Path({str(number)!r}), Path({str(target)!r})\n"
        "for turn in range(12):\n"
        "    with locked(target, wait=60):\n"
        "        value = int(number.read_text())\n"
        "        time.sleep(0.002)\n"
        "        number.write_text(str(value + 1))\n"
        "        if (turn + os.getpid()) % 2: discard_lock(target)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", _start() + code]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert number.read_text() == "48"


def _start() -> str:
    return (
        "import os, time\nfrom pathlib import Path\nimport featcache.system.lock as lock\nlock.POLL = 0.003\n"
        + ("from featcache.system.lock import discard_lock, locked\n")
    )


def test_discard_lock_removes_all_files_of_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "a.h5"):
        discard_lock(tmp_path / "a.h5")
        discard_lock(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_is_locked_and_holder_create_no_file(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "a.h5") and holder(tmp_path / "a.h5") is None
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a.h5"):
        assert is_locked(tmp_path / "a.h5")
    assert not is_locked(tmp_path / "a.h5")
    assert lock_path(tmp_path / "a.h5") == tmp_path / "a.lock"
