"""File systems without locks: one process holds a lock all the same, and publication overwrites nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLease

from featcache.cache.staging import Staging
from featcache.errors import LockHeld
from featcache.system import durable, lock
from featcache.system.downloads import entry_lock
from featcache.system.lock import holder, is_locked, lease_path, lock_path, locked
from tests.support.cli_tools import environment

pytestmark = pytest.mark.bad_input

HOLDER = """
import sys
from pathlib import Path
from featcache.system.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["ENOLCK", "ENOSYS", "ENOTSUP"])
def error(request: pytest.FixtureRequest) -> str:
    """What `flock` answers."""
    return str(request.param)


@pytest.fixture
def without(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flock` fails in this process."""

    def refused(*_: object) -> None:
        raise OSError(getattr(errno, error), "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)


def elsewhere(folder: Path, error: str) -> dict[str, str]:
    """The environment of a process for which `folder` has no locks."""
    path = [str(Path(__file__).parents[1] / "support" / "without_locks"), os.environ["PYTHONPATH"]]
    return environment(NO_LOCKS_IN=str(folder), NO_LOCKS_ERROR=error, PYTHONPATH=os.pathsep.join(path))


@pytest.fixture
def other(tmp_path: Path, error: str) -> Iterator[Any]:
    """Another process that holds the lock of `a.h5` until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "a.h5"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=elsewhere(tmp_path, error),
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.usefixtures("without")
def test_one_of_two_processes_holds_it(tmp_path: Path, other: Any) -> None:
    target = tmp_path / "a.h5"
    assert is_locked(target) and holder(target)
    with pytest.raises(LockHeld, match=f"process {other.pid} on"), locked(target):
        pass
    print(file=other.stdin, flush=True)  # it lets go
    with locked(target, wait=30):
        assert lease_path(lock_path(target)).exists()
    assert not is_locked(target) and not lease_path(lock_path(target)).exists()


@pytest.mark.usefixtures("without")
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, other: Any) -> None:
    other.kill()
    other.wait()
    with locked(tmp_path / "a.h5"):
        pass


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("alive", [True, False])
def test_the_lock_of_another_host_is_free_without_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(lock, "LEASE", 1.0)
    target = tmp_path / "a.h5"
    lock_path(target).touch()
    path = lease_path(lock_path(target))
    theirs = SoftFileLease(path, lease_duration=1.0, thread_local=False)
    theirs.acquire()
    content = path.read_text().replace(socket.gethostname(), "another-host")
    if alive:  # its process writes to the file now and then
        with pytest.raises(LockHeld, match="is writing"), locked(target, wait=1.6):
            pass
    else:
        theirs.release()
        path.write_text(content)
        with pytest.raises(LockHeld) as caught, locked(target):
            pass
        assert "--wait 2" in (caught.value.hint or "")
        with locked(target, wait=30):
            pass
    theirs.release(force=True)


@pytest.mark.usefixtures("without")
def test_units_are_claimed_once(tmp_path: Path) -> None:
    first, second = Staging(tmp_path / "a.partial", {}), Staging(tmp_path / "a.partial", {}, joined=True)
    claim = first.claim(3)
    assert claim is not None and second.claim(3) is None and second.claim(4) is not None
    claim.release()
    assert second.claim(3) is not None
    first.discard()
    assert not (tmp_path / "a.partial").exists()


@pytest.mark.usefixtures("without")
def test_downloads_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    with entry_lock(tmp_path / "mirror" / "a"), pytest.raises(TimeoutError):
        with entry_lock(tmp_path / "mirror" / "a", wait=0):
            pass


@pytest.mark.usefixtures("without")
def test_publication_overwrites_nothing_without_links_and_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread looks for the name before any of them gives it: the worst order there can be."""

    class WithoutLinks(durable.Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "no links")

        def replace(self, source: Path, target: Path) -> None:
            time.sleep(0.1)  # between the look and the name
            super().replace(source, target)

    monkeypatch.setattr(durable, "disk", WithoutLinks())
    final, won = tmp_path / "a.h5", list[bytes]()

    def publish(content: bytes) -> None:
        temporary = durable.temporary_beside(final)
        temporary.write_bytes(content)
        if durable.publish(temporary, final):
            won.append(content)

    threads = [threading.Thread(target=publish, args=[b"%d" % number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and final.read_bytes() == won[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("error", ["ENOLCK"], indirect=True)
def test_the_command_works_in_a_folder_without_locks(tmp_path: Path, error: str, tiny: Any) -> None:
    from tests.support.cli_tools import COMMAND
    from tests.support.extraction import write_case

    case = write_case(tmp_path / "case", tiny("bert"))
    argv = [COMMAND, "extract", "--split", "train", "--model", case.model, "--dataset", case.data]
    argv += ["--cache-dir", case.cache, "--dtype", "float32", "--json"]
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, env=elsewhere(case.cache, error), timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert "flock" not in done.stderr and json.loads(done.stdout)
    assert len(case.files()) == 1 and not list(case.cache.rglob("*.lease"))
