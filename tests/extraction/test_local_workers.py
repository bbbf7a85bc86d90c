"""Several processes at one extraction write the bytes of one, even if some are killed; and `--workers`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import BackboneError, UsageError
from featcache.extraction import local_workers as workers
from featcache.extraction.api import extract_splits
from featcache.extraction.local_workers import worker_count
from featcache.extraction.make_file import FileMaker
from featcache.system import durable as files
from featcache.system.machine import available_cores, core_groups
from featcache.system.progress import Progress
from featcache.system.workers import WorkerProcesses
from tests.support.extraction import COUNTS, Case, one_thread, write_case
from tests.support.forked import fork_server
from tests.support.stub_encoder import StubEncoder, stubbed

TRAIN, UNIT = COUNTS["train"], 4
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrow")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path], arrow: Path) -> Case:
    """Extracted by one process; not to be changed."""
    case = write_case(tmp_path_factory.mktemp("whole"), tiny("bert"))
    with stubbed(UNIT):
        assert case.extract().encoded == TRAIN
    return case


@pytest.fixture
def case(whole: Case, tmp_path: Path) -> Case:
    """The same data and an empty cache."""
    shutil.copytree(whole.data, tmp_path / "case" / "reviews")
    return Case(tmp_path / "case", whole.model, dict(whole.asked))


def work(case: Case, arrow: Path, rank: int, size: int, slow: float, told: Path, dividing: float) -> None:
    """Extract as one worker of torchrun, in its own process; each unit takes `slow` seconds.

    With `dividing`, the partition of the rows takes that many seconds and the removal of a file 20 ms.
    """
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(arrow)
    os.environ |= dict(zip(ENVIRONMENT, map(str, (rank, size, rank)), strict=True))
    encode = StubEncoder.encode

    def slowly(self: StubEncoder, *args: Any) -> Any:
        with open(told, "a") as file:
            file.write(f"{rank}\n")
        time.sleep(slow)
        return encode(self, *args)

    StubEncoder.encode = slowly  # type: ignore[method-assign]
    if dividing:
        divided, unlink = FileMaker._partition, files.disk.unlink
        FileMaker._partition = lambda *args: (divided(*args), time.sleep(dividing))[0]  # type: ignore
        files.disk.unlink = lambda path: (unlink(path), time.sleep(0.02))[0]  # type: ignore
    with stubbed(UNIT):
        (result,) = extract_splits(case.settings(), ["train"])
    (told.parent / f"said-{rank}.json").write_text(json.dumps({"encoded": result.encoded}))


@pytest.fixture
def start_workers(case: Case, arrow: Path, tmp_path: Path) -> Iterator[Callable[..., list[Any]]]:
    """A function that starts workers; those still running at the end are killed."""
    started: list[Any] = []

    def start(size: int, slow: float = 0.02, dividing: float = 0.0) -> list[Any]:
        told = tmp_path / "told.txt"
        new = [
            fork_server().Process(target=work, args=(case, arrow, rank, size, slow, told, dividing))
            for rank in range(size)
        ]
        for process in new:
            process.start()
        started.extend(new)
        return new

    yield start
    for process in started:
        process.kill()
        process.join()


def assert_whole(case: Case, whole: Case) -> None:
    """Check that the cache has one file with the bytes that one process wrote, and nothing else."""
    (path,) = case.files()
    assert path.read_bytes() == whole.files()[0].read_bytes()
    assert case.leftovers() == [] and not list(case.cache.rglob("*.partial"))


def begun(tmp_path: Path) -> list[int]:
    """The rank of the worker for each unit that was begun."""
    path = tmp_path / "told.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.005)


# ---------------------------------------------------------------- shared work


@pytest.mark.parametrize("size", [2, 4])
def test_workers_share_the_units(
    case: Case, whole: Case, start_workers: Callable[..., list[Any]], tmp_path: Path, size: int
) -> None:
    members = start_workers(size, slow=0.05)
    for process in members:
        process.join(60)
    assert [process.exitcode for process in members] == [0] * size
    assert_whole(case, whole)
    units = begun(tmp_path)
    assert len(units) == TRAIN // UNIT  # none was encoded twice
    assert len(set(units)) > 1
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text())["encoded"] for rank in range(size)]
    assert max(said) == TRAIN


@pytest.mark.parametrize("dividing", [0.15, 0.15, 0.8])
def test_no_worker_joins_finished_work(
    dividing: float, case: Case, whole: Case, start_workers: Callable[..., list[Any]], tmp_path: Path
) -> None:
    members = start_workers(2, slow=0.01, dividing=dividing)
    for process in members:
        process.join(60)
    assert [process.exitcode for process in members] == [0, 0]
    assert_whole(case, whole)
    assert len(begun(tmp_path)) == TRAIN // UNIT


def kill_and_check(case: Case, whole: Case, start_workers: Any, tmp_path: Path, seed: int) -> None:
    """Kill some of three workers at random moments; if all are killed, start another one."""
    draw = random.Random(seed)
    deaths = 0
    members = start_workers(3, slow=0.01)
    for victim in draw.sample(members, draw.randint(1, 3)):
        target = draw.randrange(TRAIN // UNIT)
        until(lambda target=target: len(begun(tmp_path)) >= target or not any(m.is_alive() for m in members))
        time.sleep(draw.random() * 0.02)
        deaths += victim.is_alive()
        victim.kill()
    for process in members:
        process.join(60)
    if not case.files():
        for process in start_workers(1, slow=0.0):
            process.join(60)
    assert_whole(case, whole)
    # A killed worker loses at most the unit that it encodes and the one that waits to be written.
    assert len(begun(tmp_path)) <= TRAIN // UNIT + 2 * deaths


@pytest.mark.parametrize("seed", range(2))
def test_killed_workers_lose_only_their_units(
    case: Case, whole: Case, start_workers: Any, tmp_path: Path, seed: int
) -> None:
    kill_and_check(case, whole, start_workers, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 102))
def test_killed_workers_lose_only_their_units_100_times(
    case: Case, whole: Case, start_workers: Any, tmp_path: Path, seed: int
) -> None:
    kill_and_check(case, whole, start_workers, tmp_path, seed)


def test_workers_continue_after_the_leader_is_killed(
    case: Case, whole: Case, start_workers: Any, tmp_path: Path
) -> None:
    members = start_workers(3, slow=0.1)
    until(lambda: len(begun(tmp_path)) >= 3)
    (holder,) = case.cache.rglob("*.holder")
    leader = json.loads(holder.read_bytes())["pid"]
    os.kill(leader, signal.SIGKILL)
    others = [process for process in members if process.pid != leader]
    for process in others:
        process.join(60)
    assert len(others) == 2 and [process.exitcode for process in others] == [0, 0]
    assert [path.read_bytes() for path in case.files()] == [whole.files()[0].read_bytes()]


def test_a_damaged_unit_is_encoded_again(case: Case, whole: Case, start_workers: Any, tmp_path: Path) -> None:
    members = start_workers(2, slow=0.1)
    until(lambda: len(list(case.cache.rglob("block-*"))) >= 3)
    for process in members:
        process.kill()
        process.join()
    unit = next(case.cache.rglob("block-*"))
    unit.write_bytes(unit.read_bytes()[:-1] + b"?")
    for process in start_workers(2):
        process.join(60)
        assert process.exitcode == 0
    assert_whole(case, whole)


def test_a_late_worker_finds_the_finished_file(
    case: Case, whole: Case, start_workers: Any, tmp_path: Path
) -> None:
    for process in start_workers(2):
        process.join(60)
    units = len(begun(tmp_path))
    for process in start_workers(2):
        process.join(60)
        assert process.exitcode == 0
    assert len(begun(tmp_path)) == units
    assert_whole(case, whole)


# ---------------------------------------------------------------- --workers


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Case:
    """Extracted by one process with one thread, by the real encoder; not to be changed."""
    case = write_case(tmp_path_factory.mktemp("real"), tiny("bert"), batch_tokens="32")
    with one_thread():
        case.extract()
        case.extract("test")
    return case


needs_two = pytest.mark.skipif(len(available_cores()) < 2, reason="one core")


def by_workers(case: Case, splits: list[str], **more: Any) -> tuple[list[Any], list[Progress]]:
    seen: list[Progress] = []
    return extract_splits(case.settings(), splits, seen.append, workers=2, **more), seen


@needs_two
@pytest.mark.usefixtures("forked_workers")
def test_two_workers_make_the_bytes_of_one(real: Case, tmp_path: Path) -> None:
    case = real.fresh(str(tmp_path / "two"))
    results, seen = by_workers(case, ["train", "test"])
    assert [(one.split, one.encoded, one.cached) for one in results] == [
        ("train", COUNTS["train"], False), ("test", COUNTS["test"], False),
    ]  # fmt: skip
    assert [path.name for path in case.files()] == [path.name for path in real.files()]
    for mine, other in zip(case.files(), real.files(), strict=True):
        assert mine.read_bytes() == other.read_bytes()
    assert case.leftovers() == [] and not list(case.cache.rglob("*.partial"))
    assert any("2 workers of" in step.text for step in seen)
    record = case.find().record.made
    assert record.encoded == TRAIN and record.tokens == results[0].tokens
    again, _ = by_workers(case, ["train", "test"])
    assert all(one.cached for one in again)
    forced, _ = by_workers(case, ["train"], force=True)
    assert forced[0].encoded == TRAIN and not forced[0].cached
    assert case.files()[1].read_bytes() == real.files()[1].read_bytes()


@needs_two
@pytest.mark.usefixtures("forked_workers")
def test_an_error_of_a_worker_ends_all_and_names_the_row(
    real: Case, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    case = real.fresh(str(tmp_path / "bad"))
    case.model = tiny("llama")
    rows = case.rows()
    case.write([*rows[:40], rows[40] | {"text": "\u200b"}, *rows[41:]])
    with pytest.raises(BackboneError, match="row 41 of train: the tokenizer makes no token"):
        by_workers(case, ["train"])
    assert not case.files()


@needs_two
@pytest.mark.usefixtures("forked_workers")
def test_the_launcher_goes_on_when_a_worker_is_killed(
    real: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = real.fresh(str(tmp_path / "killed"))
    killed: list[int] = []

    def strike(processes: WorkerProcesses, timeout: float | None = None) -> Any:
        if not killed and list(case.cache.rglob("plan.json")):
            killed.append(1)
            processes.processes[1].kill()
        return receive(processes, timeout)

    receive = WorkerProcesses.receive
    monkeypatch.setattr(WorkerProcesses, "receive", strike)
    (result,), seen = by_workers(case, ["train"])
    assert killed and result.rows == TRAIN
    assert any("worker 1 was killed (signal 9); the others go on" in step.text for step in seen)
    assert case.files()[0].read_bytes() == real.files()[1].read_bytes()


@needs_two
@pytest.mark.usefixtures("forked_workers")
def test_all_workers_killed(real: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = real.fresh(str(tmp_path / "all"))
    start = WorkerProcesses._start

    def start_and_kill(processes: WorkerProcesses, *args: Any) -> None:
        start(processes, *args)
        processes.processes[-1].kill()

    monkeypatch.setattr(WorkerProcesses, "_start", start_and_kill)
    with pytest.raises(BackboneError, match="no other is left") as caught:
        by_workers(case, ["train"])
    assert "committed units are kept" in (caught.value.hint or "")


@needs_two
def test_workers_end_with_their_launcher(real: Case, tmp_path: Path) -> None:
    """SIGKILL leaves the launcher no time to say anything to anybody."""
    case = real.fresh(str(tmp_path / "orphans"))
    rows = case.rows()
    case.write([row | {"text": row["text"] + str(number)} for number in range(60) for row in rows])
    model, data, cache = map(str, (case.model, case.data, case.cache))
    command = [sys.executable, "-m", "featcache_cli.main", "extract", "--split", "train", "--workers", "2"]
    command += ["--model", model, "--dataset", data, "--cache-dir", cache, "--batch-tokens", "32", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launcher:
        until(lambda: bool(list(case.cache.rglob("block-*"))))
        workers = children(launcher.pid)
        launcher.kill()
    assert len(workers) == 2
    until(lambda: not any(running(pid) for pid in workers))
    assert not case.files()


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(number) for text in lists for number in text.split()]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("asked", "device", "what"),
    [("0", "cpu", "no number"), ("-1", "cpu", "no number"), ("many", "cpu", "no number"),
     (10_000, "cpu", "there are"), (2, "mps", "on --device mps"), ("2.5", "cpu", "no number")],
)  # fmt: skip
def test_counts_that_cannot_be(asked: int | str, device: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        worker_count(asked, device)


def test_auto_is_one_for_several_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_gpus", lambda: 0)
    for cores, expected in [(1, 1), (2, 1), (7, 1), (8, 2), (64, 16)]:
        monkeypatch.setattr(workers, "available_cores", lambda cores=cores: list(range(cores)))
        assert worker_count("auto", "cpu") == expected
        groups = core_groups(list(range(cores)), expected)
        assert sorted(core for group in groups for core in group) == list(range(cores))
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    monkeypatch.setattr(workers, "_gpus", lambda: 8)
    assert worker_count("auto", "auto") == 8


def test_workers_of_torchrun_start_no_others(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(ENVIRONMENT, ("0", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--workers under torchrun"):
        extract_splits(case.settings(), ["train"], workers=2)
    with pytest.raises(UsageError, match="--force under torchrun"):
        extract_splits(case.settings(), ["train"], force=True)


# ---------------------------------------------------------------- who is who, how far
