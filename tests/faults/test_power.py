"""A power cut or a kill before any operation of the disk loses no acknowledged commit unit."""

from __future__ import annotations

import ast
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from featcache.cache import sealed_writer as sealed
from featcache.cache import staging
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.staging import Staging
from featcache.errors import CacheError
from featcache.system import durable as files
from tests.support import fault_counts as faults
from tests.support.disk import FaultDisk, PowerCut, Quick, Tree, memory_folder, plant, plugged_in

UNITS, ROWS, WIDTH = 3, 4, 200
MODES = ("least", "all", "names", "data", "any", "any", "any")
SEALED = -1
OPERATIONS = 50  # fewer than an uninterrupted extraction takes
PLAN = {"fingerprint": "f" * 64}
WHERE = Path("cache", "data", "model", "train-0123456789ab.h5")
Acknowledge = Callable[[int], None]


def unit(number: int) -> dict[str, np.ndarray]:
    """The arrays of a commit unit; the same for the same number."""
    draw = np.random.default_rng(number)
    return {
        "x": draw.normal(size=(ROWS, WIDTH)).astype(np.float16),
        "n_tokens": draw.integers(1, 99, ROWS, dtype=np.int32),
    }


def work(root: Path, acknowledge: Acknowledge = lambda _: None) -> int:
    """Do what `extract` does with the disk; returns how many units were computed."""
    path = root / WHERE
    if path.exists():
        SealedFile(path).verify()
        return 0
    unfinished = Staging(path.with_suffix(".partial"), PLAN)
    ready = unfinished.committed()
    for number in ready:
        acknowledge(number)
    for number in sorted(set(range(UNITS)) - ready):
        unfinished.commit(number, unit(number))
        acknowledge(number)
    read = [unfinished.read(number) for number in range(UNITS)]
    count = UNITS * ROWS
    columns = [
        Column("views/last-cls", (count, WIDTH), "float16", [part["x"] for part in read]),
        Column("n_tokens", (count,), "int32", [part["n_tokens"] for part in read]),
    ]
    write_sealed(path, {"format": "featcache"}, columns)
    acknowledge(SEALED)
    unfinished.discard()
    return UNITS - len(ready)


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as made:
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the file that an uninterrupted extraction writes."""
    root = tmp_path_factory.mktemp("whole")
    assert work(root) == UNITS
    return (root / WHERE).read_bytes()


def check(root: Path, acknowledged: set[int], whole: bytes, finish: bool = True) -> None:
    """Check what a power cut left in `root`, and by default what another extraction makes of it."""
    path = root / WHERE
    there = path.exists()
    if there or SEALED in acknowledged:
        faults.require(there and path.read_bytes() == whole, "lost", "the sealed file")
    try:
        folder = path.with_suffix(".partial")
        found = Staging(folder, PLAN).committed() if folder.exists() else set()
        if not there:
            faults.require(found >= acknowledged, "lost", f"of units {acknowledged} only {found} exist")
        if finish:
            faults.require(work(root) <= UNITS - len(found), "lost", "committed units were computed again")
            faults.require(path.read_bytes() == whole, "wrong", "the file that the next extraction wrote")
    except CacheError as error:
        faults.require(False, "lost", str(error))


class Cutter:
    """Cuts the power before every operation and checks what may be left, in several ways each."""

    def __init__(self, folder: Path, whole: bytes, seed: int, modes: tuple[str, ...] = MODES) -> None:
        self.folder, self.whole, self.modes = folder, whole, modes
        self.draw = random.Random(seed)
        self.acknowledged: set[int] = set()
        self.lost: faults.Fault | None = None
        self._seen: set[int] = set()

    def __call__(self, disk: FaultDisk) -> bool:
        for how in self.modes:
            tree = disk.survivors(self.draw, how)
            faults.COUNT["cuts"] += 1
            state = hash((tuple(sorted(tree.items())), frozenset(self.acknowledged)))
            if state not in self._seen:
                self._seen.add(state)
                self._look(tree)
        return self.lost is not None

    def _look(self, tree: Tree) -> None:
        left = self.folder / "left"
        plant(tree, left)
        with plugged_in(Quick()):
            try:
                check(left, self.acknowledged, self.whole, finish=self.draw.random() < 0.3)
            except faults.Fault as lost:
                self.lost = self.lost or lost
        shutil.rmtree(left)

    def run(self, disk: FaultDisk) -> None:
        """Extract on `disk`; raises Fault."""
        with plugged_in(disk):
            try:
                work(disk.root, self.acknowledged.add)
                self(disk)
            except PowerCut:
                pass
        if self.lost:
            raise self.lost


def cut_everywhere(folder: Path, whole: bytes, seed: int, without: faults.Site | None = None) -> FaultDisk:
    """One extraction with power cuts before each of its operations."""
    root = folder / f"cut-{seed}"
    root.mkdir()
    cutter = Cutter(folder, whole, seed)
    disk = FaultDisk(root, without=without, short=seed, watch=cutter)
    cutter.run(disk)
    return disk


def kill_then_cut(folder: Path, whole: bytes, seed: int, without: faults.Site | None = None) -> FaultDisk:
    """Kill a process at a random operation, then cut the power before each operation of the next one."""
    root = folder / f"kill-{seed}"
    root.mkdir()
    cutter = Cutter(folder, whole, seed, ("least", "any"))
    disk = FaultDisk(root, without=without, cut_at=random.Random(seed).randint(1, OPERATIONS))
    with plugged_in(disk), pytest.raises(PowerCut):
        work(root, cutter.acknowledged.add)
    faults.COUNT["kills"] += 1
    disk.watch = cutter
    disk.revive()
    cutter.run(disk)
    return disk


# ---------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize("seed", range(4))
def test_power_cuts_lose_nothing(folder: Path, whole: bytes, seed: int) -> None:
    before = faults.COUNT["cuts"]
    disk = cut_everywhere(folder, whole, seed)
    assert len(disk.log) > OPERATIONS and faults.COUNT["cuts"] - before == len(MODES) * (len(disk.log) + 1)


@pytest.mark.parametrize("seed", range(8))
def test_power_cuts_after_a_kill_lose_nothing(folder: Path, whole: bytes, seed: int) -> None:
    assert len(kill_then_cut(folder, whole, seed).log) > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_power_cuts_lose_nothing(folder: Path, whole: bytes, seed: int) -> None:
    cut_everywhere(folder, whole, seed)
    for more in range(5):
        kill_then_cut(folder, whole, 5 * seed + more)


def test_a_kill_loses_at_most_the_unit_at_work(folder: Path, whole: bytes) -> None:
    """A kill at every operation (the page cache survives): the next process keeps all acknowledged units."""
    operations = 0
    for cut_at in range(1, 200):
        root = folder / str(cut_at)
        root.mkdir()
        acknowledged: set[int] = set()
        disk = FaultDisk(root, cut_at=cut_at)
        with plugged_in(disk):
            try:
                work(root, acknowledged.add)
            except PowerCut:
                faults.COUNT["kills"] += 1
        if not disk.off:
            break
        operations += 1
        with plugged_in(Quick()):
            check(root, acknowledged, whole)
    assert operations == len(disk.log) > OPERATIONS


# ---------------------------------------------------------------- every fsync is needed


def sites() -> Iterator[faults.Site]:
    """Every call in the cache's modules that makes bytes or names durable."""
    for module in (files, sealed, staging):
        source = Path(str(module.__file__))
        for function in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or function.name in (
                "fsync",
                "fsync_folder",
                "fsync_file",
            ):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(
                    ("fsync", "fsync_folder", "fsync_file")
                ):
                    yield source.name, function.name, call.lineno


@pytest.mark.parametrize("site", sites(), ids=lambda site: f"{site[0]}-{site[1]}-{site[2]}")
def test_every_fsync_is_needed(folder: Path, whole: bytes, site: faults.Site) -> None:
    """Without the call, some power cut loses acknowledged work; or the model of the disk is too kind."""
    before = dict(faults.COUNT)
    with pytest.raises(faults.Fault):
        for seed in range(20):
            kill_then_cut(folder, whole, seed, site)
        cut_everywhere(folder, whole, 0, site)
    faults.COUNT.update(before)  # losses were expected here


def test_every_fsync_is_reached(folder: Path, whole: bytes) -> None:
    disk = FaultDisk(folder)
    with plugged_in(disk):
        work(folder)
    assert disk.sites == set(sites()) and len(disk.sites) == 6
