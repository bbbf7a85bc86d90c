"""A sealed file gives back what was written, or refuses; it appears whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache import sealed_writer
from featcache.cache.seal import CHUNK, DTYPES
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed, write_unsealed
from featcache.errors import CacheError, CorruptCache
from featcache.system.durable import Disk

META = {"format": "featcache", "split": "train", "document": {"文": ["好", None, 1.5]}, "number": 7}


def column(name: str, values: np.ndarray, rows: int | None = None) -> Column:
    """`values`, handed over in chunks of `rows` rows."""
    kind = next(kind for kind, code in DTYPES.items() if np.dtype(code) == values.dtype)
    step = rows or max(len(values), 1)
    return Column(name, values.shape, kind, [values[i : i + step] for i in range(0, len(values), step)])


def small(path: Path, *, seed: int = 0, replace: bool = False) -> bool:
    draw = np.random.default_rng(seed)
    columns = [
        column("views/last-cls", draw.normal(size=(5, 3)).astype("<f2")),
        column("labels", np.arange(5, dtype="<i8")),
        column("row_hash", draw.integers(0, 256, (5, 32), dtype=np.uint8)),
    ]
    return write_sealed(path, META, columns, replace=replace)


def read_all(path: Path) -> dict[str, bytes]:
    """Everything a reader can get out of the file."""
    file = SealedFile(path)
    values = {name: file.column(name).tobytes() for name in file.names}
    return values | {"/meta": json.dumps(file.description.to_json(), sort_keys=True).encode()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what goes in comes out


class Table(NamedTuple):
    values: np.ndarray
    rows: int


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any bits at all, NaN and denormals too, handed over a few rows at a time."""
    kind = draw(st.sampled_from(list(DTYPES)))
    shape = draw(st.sampled_from([(0,), (1,), (7,), (0, 4), (5, 0), (1, 1), (9, 3), (64, 33)]))
    size = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
    content = np.random.default_rng(draw(st.integers(0, 2**32))).bytes(size)
    return Table(np.frombuffer(content, DTYPES[kind]).reshape(shape), draw(st.integers(1, 12)))


@given(drawn=st.lists(tables(), max_size=4))
def test_columns_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, drawn: list[Table]) -> None:
    path = tmp_path_factory.mktemp("sealed") / "a.h5"
    names = [f"views/{number}" if number % 2 else f"c{number}" for number in range(len(drawn))]
    columns = [column(name, one.values, one.rows) for name, one in zip(names, drawn, strict=True)]
    assert write_sealed(path, META, columns) is True
    file = SealedFile(path)
    assert file.description.to_json() == META and set(file.names) == {*names, "meta"}
    with h5py.File(path, "r") as plain:
        for name, (values, _) in zip(names, drawn, strict=True):
            for found in (file.column(name), plain[name][()]):
                assert (found.shape, found.dtype) == (values.shape, values.dtype)
                assert found.tobytes() == values.tobytes()
    assert file.verify() == path.stat().st_size == file.nbytes
    assert leftovers(path.parent) == ["a.h5"]


@pytest.mark.parametrize("rows", [1, 1000, 70_000])
@pytest.mark.parametrize("nbytes", [CHUNK - 4, CHUNK, CHUNK + 4, 3 * CHUNK + 20])
def test_columns_of_several_checksums(tmp_path: Path, nbytes: int, rows: int) -> None:
    values = np.frombuffer(np.random.default_rng(0).bytes(nbytes), "<u1").reshape(-1, 4)
    whole = Column("a", values.shape, "uint8", [values[: len(values) // 2], values[len(values) // 2 :]])
    steps = [values[:1], values[1 : rows + 1], values[rows + 1 :]]
    for name, one in (("one", whole), ("two", Column("a", values.shape, "uint8", steps))):
        write_sealed(tmp_path / name, {}, [one, column("labels", np.arange(9, dtype="<i8"))])
        file = SealedFile(tmp_path / name)
        assert file.column("a").tobytes() == values.tobytes()
        assert file.column("labels").tolist() == list(range(9))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_columns_are_read_only(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    values = SealedFile(tmp_path / "a.h5").column("labels")
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 9
    assert (tmp_path / "a.h5").read_bytes() == before


def test_memory_layout_of_arrays_does_not_matter(tmp_path: Path) -> None:
    values = np.arange(12, dtype="<f4").reshape(3, 4)
    write_sealed(tmp_path / "a", {}, [Column("a", (3, 4), "float32", [np.asfortranarray(values)])])
    write_sealed(tmp_path / "b", {}, [Column("a", (3, 4), "float32", [values.astype(">f4")])])
    write_sealed(tmp_path / "c", {}, [Column("a", (3, 4), "float32", [values])])
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    assert (SealedFile(tmp_path / "a").column("a") == values).all()


@pytest.mark.parametrize("given_rows", [4, 6, 0])
def test_write_sealed_refuses_a_column_of_another_length(tmp_path: Path, given_rows: int) -> None:
    rows = np.zeros((given_rows, 2), dtype="<f2")
    with pytest.raises(CacheError, match=r"a: .* bytes came, 20 were announced"):
        write_sealed(tmp_path / "a.h5", {}, [Column("a", (5, 2), "float16", [rows])])
    assert leftovers(tmp_path) == []


def test_write_sealed_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2), dtype="<f2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sealed(tmp_path / "a.h5", {}, [Column("a", (5, 2), "float16", chunks())])
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_an_open_reader_keeps_reading(tmp_path: Path, replaced: bool) -> None:
    """As `store.remove` promises, and as `publish(replace=True)` does."""
    path = tmp_path / "a.h5"
    small(path)
    before = read_all(path)
    reader = SealedFile(path)
    early = reader.column("labels")
    if replaced:
        small(path, seed=1, replace=True)
    else:
        path.unlink()
    assert {name: reader.column(name).tobytes() for name in reader.names}.items() <= before.items()
    assert early.tolist() == [0, 1, 2, 3, 4]


def test_columns_may_be_read_by_several_threads(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2 * CHUNK, 1), dtype=np.uint8)
    names = [f"views/{number}" for number in range(6)]
    write_sealed(tmp_path / "a.h5", {}, [column(name, values) for name in names])
    for _ in range(8):
        file = SealedFile(tmp_path / "a.h5")
        with ThreadPoolExecutor(len(names)) as pool:
            assert all((found == values).all() for found in pool.map(file.column, names))


# ---------------------------------------------------------------- what kind of file it is


def test_the_file_is_plain_hdf5(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        names: list[str] = []
        file.visititems_links(lambda name, _: names.append(name))
        for name in names:
            assert isinstance(file.get(name, getlink=True), h5py.HardLink), name
            found = file[name]
            if isinstance(found, h5py.Dataset):
                made = found.id.get_create_plist()
                assert made.get_layout() == h5py.h5d.CONTIGUOUS
                assert (made.get_nfilters(), made.get_external_count()) == (0, 0)
        assert {name for name in names if isinstance(file[name], h5py.Dataset)} == {
            *("labels", "row_hash", "views/last-cls", "meta"),
            *("checksums/labels", "checksums/row_hash", "checksums/views/last-cls", "checksums/meta"),
        }
        assert json.loads(file["meta"][()].tobytes()) == META
        assert dict(file.attrs) == {"format": "featcache", "split": "train", "number": 7}


def test_the_checksums_are_as_documented(tmp_path: Path) -> None:
    import xxhash

    values = np.arange(CHUNK // 8 + 5, dtype="<i8")
    write_sealed(tmp_path / "a.h5", {}, [column("a", values, 777)])
    with h5py.File(tmp_path / "a.h5", "r") as file:
        content = file["a"][()].tobytes()
        sums = [xxhash.xxh3_128(part).digest() for part in (content[:CHUNK], content[CHUNK:])]
        assert file["checksums/a"][()].tobytes() == b"".join(sums)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    time.sleep(1.1)  # HDF5 keeps times in seconds where it keeps them
    (tmp_path / "other").mkdir()
    small(tmp_path / "other" / "another-name.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "other" / "another-name.h5").read_bytes()
    small(tmp_path / "b.h5", seed=1)
    assert (tmp_path / "a.h5").read_bytes() != (tmp_path / "b.h5").read_bytes()


# ---------------------------------------------------------------- damage


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole)
    for length in reversed(range(len(whole))):
        with cut.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(CacheError):
            SealedFile(cut)


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    assert len(whole) < 20_000
    bad = tmp_path / "bad.h5"
    bad.write_bytes(whole)
    draw = random.Random(0)
    with bad.open("r+b", buffering=0) as file:
        for place, byte in enumerate(whole):
            file.seek(place)
            file.write(bytes([byte ^ (1 << draw.randrange(8))]))
            with pytest.raises(CacheError):
                read_all(bad)
            file.seek(place)
            file.write(bytes([byte]))
    assert read_all(bad) == read_all(tmp_path / "a.h5")


@given(data=st.data())
def test_no_damage_is_read_as_another_value(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Overwritten, moved, zeroed or doubled stretches: the right values or an error, nothing else."""
    folder = tmp_path_factory.mktemp("damage")
    small(folder / "a.h5")
    whole = (folder / "a.h5").read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.sampled_from([1, 8, 16, 100, 512, 4096]))
    other = data.draw(st.integers(0, len(whole) - 1))
    stretch = data.draw(st.sampled_from([b"", bytes(length), b"\n" * length, whole[other : other + length]]))
    bad = whole[:start] + stretch + whole[start + length :]
    (folder / "bad.h5").write_bytes(bad)
    if bad == whole:
        return
    with pytest.raises(CacheError):
        read_all(folder / "bad.h5")


@pytest.mark.parametrize("extra", [b"\0", b"\n", b"x" * 5000])
def test_appended_bytes_are_refused(tmp_path: Path, extra: bytes) -> None:
    small(tmp_path / "a.h5")
    with (tmp_path / "a.h5").open("ab") as file:
        file.write(extra)
    with pytest.raises(CorruptCache, match="bytes, sealed with"):
        SealedFile(tmp_path / "a.h5")


def test_errors_name_the_damaged_chunk_and_its_rows(tmp_path: Path) -> None:
    values = np.zeros((3 * CHUNK // 64, 64), dtype=np.uint8)
    write_sealed(
        tmp_path / "a.h5", {}, [column("views/x", values), column("labels", np.arange(3, dtype="<i8"))]
    )
    with h5py.File(tmp_path / "a.h5", "r") as file:
        place = file["views/x"].id.get_offset() + CHUNK + 640
    with (tmp_path / "a.h5").open("r+b") as handle:
        handle.seek(place)
        handle.write(b"\1")
    file = SealedFile(tmp_path / "a.h5")  # a column is checked when it is read
    assert file.column("labels").tolist() == [0, 1, 2]
    with pytest.raises(CorruptCache, match=r"a\.h5: chunk 1 of views/x \(rows 16384 to 32767\)") as caught:
        file.column("views/x")
    assert "featcache cache rm" in (caught.value.hint or "")
    with pytest.raises(CorruptCache):  # and is not taken for good the second time
        file.column("views/x")
    with pytest.raises(CorruptCache):
        file.verify()


def test_verify_reads_again(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    file = SealedFile(tmp_path / "a.h5")
    place = (tmp_path / "a.h5").read_bytes().index(file.column("row_hash").tobytes())
    with (tmp_path / "a.h5").open("r+b") as handle:
        handle.seek(place)
        handle.write(b"!!!!")
    with pytest.raises(CorruptCache, match="row_hash"):
        file.verify()


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"featcache cache 2\n", "has cache format 2; this is format 1"),
        (b"featcache cache 10", "has cache format 10"),
        (b"featcache tokens 1", "is no featcache cache file"),
        (b"\x89HDF\r\n\x1a\n", "is no featcache cache file"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, first: bytes, says: str) -> None:
    small(tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(first + whole[len(first) :])
    with pytest.raises(CacheError, match=says) as caught:
        SealedFile(tmp_path / "a.h5")
    assert not isinstance(caught.value, CorruptCache)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"f", b"featcache cache ", b"featcache cache 1\n", b"\0" * 9000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(CacheError):
        SealedFile(tmp_path / "a.h5")


def test_missing_file_and_missing_column(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.h5", tmp_path):
        with pytest.raises(CacheError, match="cannot read"):
            SealedFile(path)
    small(tmp_path / "a.h5")
    with pytest.raises(KeyError):
        SealedFile(tmp_path / "a.h5").column("views/other")


@pytest.mark.parametrize(
    "link",
    [
        h5py.SoftLink("/labels"),
        h5py.ExternalLink("/etc/hostname", "/"),
        h5py.ExternalLink("other.h5", "/views"),
    ],
)
@pytest.mark.parametrize("name", ["views/last-cls", "extra"])
def test_a_link_put_in_is_refused(tmp_path: Path, link: Any, name: str) -> None:
    small(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        if name in file:
            del file[name]
        file[name] = link
    with pytest.raises(CorruptCache):
        SealedFile(tmp_path / "a.h5")


def sealed_as(path: Path, **changes: Any) -> None:
    """Give the file another seal, with a checksum that holds: only sense can refuse it."""
    import xxhash

    whole = path.read_bytes()
    first, line, _ = whole.split(b"\n", 2)
    seal = json.loads(line)
    columns = seal["columns"] | changes.pop("columns", {})
    head = first + b"\n" + json.dumps(seal | changes | {"columns": columns}).encode() + b"\n"
    head += xxhash.xxh3_128_hexdigest(head).encode() + b"\n"
    path.write_bytes(head.ljust(seal["user_block"], b"\0") + whole[seal["user_block"] :])


LABELS = {"offset": 4096, "bytes": 40, "shape": [5], "dtype": "int64", "checksums": 4096}


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"labels": LABELS | {"offset": 1 << 60}}},
        {"columns": {"labels": LABELS | {"offset": -8}}},
        {"columns": {"labels": LABELS | {"checksums": -16}}},
        {"columns": {"labels": LABELS | {"shape": [1 << 40], "bytes": 8 << 40}}},
        {"columns": {"labels": LABELS | {"shape": [-1, -5]}}},
        {"columns": {"labels": LABELS | {"dtype": "object"}}},
        {"columns": {"labels": {}}},
        {"columns": {"labels": None}},
        {"columns": {"meta": LABELS}},
        {"length": "long"},
        {"user_block": -1},
        {"structure": None},
    ],
    ids=str,
)
def test_a_seal_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    small(tmp_path / "a.h5")
    sealed_as(tmp_path / "a.h5")
    assert len(read_all(tmp_path / "a.h5")) == 5  # the seal itself is taken
    sealed_as(tmp_path / "a.h5", **changes)
    with pytest.raises(CacheError):
        read_all(tmp_path / "a.h5")


# ---------------------------------------------------------------- publishing


def test_publishing_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    assert small(path) is True
    first = path.read_bytes()
    assert small(path, seed=1) is False
    assert path.read_bytes() == first
    assert small(path, seed=1, replace=True) is True
    assert path.read_bytes() != first
    assert read_all(path) and leftovers(tmp_path) == ["a.h5"]


def test_publishing_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")  # what exFAT and some network drives say

    monkeypatch.setattr("os.link", refuse)
    assert small(tmp_path / "a.h5") is True
    first = (tmp_path / "a.h5").read_bytes()
    assert small(tmp_path / "a.h5", seed=1) is False
    assert (tmp_path / "a.h5").read_bytes() == first and leftovers(tmp_path) == ["a.h5"]


def test_a_file_gets_its_description_and_its_name_after_its_rows(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="<f4").reshape(100, 10)
    write_sealed(tmp_path / "known.h5", {"of": "abc"}, [column("a", values)])
    file = write_unsealed(tmp_path / "unnamed.h5", {"of": "???"}, [column("a", values)])
    with pytest.raises(CacheError):
        SealedFile(file.temporary)  # without a seal it is no cache file
    assert file.publish(tmp_path / "named.h5", {"of": "abc"})
    assert (tmp_path / "named.h5").read_bytes() == (tmp_path / "known.h5").read_bytes()
    assert leftovers(tmp_path) == ["known.h5", "named.h5"]
    file = write_unsealed(tmp_path / "unnamed.h5", {"of": "???"}, [column("a", values)])
    with pytest.raises(CacheError, match="another length"):
        file.publish(tmp_path / "other.h5", {"of": "longer than announced"})
    assert leftovers(tmp_path) == ["known.h5", "named.h5"]


def test_the_disk_works_while_rows_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(sealed_writer, "AT_ONCE", 3000)
    monkeypatch.setattr(Disk, "begin_writing", lambda _, file, start, nbytes: begun.append((start, nbytes)))
    write_sealed(tmp_path / "a.h5", META, [column("a", np.zeros((1000, 4), "<f4"), 100)])
    offset = SealedFile(tmp_path / "a.h5")._entries["a"].offset
    assert begun == [(offset + 3200 * number, 3200) for number in range(5)]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_a_file_system_that_takes_no_advice_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(sealed_writer, "AT_ONCE", 3000)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    values = np.arange(4000, dtype="<f4").reshape(1000, 4)
    write_sealed(tmp_path / "a.h5", META, [column("a", values, 100)])
    np.testing.assert_array_equal(SealedFile(tmp_path / "a.h5").column("a"), values)


def test_write_sealed_makes_folders(tmp_path: Path) -> None:
    assert small(tmp_path / "new" / "folder" / "a.h5") is True
    assert read_all(tmp_path / "new" / "folder" / "a.h5")


def test_write_sealed_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot write .*a\.h5"):
        small(tmp_path / "file" / "a.h5")


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """A process that can call `small` and `column`; says `ready`, then waits for a line."""
    start = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from tests.cache.test_sealed_file import *\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """Let all of them go on at once; what they printed after that."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", process.stderr
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ends
    return [out for out, _ in ends]


def test_one_of_two_processes_publishes(tmp_path: Path) -> None:
    code = (
        "for i in range(40):\n"
        "    print(int(small(Path(sys.argv[1]) / f'{i}.h5', seed=int(sys.argv[2]))), end=' ')\n"
    )
    one, two = finish(*(child(code, tmp_path, seed) for seed in (1, 2)))
    assert [int(a) + int(b) for a, b in zip(one.split(), two.split(), strict=True)] == [1] * 40
    for seed in (1, 2):
        small(tmp_path / f"only-{seed}.h5", seed=seed)
    for number, won in enumerate(one.split()):
        seed = 1 if won == "1" else 2
        assert (tmp_path / f"{number}.h5").read_bytes() == (tmp_path / f"only-{seed}.h5").read_bytes()
    assert len(leftovers(tmp_path)) == 42


# ---------------------------------------------------------------- disks that are full


def test_file_size_limit_is_an_ordinary_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is to a process what a full disk is: wherever it strikes, it must not reach HDF5."""
    code = (
        "import resource\n"
        "path, values = Path(sys.argv[1]) / 'a.h5', np.zeros((40_000, 8), dtype='<f4')\n"
        "free = resource.RLIM_INFINITY\n"
        "for limit in (*range(0, 16_000, 250), 100_000, values.nbytes - 1, values.nbytes + 4096):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, free))\n"
        "    try: write_sealed(path, META, [column('views/a', values, 1000)])\n"
        "    except CacheError as error:\n"
        "        if error.hint is None or 'ulimit -f' not in error.hint: print(limit, error)\n"
        "    except Exception as error: print(limit, repr(error)[:80])\n"
        "    else: print('written under', limit)\n"
        "    if leftovers(path.parent): print(limit, leftovers(path.parent))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))\n"
        "print(write_sealed(path, META, [column('views/a', values, 1000)]))\n"
    )
    assert finish(child(code, tmp_path)) == ["True\n"]
    assert leftovers(tmp_path) == ["a.h5"]


def test_too_small_disk_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks() -> Iterator[np.ndarray]:
        pytest.fail("rows were asked for")
        yield np.zeros(0)

    free = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CacheError, match=r"a\.h5 needs .* has 300\.0 kB free") as caught:
        write_sealed(tmp_path / "new" / "a.h5", {}, [Column("a", (100_000,), "float32", chunks())])
    assert "free some space" in (caught.value.hint or "")
    assert leftovers(tmp_path) == []
    assert small(tmp_path / "a.h5") is True  # a small one fits


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "link"])
def test_full_disk_is_an_ordinary_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}", full)
        with pytest.raises(CacheError, match=r"cannot write .*a\.h5: No space left on device") as caught:
            small(tmp_path / "a.h5")
    assert "free some space" in (caught.value.hint or "")
    assert leftovers(tmp_path) == []
    assert small(tmp_path / "a.h5") is True
