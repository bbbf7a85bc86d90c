"""How threads wait: set before torch is loaded, and left alone where the user set it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from featcache.system import machine
from featcache.system.machine import others_run, short_waits


@pytest.mark.parametrize(("busy", "spins"), [(True, "1000"), (False, "10000")])
def test_waits_are_shorter_beside_other_work(busy: bool, spins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "others_run", lambda: busy)
    assert short_waits({"OMP_NUM_THREADS": "2"}) == {"GOMP_SPINCOUNT": spins}


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="needs /proc")
def test_a_busy_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1) as busy:
        assert busy.stdout
        busy.stdout.readline()
        seen = [others_run() for _ in range(20)]
        busy.kill()
    assert all(seen)


@pytest.mark.parametrize(
    ("found", "busy"), [("0.1 0 0 1/90 7", False), ("9 9 9 3/90 7", True), ("?", True), (None, True)]
)
def test_the_number_of_running_threads(
    found: str | None, busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "loadavg"
    if found:
        file.write_text(found)
    monkeypatch.setattr(machine, "Path", lambda _: file)
    assert others_run() is busy


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_short_waits_changes_nothing_that_is_set(name: str) -> None:
    assert short_waits({name: "1"}) == {}
