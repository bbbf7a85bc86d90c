"""Verify finds every kind of damage and goes on; gc removes what was asked, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.gc import DAY, CacheGroup, CachePart, collect, plan_removals, survey
from featcache.cache.text_keys import write_text_keys
from featcache.errors import CacheError
from featcache.system.durable import TEMPORARY
from tests.cache.test_verify import big
from tests.support.cache_files import seal
from tests.support.documents import make_request
from tests.system.test_lock import holding

# ---------------------------------------------------------------- what gc plans

NOW = 1_000_000_000.0


def group(name: str, *parts: tuple[str, int, float]) -> CacheGroup:
    """Parts as (kind, bytes, age in seconds)."""
    target = Path(f"{name}.h5")
    ends = {"features": ".h5", "record": ".json", "unfinished": ".partial", "temporary": ".tmp.h5"}
    made = [
        CachePart(target.with_suffix(ends.get(kind, f".{kind}")), kind, size, NOW - age)
        for kind, size, age in parts
    ]
    return CacheGroup(target, tuple(made))


def planned(groups: list[CacheGroup], **how: object) -> dict[str, set[str]]:
    """Kinds to be removed, by the name of the group."""
    found: dict[str, set[str]] = {}
    for removal in plan_removals(groups, NOW, **how):  # type: ignore[arg-type]
        found.setdefault(removal.target.stem, set()).update(part.kind for part in removal.parts)
    return found


FILES = [
    group("old", ("features", 100, 40 * DAY), ("record", 5, 1), ("lock", 0, 1)),
    group("mid", ("features", 100, 20 * DAY), ("record", 5, 1)),
    group("new", ("features", 100, 1 * DAY)),
]
WHOLE = {"features", "record", "lock"}


def test_plan_removals_removes_nothing_by_default() -> None:
    assert planned(FILES) == {}


@pytest.mark.parametrize(
    ("size", "gone"),
    [
        (1000, []),
        (310, []),
        (309, ["old"]),
        (205, ["old"]),
        (204, ["old", "mid"]),
        (99, ["old", "mid", "new"]),
    ],
)
def test_plan_removals_removes_the_oldest_until_the_rest_fits(size: int, gone: list[str]) -> None:
    assert list(planned(FILES, max_size=size)) == gone
    assert list(planned(FILES[::-1], max_size=size)) == gone


def test_plan_removals_removes_what_is_older() -> None:
    assert planned(FILES, older_than=30 * DAY) == {"old": WHOLE}
    assert set(planned(FILES, older_than=DAY * 2)) == {"old", "mid"}
    assert planned(FILES, older_than=40 * DAY) == {}  # not older, just as old
    assert set(planned(FILES, older_than=30 * DAY, max_size=110)) == {"old", "mid"}


def test_plan_removals_keeps_and_counts_files_of_a_writer() -> None:
    busy = [FILES[0].target]
    assert planned(FILES, max_size=210, busy=busy) == {"mid": {"features", "record"}}
    assert planned(FILES, older_than=0, max_size=0, busy=[one.target for one in FILES]) == {}
    litter = [group("a", ("temporary", 9, DAY), ("holder", 1, DAY), ("unfinished", 1, 99 * DAY))]
    assert planned(litter, max_size=0, older_than=0, busy=[Path("a.h5")]) == {}


def test_plan_removals_finds_litter() -> None:
    assert planned([group("a", ("features", 1, DAY), ("unfinished", 1, 1))]) == {"a": {"unfinished"}}
    assert planned([group("a", ("unfinished", 1, DAY / 2))]) == {}  # it can be gone on from
    assert planned([group("a", ("unfinished", 1, DAY * 2), ("lock", 0, 1))]) == {"a": {"unfinished", "lock"}}
    assert planned([group("a", ("unfinished", 1, DAY * 2))], older_than=9 * DAY) == {}
    assert planned([group("a", ("unfinished", 1, 5))], max_size=0) == {"a": {"unfinished"}}
    assert planned([group("a", ("record", 1, 1))]) == {"a": {"record"}}
    assert planned([group("a", ("lock", 0, 1))]) == {"a": {"lock"}}
    assert planned([group("a", ("features", 1, 1), ("lock", 0, 1))]) == {}
    assert planned([group("a", ("features", 1, 1), ("holder", 0, 1))]) == {"a": {"holder"}}
    assert planned([group("a", ("temporary", 1, 1))]) == {"a": {"temporary"}}  # its lock is free
    assert planned([group("a", ("features", 1, DAY), ("temporary", 1, 1))]) == {"a": {"temporary"}}


def test_plan_removals_keeps_a_record_that_is_being_written() -> None:
    young = CachePart(Path(".tmp-a.json"), "temporary", 1, NOW - 60)
    assert plan_removals([CacheGroup(Path("a.h5"), (young,))], NOW, max_size=0, older_than=0) == []
    left = CachePart(Path(".tmp-a.json"), "temporary", 1, NOW - DAY)
    assert [one.parts for one in plan_removals([CacheGroup(Path("a.h5"), (left,))], NOW)] == [(left,)]


@given(
    ages=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    sizes=st.lists(st.integers(0, 50), min_size=12, max_size=12),
    most=st.integers(0, 600),
    busy=st.sets(st.integers(0, 11)),
)
def test_plan_removals_removes_no_more_than_needed(
    ages: list[int], sizes: list[int], most: int, busy: set[int]
) -> None:
    groups = [group(str(n), ("features", sizes[n], age * DAY)) for n, age in enumerate(ages)]
    held = [one.target for n, one in enumerate(groups) if n in busy]
    gone = [one.target for one in plan_removals(groups, NOW, max_size=most, busy=held)]
    kept = [one for one in groups if one.target not in gone]
    size = sum(one.bytes for one in kept)
    assert not set(gone) & set(held) and len(set(gone)) == len(gone)
    assert size <= most or {one.target for one in kept} <= set(held)
    if gone:
        by_target = {one.target: one for one in groups}
        assert size + by_target[gone[-1]].bytes > most  # the last one had to go
        oldest_kept = min((one.made for one in kept if one.target not in held), default=NOW)
        assert all(by_target[target].made <= oldest_kept for target in gone)


# ---------------------------------------------------------------- what gc does


def litter(cache: Path) -> tuple[set[Path], set[Path]]:
    """A cache with everything in it; what gc is to remove of it, and what it is to leave."""
    good, finished = seal(cache, age=100), seal(cache, prompt="q")
    add_request(CacheFile(good), make_request())
    place = good.parent
    (place / f"{finished.stem}.partial").mkdir()
    (place / f"{finished.stem}.partial" / "block-0").write_bytes(b"12345")
    remove = {place / f"{finished.stem}.partial"}
    for name in (
        ".tmp-0123456789ab-train-000000000001.h5",
        "train-000000000002.json",
        "test-000000000003.lock",
    ):
        (place / name).write_bytes(b"123")
        remove.add(place / name)
    (place / f"{good.stem}.holder").write_text("{}")
    remove.add(place / f"{good.stem}.holder")
    old = place / "test-000000000004.partial"
    old.mkdir()
    os.utime(old, (5, 5))
    remove.add(old)
    leave = {good, good.with_suffix(".json"), finished}
    (place / "test-000000000005.partial").mkdir()
    leave.add(place / "test-000000000005.partial")
    for name in ("notes.txt", "config.json", "model-00001.h5", "train-00000000000g.json", "texts-all.lock"):
        (place / name).write_bytes(b"mine")
        leave.add(place / name)
    foreign = place / "data-0123456789ab.h5"  # another tool's, of a name that might be ours
    foreign.write_bytes(b"\x89HDF\r\n\x1a\n and so on")
    (place / "data-0123456789ab.json").write_text("{}")
    (cache / "models").mkdir()
    (cache / "models" / "train-000000000002.json").write_bytes(b"{}")
    leave |= {foreign, foreign.with_suffix(".json"), cache / "models" / "train-000000000002.json"}
    (place / "link-000000000006.partial").symlink_to(cache / "models")
    os.utime(place / "link-000000000006.partial", (5, 5), follow_symlinks=False)
    remove.add(place / "link-000000000006.partial")
    return remove, leave


def test_collect_removes_only_litter_by_default(tmp_path: Path) -> None:
    remove, leave = litter(tmp_path)
    before = set(tmp_path.rglob("*"))
    dry = collect(tmp_path, dry_run=True)
    assert set(tmp_path.rglob("*")) == before
    done = collect(tmp_path)
    assert {part.path for one in done.removed for part in one.parts} == remove
    assert [one.parts for one in dry.removed] == [one.parts for one in done.removed]
    assert not any(path.exists() or path.is_symlink() for path in remove)
    assert all(path.exists() for path in leave)
    assert done.kept == [] and done.busy == [] and done.bytes == dry.bytes > 0
    assert collect(tmp_path).removed == []  # twice is once
    assert not list(tmp_path.rglob("*.holder"))


def test_collect_removes_an_old_file_with_its_parts(tmp_path: Path) -> None:
    old, new = seal(tmp_path, age=100), seal(tmp_path, prompt="q", age=int(time.time()))
    for path in (old, new):
        add_request(CacheFile(path), make_request())
        path.with_suffix(".lock").touch()
    sizes = sum(each.stat().st_size for each in (old, old.with_suffix(".json")))
    done = collect(tmp_path, older_than=DAY)
    assert done.bytes == sizes
    assert set(old.parent.iterdir()) == {new, new.with_suffix(".json"), new.with_suffix(".lock")}
    assert collect(tmp_path, max_size=0).bytes == done.bytes_before - done.bytes
    assert list(old.parent.iterdir()) == []


def test_collect_removes_keys_of_texts_as_files_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        write_text_keys(tmp_path, np.full((3, 32), number, np.uint8), np.arange(3, dtype=np.uint64))
    old, new = sorted(tmp_path.glob("texts/*.keys"))
    left = old.with_name(f"{TEMPORARY}{'0' * 12}-{old.name}")
    foreign = old.with_name("notes.keys")
    for path in (left, foreign):
        path.write_bytes(b"1")
    for path in (old, left):
        os.utime(path, (5, 5))
    assert [part.path for one in collect(tmp_path).removed for part in one.parts] == [left]
    assert collect(tmp_path).removed == []
    (removal,) = collect(tmp_path, older_than=DAY).removed
    assert removal.target == old and removal.why == "older than asked"
    assert set(old.parent.iterdir()) == {new, foreign}
    size = new.stat().st_size
    assert collect(tmp_path, max_size=0).bytes == size
    assert set(old.parent.iterdir()) == {foreign}


def test_collect_of_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert collect(tmp_path, max_size=0, older_than=0).removed == []
    assert collect(tmp_path / "nowhere").removed == [] and not (tmp_path / "nowhere").exists()


def test_collect_keeps_what_a_writer_is_at_work_on(tmp_path: Path) -> None:
    """A real process holds the lock of an unfinished file, long untouched, with a temporary beside it."""
    path = seal(tmp_path, age=100)
    target = path.with_name("test-000000000001.h5")
    partial = target.with_suffix(".partial")
    partial.mkdir()
    os.utime(partial, (5, 5))
    temporary = path.with_name(f".tmp-0123456789ab-{target.name}")
    temporary.write_bytes(b"half")
    with holding(target) as writer, holding(path):
        for dry in (True, False):
            done = collect(tmp_path, max_size=0, older_than=0, dry_run=dry)
            assert done.removed == [] and set(done.busy) == {target, path}
        assert partial.exists() and temporary.exists() and path.exists()
        with pytest.raises(CacheError, match=f"process {writer.pid} on"):
            Cache(tmp_path).remove(target)
        writer.kill()
        writer.wait()
        done = collect(tmp_path)
        assert {part.path for one in done.removed for part in one.parts} >= {partial, temporary}
        assert set(path.parent.iterdir()) == {path, path.with_suffix(".lock"), path.with_suffix(".holder")}


def test_collect_keeps_a_file_that_is_locked_after_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = seal(tmp_path, age=100), seal(tmp_path, prompt="q", age=50)
    path.with_suffix(".lock").touch()
    monkeypatch.setattr("featcache.cache.gc.is_locked", lambda _: False)
    with holding(path) as writer:
        done = collect(tmp_path, max_size=0)
        assert [one.target for one in done.removed] == [other] and not other.exists()
        ((target, why),) = done.kept
        assert target == path and f"process {writer.pid} on" in why and path.exists()


# ---------------------------------------------------------------- readers


READER = """
import sys, numpy as np
from pathlib import Path
from featcache.cache.catalog import CacheFile
file = CacheFile(Path(sys.argv[1]))
first = file.features("last/cls")
print("open", flush=True)
sys.stdin.readline()
print(float(first.x.astype("f8").sum()), float(file.features("last/cls").x.astype("f8").sum()), flush=True)
print(float(np.asarray(file.sealed.column("row_hash")).astype("f8").sum()), flush=True)
"""


@pytest.mark.parametrize("how", ["rm", "gc"])
def test_an_open_reader_keeps_reading(how: str, tmp_path: Path) -> None:
    """In another process: columns it has read, and those it has not, after the file is gone."""
    path = big(tmp_path)
    shutil.rmtree(tmp_path / "base")
    whole = CacheFile(path)
    sums = [
        float(np.asarray(whole.sealed.column(name)).astype("f8").sum())
        for name in ("views/last-cls", "row_hash")
    ]
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        if how == "rm":
            Cache(tmp_path).remove(path)
        else:
            assert collect(tmp_path, max_size=0).bytes > 0
        assert not path.exists()
        reader.stdin.write("go\n")
        reader.stdin.flush()
        assert [float(value) for value in reader.stdout.readline().split()] == [sums[0]] * 2
        assert float(reader.stdout.readline()) == sums[1]
    assert reader.returncode == 0


STRESS = """
import sys, time
from pathlib import Path
from featcache.errors import CacheError
from featcache.cache.cache import Cache
cache, end, seen, missed = Cache(Path(sys.argv[1])), time.monotonic() + float(sys.argv[2]), 0, 0
print("ready", flush=True)
while time.monotonic() < end:
    for path in cache.paths():
        time.sleep(0.0005)  # the path is known, the file may be gone by now
        try:
            found = cache.file(path).features("-4/mean")
        except CacheError as error:
            assert "No such file" in str(error) or "no file" in str(error), error
            missed += 1
        else:
            assert (found.x == 1).all() and found.x.shape == (2, 3), found
            seen += 1
    for file in cache.files():
        assert (file.features("-4/mean").x == 1).all()
print(seen, missed)
"""


def test_readers_see_only_whole_files_during_removals(tmp_path: Path) -> None:
    """Two readers beside a process that seals, removes and collects: right answers, or `No such file`."""
    argv = [sys.executable, "-c", STRESS, str(tmp_path), "2"]
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    turn = 0
    while any(reader.poll() is None for reader in readers):
        path = seal(tmp_path, age=int(time.time()))
        if turn % 2:
            Cache(tmp_path).remove(path)
        else:
            assert collect(tmp_path, max_size=0).bytes > 0
        turn += 1
    counts = [list(map(int, reader.communicate()[0].split())) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert turn > 4 and all(seen > 0 for seen, _ in counts) and sum(missed for _, missed in counts) > 0


def test_survey_groups_by_cache_file(tmp_path: Path) -> None:
    path = seal(tmp_path)
    add_request(CacheFile(path), make_request())
    (found,) = survey(tmp_path)
    assert [part.kind for part in found.parts] == ["features", "record", "lock"] and found.target == path
    assert found.made == 0 and found.bytes == path.stat().st_size + path.with_suffix(".json").stat().st_size


def test_survey_does_not_open_a_pipe(tmp_path: Path) -> None:
    for folder in ("data/model", "data/model/states"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("train-0123456789ab.h5", "train-0123456789ab.shard-00000.h5"):
            os.mkfifo(tmp_path / folder / name)
    assert collect(tmp_path).removed == []
    assert len(list(tmp_path.rglob("*.h5"))) == 4
