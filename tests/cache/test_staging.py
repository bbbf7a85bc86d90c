"""Committed units are kept, other files are removed, and one process writes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.staging import Staging, read_plan, unfinished_work
from featcache.errors import CacheError
from featcache.system.lock import locked

PLAN = {"fingerprint": "f" * 64, "block_rows": 4}


def unit(number: int) -> dict[str, np.ndarray]:
    """The arrays of a unit of four rows; the same for the same number."""
    draw = np.random.default_rng(number)
    return {
        "last/cls": draw.normal(size=(4, 3)).astype(np.float16),
        "n_tokens": draw.integers(0, 99, 4, dtype=np.int32),
        "truncated": draw.integers(0, 2, 4, dtype=np.uint8),
    }


def filled(folder: Path, units: int = 3) -> Staging:
    """A folder with some committed units."""
    staging = Staging(folder, PLAN)
    for number in range(units):
        staging.commit(number, unit(number))
    return staging


def assert_holds(staging: Staging, number: int) -> None:
    """Check that `read` returns the arrays that were committed."""
    found = staging.read(number)
    for name, values in unit(number).items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)
    assert len(found) == len(unit(number))


def path_of(staging: Staging, number: int) -> Path:
    (path,) = staging.folder.glob(f"block-{number:08d}-*")
    return path


# ---------------------------------------------------------------- units


def test_committed_units_are_read_by_another_staging_of_the_same_plan(tmp_path: Path) -> None:
    filled(tmp_path / "a.partial")
    again = Staging(tmp_path / "a.partial", dict(reversed(PLAN.items())))
    assert again.committed() == {0, 1, 2}
    for number in (2, 0, 1):
        assert_holds(again, number)


@given(data=st.data())
def test_committed_removes_a_damaged_unit_and_only_that(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    staging = filled(tmp_path_factory.mktemp("staging") / "a.partial")
    path = path_of(staging, 1)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "shorten", "grow"]))
    if how == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes({"flip": content, "shorten": content[:place], "grow": content + b"\0"}[how])
    with pytest.raises(CacheError, match=r"unit 1 in .* is missing or damaged"):
        staging.read(1)
    assert staging.committed() == {0, 2}
    assert not path.exists()
    assert_holds(staging, 0)
    staging.commit(1, unit(1))
    assert staging.committed() == {0, 1, 2}
    assert_holds(staging, 1)


def test_read_names_a_missing_unit_and_what_to_do(tmp_path: Path) -> None:
    staging = filled(tmp_path / "a.partial", 1)
    with pytest.raises(CacheError, match="unit 7 in") as caught:
        staging.read(7)
    assert "run the same command again" in (caught.value.hint or "")


def test_committed_ignores_unfinished_files(tmp_path: Path) -> None:
    staging = filled(tmp_path / "a.partial")
    whole = path_of(staging, 1)
    for name in (f".tmp-0123456789ab-{whole.name}", "block-.safetensors", "block-00000009-.safetensors"):
        (staging.folder / name).write_bytes(whole.read_bytes()[:100])
    whole.rename(staging.folder / f".tmp-0123456789ab-{whole.name}")
    assert Staging(tmp_path / "a.partial", PLAN).committed() == {0, 2}


def test_a_killed_process_leaves_only_whole_units(tmp_path: Path) -> None:
    """After SIGKILL at any moment every unit is whole, and all units reported as committed exist."""
    folder = tmp_path / "a.partial"
    code = (
        "for number in range(10_000):\n"
        "    staging.commit(number, unit(number))\n"
        "    print(number, flush=True)\n"
    )
    with child(f"staging = filled(Path({str(folder)!r}), 0)\n" + code) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 5:
                break
        process.kill()
        said = [int(line), *map(int, process.stdout.read().split())]
    staging = Staging(folder, PLAN)
    committed = staging.committed()
    assert committed >= set(range(max(said) + 1)) and len(committed) <= max(said) + 2
    for number in committed:
        assert_holds(staging, number)


@pytest.mark.parametrize("plan", [PLAN | {"block_rows": 5}, {}, PLAN | {"fingerprint": "e" * 64}], ids=str)
def test_staging_removes_units_of_another_plan(tmp_path: Path, plan: dict[str, Any]) -> None:
    filled(tmp_path / "a.partial")
    other = Staging(tmp_path / "a.partial", plan)
    assert other.committed() == set()
    other.commit(2, unit(2))
    assert Staging(tmp_path / "a.partial", plan).committed() == {2}
    assert Staging(tmp_path / "a.partial", PLAN).committed() == set()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_staging_removes_units_of_an_unreadable_plan(tmp_path: Path, content: bytes | None) -> None:
    filled(tmp_path / "a.partial")
    if content is None:
        (tmp_path / "a.partial" / "plan.json").unlink()
    else:
        (tmp_path / "a.partial" / "plan.json").write_bytes(content)
    assert Staging(tmp_path / "a.partial", PLAN).committed() == set()


@dataclass(frozen=True)
class NumberedPlan:
    number: int


@pytest.mark.parametrize(
    ("content", "plan"),
    [
        (b'{"number":3}', NumberedPlan(3)),
        (b'{"later":1,"number":3}', None),
        (b'{"number":"3"}', None),
        (b"[]", None),
        (b"{", None),
        (None, None),
    ],
)
def test_read_plan_returns_none_for_other_plans(
    tmp_path: Path, content: bytes | None, plan: NumberedPlan | None
) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    assert read_plan(tmp_path, NumberedPlan) == plan


def test_unfinished_work_is_removed_if_no_error_is_raised(tmp_path: Path) -> None:
    target, partial = tmp_path / "a.h5", tmp_path / "a.partial"
    (tmp_path / ".tmp-0123456789ab-a.h5").write_bytes(b"half of it")
    with pytest.raises(ZeroDivisionError), unfinished_work(target, NumberedPlan(3), pytest.fail) as staging:
        staging.commit(0, unit(0))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    with unfinished_work(target, NumberedPlan(3), pytest.fail) as staging:
        assert staging.committed() == {0}
    assert not partial.exists()


def test_unfinished_work_reports_a_folder_that_cannot_be_removed(tmp_path: Path) -> None:
    told: list[str] = []
    with unfinished_work(tmp_path / "a.h5", NumberedPlan(3), told.append) as staging:
        (staging.folder / "folder").mkdir()
    assert len(told) == 1 and "a.partial" in told[0]


def test_discard_removes_the_folder(tmp_path: Path) -> None:
    filled(tmp_path / "a.partial").discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_committed_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = filled(tmp_path / "a.partial")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CacheError, match="No space left on device") as caught:
            staging.commit(3, unit(3))
    assert "free some space" in (caught.value.hint or "")
    assert staging.committed() == {0, 1, 2}
    assert len(list(staging.folder.iterdir())) == 4  # with the plan


# ---------------------------------------------------------------- the lock


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` with all names of this module; killed at the end."""
    start = "from tests.cache.test_staging import *\n"
    # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
    start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", start + code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def holding(target: Path) -> Any:
    """A process that holds the lock of `target` until `tell` is called, and then lives on."""
    return child(
        f"with locked(Path({str(target)!r})):\n    print('held', flush=True); sys.stdin.readline()\n"
        "print('free', flush=True); sys.stdin.readline()\n"
    )


def expect(process: subprocess.Popen[str], word: str) -> None:
    """Check that the next line that the process prints is `word`."""
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline().strip()
    assert line == word, process.stderr.read()


def tell(process: subprocess.Popen[str]) -> None:
    """Have the process go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_locked_names_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.h5"
    with holding(target) as other:
        expect(other, "held")
        began = time.perf_counter()
        with pytest.raises(CacheError) as caught, locked(target):
            pytest.fail("two processes hold the lock")
        assert time.perf_counter() - began < 1
        assert f"another process is writing {target}: process {other.pid} on {os.uname().nodename}" in str(
            caught.value
        )
        assert f"since {time.strftime('%Y-')}" in str(caught.value)
        with locked(tmp_path / "new" / "b.h5"):  # each file has its own lock
            pass
        tell(other)
        expect(other, "free")
        with locked(target):  # the process is alive, but released the lock
            pass
    assert not list(target.parent.glob("*.holder"))


@pytest.mark.parametrize(
    "by",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_locked_takes_the_lock_of_a_dead_process(tmp_path: Path, by: signal.Signals) -> None:
    target = tmp_path / "a.h5"
    with holding(target) as other:
        expect(other, "held")
        other.send_signal(by)
        other.wait(timeout=10)
        with locked(target), holding(target) as third:
            assert third.stderr is not None
            assert f"process {os.getpid()} on" in third.stderr.read()  # not the dead one
        with locked(target):
            pass


def test_locked_refuses_the_same_process_twice(tmp_path: Path) -> None:
    with locked(tmp_path / "a.h5"):
        with pytest.raises(CacheError, match=f"process {os.getpid()} on"), locked(tmp_path / "a.h5"):
            pytest.fail("held twice")
        with pytest.raises(CacheError), locked(tmp_path / "a.h5"):
            pytest.fail("the refused call released the lock of the other")
    with locked(tmp_path / "a.h5"):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_locked_releases_the_lock_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), locked(tmp_path / "a.h5"):
        raise error
    with locked(tmp_path / "a.h5"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b'{"pid": 1}', b"\xff\xfe"])
def test_locked_refuses_if_the_holder_file_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path / "a.h5"):
        (tmp_path / "a.holder").write_bytes(content)
        with pytest.raises(CacheError, match="another process is writing"), locked(tmp_path / "a.h5"):
            pytest.fail("held twice")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot write"), locked(tmp_path / "file" / "a.h5"):
        pytest.fail("locked")
    with pytest.raises(CacheError, match="cannot write"):
        Staging(tmp_path / "file" / "a.partial", PLAN)
