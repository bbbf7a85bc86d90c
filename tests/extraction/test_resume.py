"""An extraction that is stopped, killed, or run twice at once ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import CacheError
from featcache.extraction import partition
from featcache.extraction.api import extract_splits
from featcache.system import durable as files
from featcache.system.progress import Progress
from tests.support.extraction import COUNTS, Case, counted, one_thread, write_case
from tests.support.forked import fork_server

TRAIN, UNIT = COUNTS["train"], 8
UNITS = -(-TRAIN // UNIT)


def unit_starts(costs: np.ndarray, _: float) -> np.ndarray:
    """Units of `UNIT` rows each, so that the number of texts in each is known."""
    return np.append(np.arange(0, len(costs), UNIT), len(costs))


@pytest.fixture(scope="module", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`datasets` keeps its Arrow files in one folder for all tests here."""
    import datasets

    folder = tmp_path_factory.mktemp("arrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
        patch.setattr(partition, "unit_starts", unit_starts)
        with one_thread():
            yield folder


@pytest.fixture(scope="module")
def whole(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An extraction that was never interrupted; not to be changed."""
    case = write_case(tmp_path_factory.mktemp("whole"), tiny("bert"))
    assert case.extract().encoded == TRAIN
    return case


@pytest.fixture
def case(whole: Case, tmp_path: Path) -> Case:
    """The same data and an empty cache."""
    shutil.copytree(whole.data, tmp_path / "case" / "reviews")
    return Case(tmp_path / "case", whole.model, dict(whole.asked))


def committed(case: Case) -> int:
    """The number of units committed so far."""
    return len(list(case.cache.rglob("block-*.safetensors")))


def assert_whole(case: Case, whole: Case) -> None:
    """Check that the cache has one file with the bytes of an uninterrupted extraction, and nothing else."""
    (path,) = case.files()
    assert path.name == whole.files()[0].name
    assert path.read_bytes() == whole.files()[0].read_bytes()
    assert case.leftovers() == [] and not list(case.cache.rglob("*.partial"))
    assert case.find().sealed.verify()


# ---------------------------------------------------------------- stopped


class Stop:
    """A progress callback that calls `how` as soon as `done` texts are encoded."""

    def __init__(self, done: int, how: Callable[[], None], stage: str = "encode") -> None:
        self.done, self.how, self.stage = done, how, stage

    def __call__(self, step: Progress) -> None:
        if step.stage == self.stage and step.done >= self.done:
            self.how()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("done", [0, 1, 30, TRAIN])
def test_extract_resumes_after_ctrl_c(case: Case, whole: Case, done: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], Stop(done, interrupt))
    kept = committed(case)
    assert kept >= done // UNIT - 1 and not case.files()  # all units are kept except the one at work
    assert not list(case.cache.rglob("*.holder"))
    said: list[str] = []
    with counted() as passes:
        (result,) = extract_splits(case.settings(), ["train"], lambda step: said.append(step.text))
    assert result.encoded == sum(passes) == TRAIN - min(kept * UNIT, TRAIN)
    assert (f"train: going on from {kept} of {UNITS} units" in said) == bool(kept)
    assert_whole(case, whole)


def test_extract_resumes_after_every_interruption(case: Case, whole: Case) -> None:
    """Each attempt continues the last one; only the texts of units at work are encoded twice."""
    with counted() as passes:
        for attempt in range(1, UNITS):
            with pytest.raises(KeyboardInterrupt):
                extract_splits(case.settings(), ["train"], Stop(attempt * UNIT + 1, interrupt))
            assert committed(case) >= attempt - 1
        case.extract()
    assert sum(passes) <= TRAIN + 2 * UNIT * (UNITS - 1)
    assert_whole(case, whole)


def test_extract_resumes_after_an_interruption_while_sealing(case: Case, whole: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], Stop(0, interrupt, "seal"))
    assert committed(case) == UNITS
    with counted() as passes:
        assert case.extract().encoded == 0
    assert passes == []
    assert_whole(case, whole)


def test_only_a_damaged_or_missing_unit_is_encoded_again(case: Case, whole: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], Stop(0, interrupt, "seal"))
    path = next(case.cache.rglob("block-00000003-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    next(case.cache.rglob("block-00000005-*.safetensors")).unlink()
    assert case.extract().encoded == 2 * UNIT
    assert_whole(case, whole)


def test_units_of_other_settings_are_not_used(case: Case, whole: Case) -> None:
    """Each unfinished file has its own units; work on it continues when the data are as before again."""
    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], Stop(30, interrupt))
    kept = committed(case)
    rows = case.rows()
    case.write([*rows[:-1], rows[-1] | {"text": "好" * 7}])
    assert case.extract().encoded == TRAIN
    assert case.extract(prompt="书").encoded == TRAIN
    case.write(rows)
    assert kept >= 2 and case.extract().encoded <= 1
    assert case.features().shape == (TRAIN, 32)
    np.testing.assert_allclose(case.features(), whole.features(), rtol=2e-3, atol=2e-3)


def test_force_interrupted_leaves_the_old_file(case: Case, whole: Case) -> None:
    case.extract()
    content = case.files()[0].read_bytes()
    with pytest.raises(KeyboardInterrupt):
        extract_splits(case.settings(), ["train"], Stop(30, interrupt), force=True)
    assert case.files()[0].read_bytes() == content
    with counted() as passes:
        case.find()
        assert case.extract().cached and passes == []
    case.extract(force=True)
    assert_whole(case, whole)


def test_a_full_disk_keeps_the_committed_units(
    case: Case, whole: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk becomes full while a unit is written: the error says so, and no committed unit is lost."""
    fsync, calls = files.Disk.fsync, []

    def full(disk: files.Disk, file: Any) -> None:
        calls.append(file)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        fsync(disk, file)

    with monkeypatch.context() as patch:
        patch.setattr(files.Disk, "fsync", full)
        with pytest.raises(CacheError, match="No space left on device") as caught:
            case.extract()
    assert "free some space" in (caught.value.hint or "")
    kept = committed(case)
    assert kept >= 3
    assert case.extract().encoded == TRAIN - kept * UNIT
    assert_whole(case, whole)


# ---------------------------------------------------------------- killed


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(arrow: Path) -> None:
    """Bring a new process to where the fixtures have brought this one."""
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = arrow
    partition.unit_starts = unit_starts


def killed(case: Case, arrow: Path, done: int, stage: str) -> None:
    """In a process of its own: extract until there, then be killed."""
    prepare(arrow)
    if stage == "publish":
        os.link = lambda *_: die()  # type: ignore[assignment]
    extract_splits(case.settings(), ["train"], Stop(done, die, stage))


@pytest.mark.parametrize(
    ("done", "stage"), [(0, "encode"), (13, "encode"), (50, "encode"), (0, "seal"), (0, "publish")]
)
def test_extract_resumes_after_sigkill(
    case: Case, whole: Case, arrow_files: Path, done: int, stage: str
) -> None:
    process = fork_server().Process(target=killed, args=(case, arrow_files, done, stage))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    kept = committed(case)
    assert not case.files() and (kept == UNITS) == (stage != "encode")
    with counted() as passes:
        result = case.extract()
    assert result.encoded == sum(passes) == TRAIN - min(kept * UNIT, TRAIN)
    assert_whole(case, whole)  # nothing is left of the file that was being sealed, either


# ---------------------------------------------------------------- two at once


def together(case: Case, arrow: Path, barrier: Any, number: int) -> None:
    """In a process of its own: extract as soon as the other one is there; keep what came of it."""
    prepare(arrow)
    barrier.wait(60)
    try:
        (result,) = extract_splits(case.settings(), ["train"])
        said: dict[str, Any] = {"encoded": result.encoded, "path": str(result.path), "pid": os.getpid()}
    except CacheError as error:
        said = {"refused": error.what, "hint": error.hint, "pid": os.getpid()}
    (case.folder / f"said-{number}.json").write_text(json.dumps(said))


@pytest.mark.parametrize("attempt", range(2))
def test_two_processes_at_once(case: Case, whole: Case, tmp_path: Path, attempt: int) -> None:
    """From an empty cache of `datasets` too: they meet over the rows, the lock, and the file."""
    barrier = fork_server().Barrier(2)
    both = [
        fork_server().Process(target=together, args=(case, tmp_path / "arrow", barrier, number))
        for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    said = [json.loads((case.folder / f"said-{number}.json").read_text()) for number in range(2)]
    done = [one for one in said if "encoded" in one]
    assert done and sum(one["encoded"] for one in done) == TRAIN
    for one in said:
        if "refused" in one:
            assert "another process is writing" in one["refused"] and "wait for it" in one["hint"]
            who = [f"process {other['pid']} on" for other in said if other is not one]
            assert any(name in one["refused"] for name in [*who, "has just started"])
    assert case.extract().cached
    assert_whole(case, whole)


def test_a_running_extraction_refuses_others_and_allows_readers(case: Case, whole: Case) -> None:
    """During an extraction a second one of the same split is refused; other splits can be extracted."""
    told: list[str] = []

    def meanwhile(step: Progress) -> None:
        if step.stage == "encode" and step.done >= 30 and not told:
            with pytest.raises(
                CacheError, match=f"another process is writing .*process {os.getpid()} "
            ) as caught:
                case.extract()
            told.append(str(caught.value))
            assert case.extract("test").encoded == COUNTS["test"]

    extract_splits(case.settings(), ["train"], meanwhile)
    assert len(told) == 1
    assert case.find().path.read_bytes() == whole.files()[0].read_bytes()
