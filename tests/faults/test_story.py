"""Random sequences of extractions, edits, kills, power cuts, gc and reads, compared with a dictionary."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from featcache.cache.catalog import CacheFile
from featcache.cache.gc import collect
from featcache.errors import CacheError, CacheMiss
from featcache.extraction.api import extract_splits
from tests.support import fault_counts as faults
from tests.support.disk import FaultDisk, PowerCut, memory_folder, plant, plugged_in
from tests.support.extraction import Case
from tests.support.stub_encoder import WIDTH, stubbed, vector

UNIT = 4  # rows
TEXTS = [f"text {number}" for number in range(40)]


class Story(RuleBasedStateMachine):
    """A state machine with one data file and one cache.

    `rows` holds the current texts and labels. The cache must return the vectors of the encoder for these
    texts, row by row, or refuse.
    """

    model: Path

    def __init__(self) -> None:
        super().__init__()
        self.where = ExitStack()
        self.case = Case(self.where.enter_context(memory_folder()), self.model, {})
        self.case.data.mkdir()
        self.case.cache.mkdir()
        self.rows: list[tuple[str, str]] = []
        self.draw = random.Random(0)
        self.disk = FaultDisk(self.case.cache)
        self.sealed: bytes | None = None  # bytes of the acknowledged file of the current rows
        self.case.write([{"text": "validation", "label": label} for label in "ab"], "validation")
        self.edit(list(range(10)), 0)

    def teardown(self) -> None:
        self.where.close()

    # -- the rules -----------------------------------------------------------------------------

    @rule(numbers=st.lists(st.integers(0, len(TEXTS) - 1), min_size=4, max_size=14), labels=st.integers(0, 1))
    def edit(self, numbers: list[int], labels: int) -> None:
        """Add, remove, move or double rows, or change only their labels."""
        rows = [(TEXTS[number], "ab"[(place >> labels) % 2]) for place, number in enumerate(numbers)]
        if rows != self.rows:
            self.rows, self.sealed = rows, None
            self.case.write([{"text": text, "label": label} for text, label in rows], "train")

    @rule(force=st.booleans())
    def extract(self, force: bool) -> None:
        self.case_extract(force=force)

    @rule(cut_at=st.integers(1, 60), force=st.booleans())
    def extract_and_be_killed(self, cut_at: int, force: bool) -> None:
        """The page cache keeps all names and bytes; no handler of the killed process runs."""
        self.disk.revive(cut_at)
        if not self.case_extract(force=force):
            faults.COUNT["kills"] += 1
        self.disk.revive()

    @rule(cut_at=st.integers(1, 60), how=st.sampled_from(["least", "all", "names", "data", "any"]))
    def extract_and_lose_power(self, cut_at: int, how: str) -> None:
        self.disk.revive(cut_at)
        self.case_extract()
        self.lose_power(how)

    @rule(how=st.sampled_from(["least", "any"]))
    def lose_power(self, how: str) -> None:
        """The machine restarts with the files that its disk has kept."""
        faults.COUNT["cuts"] += 1
        left = self.disk.survivors(self.draw, how)
        shutil.rmtree(self.case.cache)
        plant(left, self.case.cache)
        self.disk = FaultDisk(self.case.cache)
        if self.sealed is not None:
            there = [path.read_bytes() for path in self.case.files()]
            faults.require(self.sealed in there, "lost", "a sealed file that was acknowledged")

    @rule(place=st.floats(0, 0.999), bit=st.integers(0, 7))
    @precondition(lambda self: bool(self.case.files()))
    def rot(self, place: float, bit: int) -> None:
        """A flipped bit of a sealed file is found; the file is restored afterwards."""
        path = self.draw.choice(self.case.files())
        whole = path.read_bytes()
        bad = bytearray(whole)
        bad[int(place * len(bad))] ^= 1 << bit
        path.write_bytes(bad)
        faults.COUNT["flips"] += 1
        with pytest.raises(CacheError, match=path.stem):
            CacheFile(path).sealed.verify()
        path.write_bytes(whole)

    @rule()
    def clean_up(self) -> None:
        """`cache gc` removes no cache file that is in use."""
        before = [path.read_bytes() for path in self.case.files()]
        with plugged_in(self.disk):
            collect(self.case.cache)
        assert [path.read_bytes() for path in self.case.files()] == before

    @rule()
    def read(self) -> None:
        try:
            found = self.case.find("train").features("last/cls")
        except CacheMiss:
            assert self.sealed is None
            return
        names = [found.label_names[label] for label in found.y]
        faults.require(names == [label for _, label in self.rows], "wrong", "labels")
        right = np.array_equal(found.x, [vector(text) for text, _ in self.rows])
        faults.require(right, "wrong", "rows")

    # -- helpers -------------------------------------------------------------------------------

    def case_extract(self, force: bool = False) -> bool:
        """Extract, and compare the result with `rows`; False if the process was killed."""
        with stubbed(UNIT) as stub, plugged_in(self.disk):
            try:
                (result,) = extract_splits(self.case.settings(), ["train"], force=force)
            except PowerCut:
                return False
            assert sorted(set(stub.encoded)) == sorted(stub.encoded), "a text was encoded twice"
            assert set(stub.encoded) <= {text for text, _ in self.rows}
            assert result.rows == len(self.rows)
            if self.sealed is not None and not force:
                assert result.cached and not stub.encoded
        content = result.path.read_bytes()
        faults.require(self.sealed in (None, content), "wrong", "the same rows gave other bytes")
        self.sealed = content
        self.read()
        return True


@contextmanager
def stage(tiny_model: Path, arrow: Path) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(arrow))
        Story.model = tiny_model
        yield


@pytest.mark.parametrize(
    ("stories", "steps"), [(6, 8), pytest.param(120, 30, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_random_sequences_lose_nothing_and_return_right_rows(
    tiny: object, tmp_path: Path, stories: int, steps: int
) -> None:
    assert vector("a").shape == (WIDTH,)
    with stage(tiny("bert"), tmp_path):  # type: ignore[operator]
        run_state_machine_as_test(
            Story,
            settings=settings(
                max_examples=stories,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_a_finished_file_is_durable_for_the_next_process(tiny: object, tmp_path: Path) -> None:
    """A process dies before it makes the file's name durable: the next one that finds the file does so."""
    found = 0
    with stage(tiny("bert"), tmp_path):  # type: ignore[operator]
        for cut_at in range(45, 75):
            story = Story()
            story.disk.revive(cut_at)
            killed = not story.case_extract()
            story.disk.revive()
            found += killed and bool(story.case.files())
            assert story.case_extract()
            story.lose_power("least")
            story.teardown()
    assert found > 5
