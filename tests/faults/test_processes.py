"""Real processes that are killed at random moments, and many processes on one file."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.errors import CacheError
from tests.faults.test_power import UNITS, WHERE, check, work
from tests.support import fault_counts as faults

READERS, SEEDS = 8, (1, 2)
FORK = multiprocessing.get_context("fork")  # nothing here has started a thread


# ---------------------------------------------------------------- kill -9


def working(root: Path, pipe: int) -> None:
    """Work, and write the number of each acknowledged unit to the pipe at once."""
    work(root, lambda number: os.write(pipe, bytes([number % 256])) and None)


@pytest.mark.parametrize("rounds", [15, pytest.param(500, marks=pytest.mark.slow)], ids=["some", "many"])
def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path, rounds: int) -> None:
    """All acknowledged units exist afterwards, and the finished file has the same bytes."""
    takes, draw = [], random.Random(rounds)
    for name in ("first", "whole"):
        (tmp_path / name).mkdir()
        began = time.perf_counter()
        work(tmp_path / name)
        takes.append(time.perf_counter() - began)
    whole = (tmp_path / "whole" / WHERE).read_bytes()
    stopped = 0
    for number in range(rounds):
        root = tmp_path / str(number)
        root.mkdir()
        reading, writing = os.pipe()
        process = FORK.Process(target=working, args=(root, writing))
        process.start()
        os.close(writing)
        time.sleep(draw.uniform(0, 1.5 * takes[1]))
        process.kill()
        process.join()
        faults.COUNT["kills"] += 1
        with os.fdopen(reading, "rb") as said:
            acknowledged = {number - 256 if number == 255 else number for number in said.read()}
        stopped += acknowledged != {*range(UNITS), -1}
        check(root, acknowledged, whole)
    assert stopped >= rounds // 5  # these were killed at work, not after it


# ---------------------------------------------------------------- two writers, eight readers


def content(seed: int) -> np.ndarray:
    """The column that a writer writes; it has two checksums."""
    return np.random.default_rng(seed).integers(0, 256, (300, 4096), dtype=np.uint8)


def write(path: Path, seed: int, replace: bool) -> bool:
    column = Column(
        "x", (300, 4096), "uint8", [content(seed)[start : start + 100] for start in (0, 100, 200)]
    )
    return write_sealed(path, {"seed": seed}, [column], replace=replace)


def writer(folder: Path, seed: int, rounds: int, barrier: Any, published: Synchronized[int]) -> None:
    """In each round write a new file and replace another; counts the new files that it published."""
    for number in range(rounds):
        barrier.wait(60)
        if write(folder / f"{number}.h5", seed, replace=False):
            with published.get_lock():
                published.value += 1
        write(folder / "replaced.h5", seed, replace=True)
        barrier.wait(60)


def reader(
    folder: Path, rounds: int, barrier: Any, seen: Synchronized[int], wrong: Synchronized[int]
) -> None:
    """Read while both write, and count the readings that are not a whole file of one writer."""
    expected = {seed: content(seed) for seed in SEEDS}
    for number in range(rounds):
        barrier.wait(60)
        first: int | None = None
        for path in [folder / f"{number}.h5", folder / "replaced.h5"] * 6:
            try:
                file = SealedFile(path)
                same = bool((file.column("x") == expected[file.description.unknown["seed"]]).all())
            except CacheError as error:
                same = "No such file" in str(error) and (first is None or path.stem == "replaced")
            else:
                with seen.get_lock():
                    seen.value += 1
                if path.stem != "replaced":
                    # published once, then unchanged
                    same = same and first in (None, file.description.unknown["seed"])
                    first = file.description.unknown["seed"]
            if not same:
                with wrong.get_lock():
                    wrong.value += 1
        barrier.wait(60)


@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)], ids=["some", "many"])
def test_readers_see_whole_files_while_two_processes_write(tmp_path: Path, rounds: int) -> None:
    barrier = FORK.Barrier(len(SEEDS) + READERS)
    published, seen, wrong = FORK.Value("l", 0), FORK.Value("l", 0), FORK.Value("l", 0)
    targets: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        *((writer, (tmp_path, seed, rounds, barrier, published)) for seed in SEEDS),
        *((reader, (tmp_path, rounds, barrier, seen, wrong)) for _ in range(READERS)),
    ]
    processes = [FORK.Process(target=target, args=args) for target, args in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert published.value == rounds  # each time exactly one of the two writers published
    assert seen.value > rounds * READERS
    faults.require(wrong.value == 0, "wrong", f"{wrong.value} readings")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["replaced.h5", *(f"{number}.h5" for number in range(rounds))]
    )


def test_an_open_file_can_be_read_after_it_was_replaced_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path, 1, replace=False)
    file, mapped = SealedFile(path), SealedFile(path).column("x")
    process = FORK.Process(target=write, args=(path, 2, True))
    process.start()
    process.join(30)
    path.unlink()
    assert (mapped == content(1)).all() and (file.column("x") == content(1)).all()
    assert process.exitcode == 0
