"""Caches of many shards: written one after the other, read as one, and never wrong."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import integer_array_indices

from featcache.bench.memory import measure, write_made_up
from featcache.cache import sealed_writer
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.description import FileDescription
from featcache.cache.export_arrays import export
from featcache.cache.gc import collect, survey
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.shards import cache_bytes, shard_paths, shards_in_use
from featcache.cache.verify import verify
from featcache.cache.writing.cache_writer import write_cache
from featcache.errors import CacheError, CorruptCache, UsageError
from featcache.system import sharded_array as shard_column
from featcache.system.durable import remove_temporaries
from featcache.system.sharded_array import ShardedColumn, as_array, part_of
from tests.support.disk import FaultDisk, Quick, memory_folder, plant, plugged_in
from tests.support.documents import cache_document, encoder_document
from tests.support.forked import fork_server

ROWS, WIDTH, SHARD = 1000, 8, 40_000
Arrays = dict[str, np.ndarray]


def made_up(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> Arrays:
    """The columns of a cache file."""
    draw = np.random.default_rng(seed)
    return {
        "views/last-cls": draw.normal(size=(rows, width)).astype(np.float16),
        "labels": draw.integers(0, 2, rows),
        "row_hash": draw.integers(0, 256, (rows, 32), dtype=np.uint8),
        "n_tokens": draw.integers(1, 99, rows, dtype=np.int32),
        "truncated": draw.integers(0, 2, rows, dtype=np.uint8),
    }


def columns_of(arrays: Arrays) -> Callable[[slice], list[Column]]:
    def of_rows(rows: slice) -> list[Column]:
        parts = {name: array[rows] for name, array in arrays.items()}
        return [Column(name, part.shape, part.dtype.name, [part]) for name, part in parts.items()]

    return of_rows


def meta_of(arrays: Arrays, prompt: str = "") -> FileDescription:
    encoder = encoder_document(prompt=prompt)
    document = cache_document(encoder, ["last/cls"], arrays["row_hash"], arrays["labels"], ["bad", "good"])
    return FileDescription(
        format="featcache",
        fingerprint=document.fingerprint,
        split="train",
        model="m",
        document=document.to_json(),
    )


def write(cache: Path, arrays: Arrays, size: int = SHARD, **how: Any) -> Path:
    """The cache of these columns under the folder `cache`; its path."""
    meta = meta_of(arrays)
    path = Cache(cache).path("some/data", "model", "train", meta.fingerprint)
    remove_temporaries(path)
    write_cache(path, meta, len(arrays["labels"]), columns_of(arrays), size, **how)
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    path = write(tmp_path, made_up())
    assert len(shard_paths(path)) > 2
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# ---------------------------------------------------------------- the column


@st.composite
def keys(draw: st.DrawFn, rows: int) -> Any:
    """Whatever numpy takes for rows of a matrix."""
    row = st.integers(-rows, rows - 1)
    kinds: list[st.SearchStrategy[Any]] = [
        st.slices(rows),
        st.lists(st.booleans(), min_size=rows, max_size=rows).map(lambda found: np.array(found, bool)),
        st.sampled_from([Ellipsis, None, (), (slice(1, None), 0), (Ellipsis, 1), (slice(None, None, -1),)]),
    ]
    if rows:
        kinds += [
            row,
            row.map(np.int32),
            st.lists(row, max_size=9),
            integer_array_indices((rows,)).map(lambda found: found[0]),
            st.tuples(row, st.just(1)),
            st.tuples(st.slices(rows), st.slices(3)),
            st.tuples(st.lists(row, max_size=3), st.just(2)),
        ]
    return draw(st.one_of(kinds))


@given(data=st.data(), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4), resident=st.booleans())
def test_a_sharded_column_is_read_like_an_array(
    data: st.DataObject, sizes: list[int], resident: bool
) -> None:
    whole = np.arange(3 * sum(sizes), dtype=np.int32).reshape(-1, 3)
    ends = np.cumsum([0, *sizes])
    opened = lambda number: whole[ends[number] : ends[number + 1]]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_column, "RESIDENT", 1 << 30 if resident else 20)
        column = ShardedColumn(opened, ends, np.int32, (3,))
        for found, expected in ((column, whole), (part_of(as_array(column), slice(2, -1)), whole[2:-1])):
            assert found.shape == expected.shape and len(found) == len(expected)
            assert (found.ndim, found.size, found.nbytes) == (2, expected.size, expected.nbytes)
            key = data.draw(keys(len(expected)))
            taken = found[key]
            assert taken.dtype == expected.dtype and taken.shape == expected[key].shape
            assert np.array_equal(taken, expected[key])
            assert np.array_equal(np.asarray(found), expected)
            assert np.array_equal(list(found), list(expected))
        assert np.asarray(column, np.float64).dtype == np.float64 and np.concatenate([column, whole]).shape[1]


def test_missing_rows_are_an_index_error() -> None:
    column = ShardedColumn(lambda _: np.zeros((4, 2)), [0, 4], np.float64, (2,))
    for odd in (4, -5, [0, 4], [-5], np.zeros(3, bool), [0.5], np.zeros((4, 2), bool)):
        with pytest.raises(IndexError):
            column[odd]
    with pytest.raises(ValueError, match="always a copy"):
        np.asarray(column, copy=False)


def test_maps_are_dropped_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_column, "RESIDENT", 1000)
    opened: list[int] = []

    def rows(number: int) -> np.ndarray:
        opened.append(number)
        return np.full((50, 2), number, np.float64)

    column = ShardedColumn(rows, [0, 50, 100, 150], np.float64, (2,))
    assert column[:150].sum() == 2 * 50 * 3 and opened == [0, 1, 2]
    assert len(column._maps.maps) == 1  # 800 bytes each
    column[140:]
    assert opened == [0, 1, 2]


# ---------------------------------------------------------------- the files


def test_write_cache_writes_one_file_where_it_fits(tmp_path: Path) -> None:
    arrays = made_up()
    path, plain = write(tmp_path, arrays, 1 << 30), tmp_path / "plain.h5"
    write_sealed(plain, meta_of(arrays).to_json(), columns_of(arrays)(slice(0, ROWS)))
    assert path.read_bytes() == plain.read_bytes() and not shard_paths(path)
    assert write(tmp_path / "b", arrays, plain.stat().st_size).read_bytes() == plain.read_bytes()
    assert shard_paths(write(tmp_path / "c", arrays, plain.stat().st_size - 1))


@pytest.mark.parametrize("size", [20_000, 33_333, 60_000])
def test_write_cache_makes_few_even_shards_below_the_size(tmp_path: Path, size: int) -> None:
    arrays = made_up()
    path = write(tmp_path, arrays, size)
    rows = [each.rows for each in CacheFile(path).sealed.description.shards or ()]
    sizes = [shard.stat().st_size for shard in shard_paths(path)]
    assert max(sizes) <= size and max(rows) - min(rows) <= 1 and sum(rows) == ROWS
    row_bytes = sum(array.nbytes for array in arrays.values()) / ROWS
    room = size - (max(sizes) - max(rows) * row_bytes)  # for the rows of one shard
    assert (len(rows) - 1) * (room - 2 * row_bytes) < ROWS * row_bytes  # one shard less would not do
    assert path.stat().st_size < 25_000  # the manifest has no rows


def test_other_tools_read_shards_as_the_documentation_says(sharded: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "cache-format.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    arrays = made_up()
    for path in (sharded, write(tmp_path / "single", arrays, 1 << 30)):
        for name, expected in arrays.items():
            found = names["read"](path, name)
            assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_cache_bytes_leaves_out_a_file_that_was_removed(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [*shard_paths(sharded), sharded.with_name("removed-after-the-listing.h5")]
    monkeypatch.setattr("featcache.cache.shards.shard_paths", lambda path: listed)
    assert cache_bytes(sharded) == sum(each.stat().st_size for each in (sharded, *listed[:-1]))


def test_a_sharded_cache_is_one_file_to_its_readers(sharded: Path, tmp_path: Path) -> None:
    arrays = made_up()
    assert Cache(tmp_path).paths() == [sharded]
    file = CacheFile(sharded)
    features = file.features("last/cls")
    assert np.array_equal(features.x, arrays["views/last-cls"]) and np.array_equal(
        features.y, arrays["labels"]
    )
    assert np.array_equal(features.row_hash, arrays["row_hash"])
    assert set(file.sealed.names) == {*arrays, "meta"}
    assert file.truncated == arrays["truncated"].sum() and file.tokens == arrays["n_tokens"].sum()
    assert file.sealed.total("labels") == arrays["labels"].sum()
    assert file.sealed.nbytes == cache_bytes(sharded) == file.sealed.verify()
    steps: list[tuple[int, int]] = []
    verdict = verify(sharded, lambda step: steps.append((step.done, step.total)))
    assert verdict.ok and verdict.bytes == file.sealed.nbytes and steps[-1] == (verdict.bytes, verdict.bytes)
    single = write(tmp_path / "single", arrays, 1 << 30)
    for name in ("x.npy", "x.parquet"):
        made = [export(CacheFile(path), tmp_path / path.parts[-4] / name) for path in (sharded, single)]
        assert [one.read_bytes() for one in made[0].paths] == [one.read_bytes() for one in made[1].paths]


def test_a_shard_alone_is_refused(sharded: Path) -> None:
    with pytest.raises(CacheError, match=r"is a shard and no cache by itself") as caught:
        CacheFile(shard_paths(sharded)[0])
    assert sharded.name in str(caught.value.hint)


def test_a_size_that_holds_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shard-size 9000 bytes: a shard with a single row has"):
        write(tmp_path, made_up(), 9000)


# ---------------------------------------------------------------- damage


def refusals(path: Path) -> list[str]:
    """What is said when the cache is opened, its rows are read, and it is verified."""
    said = []
    try:
        features = CacheFile(path).features("last/cls")
        for rows in (slice(0, ROWS), np.arange(ROWS)[::-1]):
            assert features.x[rows].shape == (ROWS, WIDTH) and features.row_hash[rows].shape
    except CorruptCache as error:
        said.append(error.what)
    return [*said, *verify(path).damage]


def missing(shards: list[Path]) -> None:
    shards[1].unlink()


def swapped(shards: list[Path]) -> None:
    one, other = shards[1].read_bytes(), shards[2].read_bytes()
    shards[1].write_bytes(other), shards[2].write_bytes(one)


def cut_off(shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-1])


def folder(shards: list[Path]) -> None:
    shards[1].unlink()
    shards[1].mkdir()


def of_another_cache(shards: list[Path]) -> None:
    other = write(shards[1].parent / "other", made_up(seed=1))
    shutil.copy(shard_paths(other)[1], shards[1])


def made_again(shards: list[Path]) -> None:
    """By hand, a shard with other numbers and good checksums."""
    old = SealedFile(shards[1])
    columns = []
    for name in (name for name in old.names if name != "meta"):
        values = np.array(old.column(name))
        values[0] += 1
        columns.append(Column(name, values.shape, values.dtype.name, [values]))
    write_sealed(shards[1], old.description.to_json(), columns, replace=True)


@pytest.mark.parametrize("hurt", [missing, swapped, cut_off, folder, of_another_cache, made_again])
def test_a_shard_of_another_cache_is_refused(sharded: Path, hurt: Callable[[list[Path]], None]) -> None:
    shards = shard_paths(sharded)
    assert not refusals(sharded)
    hurt(shards)
    said = refusals(sharded)
    assert len(said) >= 2 and all(shards[1].name in text or shards[2].name in text for text in said)
    found = CacheFile(sharded).features  # the labels are read at once, and lie in that shard too
    with pytest.raises(CacheError, match=shards[1].name):
        found("last/cls")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), number=st.integers(0, 9))
def test_any_flipped_bit_of_any_shard_is_found(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, number: int
) -> None:
    path = write(tmp_path_factory.mktemp("flip"), made_up(60, 2), 20_000)
    files = [path, *shard_paths(path)]
    hurt = files[number % len(files)]
    content = bytearray(hurt.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    hurt.write_bytes(content)
    assert any(hurt.name in text for text in verify(path).damage)


def test_damage_is_named_by_shard_chunk_and_rows(sharded: Path) -> None:
    shard = shard_paths(sharded)[1]
    with h5py.File(shard) as file:
        place = file["views/last-cls"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    x = CacheFile(sharded).features("last/cls").x
    rows = CacheFile(sharded).sealed.description.to_json()["shards"][0]["rows"]
    assert np.array_equal(x[:rows], made_up()["views/last-cls"][:rows])  # the others still serve
    with pytest.raises(CorruptCache, match=rf"{shard.name}: chunk 0 of views/last-cls \(rows 0 to \d+\)"):
        x[rows]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../../secret.h5"},
        {"name": "train-000000000000.shard-00000.h5"},
        {"name": 7},
        {"rows": -1},
        {"rows": True},
        {"rows": 10**9},
        {"bytes": "many"},
        {"seal": None},
        {"truncated": -5},
    ],
)
def test_a_forged_manifest_is_refused(sharded: Path, change: dict[str, Any]) -> None:
    meta = SealedFile(sharded).description.to_json()
    first, *others = meta["shards"]
    odd: list[Any] = [[{**first, **change}, *others], [*others, first, first], [], [None], {}, "x"]
    for shards in odd:
        write_sealed(sharded, {**meta, "shards": shards}, [], replace=True)
        with pytest.raises(CorruptCache, match=r"shards makes no sense|description says: .*\$\.shards"):
            CacheFile(sharded)
        assert not verify(sharded).ok
    for columns in ({}, {"labels": {"dtype": "object", "shape": []}}, {"labels": {"dtype": "int64"}}, []):
        write_sealed(sharded, {**meta, "columns": columns}, [], replace=True)
        with pytest.raises(CorruptCache):
            CacheFile(sharded)


def test_a_shard_that_changes_is_checked_again(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.cache.shards.OPEN", 1)
    monkeypatch.setattr(shard_column, "RESIDENT", 1)
    x, shards = CacheFile(sharded).features("last/cls").x, shard_paths(sharded)
    expected = made_up()["views/last-cls"]
    assert np.array_equal(x[:], expected) and np.array_equal(x[::-1], expected[::-1])
    with h5py.File(shards[0]) as file:
        place = file["views/last-cls"].id.get_offset()
    with open(shards[0], "r+b") as file:
        file.seek(place)
        file.write(b"\x01\x02")
    with pytest.raises(CorruptCache, match=shards[0].name):
        x[:]


# ---------------------------------------------------------------- writing, again and in between


def killed(folder: Path, left: int) -> None:
    """In a process of its own: write the shards, and be killed once `left` of them are published."""
    publish = sealed_writer.publish

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal left
        done = publish(*args, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    sealed_writer.publish = counting
    write(folder, made_up())


def test_a_kill_between_shards_costs_no_finished_shard(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", made_up())
    count = len(shard_paths(whole))
    for left in (1, count - 1, count):
        folder = tmp_path / str(left)
        process = fork_server().Process(target=killed, args=(folder, left))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        path = folder / whole.relative_to(tmp_path / "whole")
        assert not path.exists() and not Cache(folder).paths() and len(shard_paths(path)) == left
        kept = {shard: shard.stat().st_ino for shard in shard_paths(path)}
        assert write(folder, made_up()) == path
        assert contents(path.parent) == contents(whole.parent)
        assert {shard: shard.stat().st_ino for shard in kept} == kept


def test_a_damaged_or_other_shard_of_an_earlier_attempt_is_written_again(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", made_up())
    path = write(tmp_path / "left", made_up(), SHARD - 9000)
    path.unlink()  # what is left are shards of another size
    assert shard_paths(path)
    hurt = path.with_name(shard_paths(whole)[1].name)
    hurt.write_bytes(shard_paths(whole)[1].read_bytes()[:-1])
    write(tmp_path / "left", made_up())
    assert contents(path.parent) == contents(whole.parent)


def test_power_cuts_leave_a_whole_cache_or_none(tmp_path: Path) -> None:
    """Before every operation; and what is left is gone on from."""
    arrays = made_up(120, 2)
    whole = contents(write(tmp_path / "whole", arrays, 20_000).parent)
    draw, cuts = random.Random(0), 0
    with memory_folder() as folder:

        def look(disk: FaultDisk) -> bool:
            nonlocal cuts
            for how in ("least", "any"):
                left = folder / "left"
                plant(disk.survivors(draw, how), left)
                with plugged_in(Quick()):
                    for path in Cache(left / "cache").paths():
                        assert verify(path).ok
                    again = write(left / "cache", arrays, 20_000)
                    assert contents(again.parent) == whole
                shutil.rmtree(left)
                cuts += 1
            return False

        root = folder / "disk"
        root.mkdir()
        disk = FaultDisk(root, watch=look)
        with plugged_in(disk):
            write(root / "cache", arrays, 20_000)
            look(disk)
    assert cuts > 50


def test_replace_swaps_the_whole_cache_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features differ, as they do on another machine; the old ones are there until the new ones are."""
    old, new = made_up(), made_up()
    new["views/last-cls"] = new["views/last-cls"] + np.float16(1)
    path = write(tmp_path, old)
    with monkeypatch.context() as patch:
        patch.setattr(
            "featcache.cache.writing.cache_writer._manifest",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, new, replace=True)
    assert verify(path).ok and np.array_equal(CacheFile(path).features("last/cls").x, old["views/last-cls"])
    assert not write_cache(path, meta_of(new), ROWS, columns_of(new), SHARD)  # it is there already
    assert np.array_equal(CacheFile(path).features("last/cls").x, old["views/last-cls"])
    for size in (SHARD, SHARD, 1 << 30, SHARD):
        write(tmp_path, new, size, replace=True)
        assert verify(path).ok and np.array_equal(
            CacheFile(path).features("last/cls").x, new["views/last-cls"]
        )
        assert set(shard_paths(path)) == shards_in_use(path)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_replaced_or_removed_cache_stays_with_its_reader(
    sharded: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = made_up(), made_up()
    new["views/last-cls"] = new["views/last-cls"] + np.float16(1)
    x = CacheFile(sharded).features("last/cls").x
    monkeypatch.setattr("featcache.cache.shards.OPEN", 1)
    y = CacheFile(sharded).features("last/cls").x
    if how == "removed":
        Cache(sharded.parents[2]).remove(sharded)
        assert not list(sharded.parent.glob("*.h5"))
    else:
        write(sharded.parents[2], new, replace=True)
        assert np.array_equal(CacheFile(sharded).features("last/cls").x, new["views/last-cls"])
    assert np.array_equal(x, old["views/last-cls"])
    with pytest.raises(CorruptCache, match=r"shard-00000\.h5 is missing"):
        y[:]


# ---------------------------------------------------------------- gc


def test_gc_removes_shards_with_their_cache(sharded: Path, tmp_path: Path) -> None:
    old = time.time() - 10 * 86400
    for each in (sharded, *shard_paths(sharded)):
        os.utime(each, (old, old))
    (group,) = survey(tmp_path)
    assert group.bytes == cache_bytes(sharded)
    assert not collect(tmp_path).removed and verify(sharded).ok
    spare = shard_paths(sharded)[0].with_name(f"{sharded.stem}.shard-00000b.h5")
    shutil.copy(shard_paths(sharded)[0], spare)
    foreign = sharded.with_name(f"{sharded.stem}.shard-00077.h5")
    foreign.write_bytes(b"somebody's")
    (removal,) = collect(tmp_path).removed
    assert [part.path for part in removal.parts] == [spare] and verify(sharded).ok and foreign.exists()
    made = collect(tmp_path, max_size=0)
    assert made.bytes == group.bytes
    assert sorted(path.name for path in sharded.parent.iterdir()) == [foreign.name]


def test_gc_removes_unused_shards_only(sharded: Path, tmp_path: Path) -> None:
    sharded.unlink()
    assert not collect(tmp_path).removed  # somebody may go on from them
    old = time.time() - 2 * 86400
    for each in shard_paths(sharded):
        os.utime(each, (old, old))
    collect(tmp_path)
    assert not list(sharded.parent.iterdir())


def test_gc_leaves_the_shards_of_a_damaged_manifest(sharded: Path, tmp_path: Path) -> None:
    sharded.write_bytes(sharded.read_bytes()[:-1])
    assert not collect(tmp_path).removed and shard_paths(sharded)


# ---------------------------------------------------------------- memory


@pytest.mark.slow
def test_twenty_million_rows_take_less_than_1500_mb() -> None:
    found = measure()
    assert found.rows == 20_000_000 and found.shards > 8 and found.accuracy > 0.8
    assert found.rss_mb < 1500 and found.write_rss_mb < 500


def test_reading_shards_takes_no_memory_for_them(tmp_path: Path) -> None:
    """In a process of its own: shards many times as large as what may stay mapped are read and checked."""
    path = write_made_up(tmp_path, 1_500_000, 64, 60_000_000)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from featcache.system import sharded_array as shard_column\n"
        "from featcache.system.machine import peak_memory\n"
        "from featcache.cache.catalog import CacheFile\n"
        "shard_column.RESIDENT = 10_000_000\n"
        "file = CacheFile(Path(sys.argv[1]))\n"
        "x, peak = file.sealed.column('views/last-mean'), peak_memory()\n"
        "for start in range(0, len(x), 50_000):\n"
        "    x[start : start + 50_000].sum(dtype='f8')\n"
        "x[::1001].sum(dtype='f8')\n"
        "print(peak_memory() - peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert cache_bytes(path) > 200e6 and int(done.stdout) < 60e6
