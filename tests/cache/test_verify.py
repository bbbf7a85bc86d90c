"""Checks of cache files: what is wrong is named, and nothing is raised."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.seal import CHUNK
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.verify import verify
from featcache.errors import CorruptCache
from featcache.fingerprint import fingerprint as document_hash
from tests.support.cache_files import seal


def flip(path: Path, column: str, byte: int) -> None:
    with h5py.File(path) as file:
        place = file[column].id.get_offset() + byte
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def big(folder: Path) -> Path:
    """A file whose view takes three checksummed blocks of 256 rows each, less the last."""
    base = CacheFile(seal(folder / "base"))
    rows, width = 600, CHUNK // 256 // 4
    x = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    hashes = np.random.default_rng(1).integers(0, 256, (rows, 32), dtype=np.uint8)
    labels = np.zeros(rows, np.int64)
    document = base.document.to_json() | {"views": ["last/cls"]}
    document["rows"] = {"count": rows, "chain": hashlib.sha256(hashes.tobytes()).hexdigest()}
    document["labels"] = document["labels"] | {"chain": hashlib.sha256(labels.tobytes()).hexdigest()}
    fingerprint = document_hash(document)
    path = folder / "a" / "b" / f"train-{fingerprint[:12]}.h5"
    columns = [
        Column("views/last-cls", x.shape, "float32", [x]),
        Column("labels", (rows,), "int64", [labels]),
        Column("row_hash", hashes.shape, "uint8", [hashes]),
        Column("truncated", (rows,), "uint8", [np.zeros(rows, np.uint8)]),
    ]
    meta = {"fingerprint": fingerprint, "split": "train", "document": document}
    assert write_sealed(path, meta, columns)
    return path


def test_verify_accepts_a_good_file(tmp_path: Path) -> None:
    for path in (seal(tmp_path), big(tmp_path)):
        steps: list[tuple[int, int]] = []
        verdict = verify(path, lambda progress, steps=steps: steps.append((progress.done, progress.total)))
        assert verdict.ok and verdict.damage == () and verdict.bytes == path.stat().st_size
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[0][0] == 0 < steps[-1][0] <= steps[-1][1] == path.stat().st_size


def test_verify_names_damaged_chunks_with_their_rows(tmp_path: Path) -> None:
    path = big(tmp_path)
    flip(path, "views/last-cls", CHUNK + 5)
    flip(path, "row_hash", 0)
    verdict = verify(path)
    assert not verdict.ok and len(verdict.damage) == 2
    features, hashes = sorted(verdict.damage, key=lambda text: "row_hash" in text)
    assert str(path) in features and "chunk 1 of views/last-cls (rows 256 to 511)" in features
    assert "chunk 0 of row_hash (rows 0 to 599)" in hashes


@given(place=st.integers(0, 2**30), bit=st.integers(0, 7))
def test_verify_finds_any_flipped_bit(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, sealed: list[Path]
) -> None:
    content = bytearray(sealed[0].read_bytes())
    content[place % len(content)] ^= 1 << bit
    bad = tmp_path_factory.mktemp("bad") / sealed[0].name
    bad.write_bytes(content)
    assert not verify(bad).ok


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [seal(tmp_path_factory.mktemp("sealed"))]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    """Opened for reading, it would wait for a writer for ever."""
    path.unlink()
    os.mkfifo(path)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.h5")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def renamed(path: Path) -> None:
    os.replace(path.with_name("other.h5"), path)


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (truncated, r"has \d+ bytes, sealed with \d+"),
    (extended, r"has \d+ bytes, sealed with \d+"),
    (emptied, "is no featcache cache file"),
    (foreign, "is no featcache cache file"),
    (gone, "No such file"),
    (folder, "is no cache file but a folder"),
    (pipe, "is no cache file but a device or a pipe"),
    (link_to_nowhere, "No such file"),
    (link_to_itself, "symbolic links"),
    (renamed, "name and fingerprint are not those"),
]


@pytest.mark.parametrize(("spoil", "words"), WRONG, ids=lambda part: getattr(part, "__name__", ""))
def test_verify_returns_the_damage_and_raises_nothing(
    spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = seal(tmp_path)
    other = seal(tmp_path, prompt="q")
    os.replace(other, path.with_name("other.h5"))
    spoil(path)
    verdict = verify(path)
    assert not verdict.ok
    assert str(path) in verdict.damage[0] and re.search(words, verdict.damage[0])


def test_verify_reports_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = seal(tmp_path)
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("featcache.cache.sealed_file.open", refuse, raising=False)
    else:
        path.chmod(0)
    assert verify(path).damage == (f"cannot read {path}: Permission denied",)


def test_verify_follows_a_link(tmp_path: Path) -> None:
    path = seal(tmp_path)
    os.replace(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert verify(path).ok


@pytest.mark.parametrize(
    "change",
    [
        {"document": {}}, {"fingerprint": None}, {"split": 3}, {"document": None},
        {"document": {"views": ["last/max"]}}, {"document": {"rows": {"count": "2"}}},
        {"document": {"encoder": 3}}, {"document": {"labels": {}}}, {"document": {"views": 5}},
    ],
    ids=str,
)  # fmt: skip
def test_verify_finds_contradictions_with_the_description(change: dict[str, object], tmp_path: Path) -> None:
    """All checksums hold; a part of the description is missing, which must not end in a KeyError."""
    path = seal(tmp_path)
    good = CacheFile(path).sealed
    meta = good.description.to_json()
    for key, value in change.items():
        meta[key] = {**meta[key], **value} if isinstance(value, dict) and value else value
    rewrite(path, meta)
    verdict = verify(path)
    assert not verdict.ok and "does not hold what its description says" in verdict.damage[0]
    assert list(Cache(tmp_path).files()) == []  # no reader stumbles over it


@pytest.mark.parametrize("part", ["rows", "labels"])
def test_verify_finds_rows_of_another_fingerprint(part: str, tmp_path: Path) -> None:
    path = seal(tmp_path)
    meta = CacheFile(path).sealed.description.to_json()
    meta["document"][part]["chain"] = "0" * 64
    meta["fingerprint"] = document_hash(meta["document"])
    path = rewrite(path, meta, path.with_name(f"train-{meta['fingerprint'][:12]}.h5"))
    assert verify(path).damage == (f"{path}: its {part} are not those of its fingerprint",)


def rewrite(path: Path, meta: dict[str, object], to: Path | None = None) -> Path:
    """The same columns, sealed again with another description."""
    old = CacheFile(path).sealed
    columns = []
    for name in old.names:
        if name != "meta":
            values = np.asarray(old.column(name))
            columns.append(Column(name, values.shape, values.dtype.name, [values]))
    path.unlink()
    assert write_sealed(to or path, meta, columns)
    return to or path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("row_hash", np.zeros((1, 32), np.uint8)), ("row_hash", np.zeros((2, 31), np.uint8)),
        ("labels", np.zeros(3, np.int64)), ("labels", np.zeros((2, 7), np.uint8)),
        ("truncated", np.zeros(1, np.uint8)), ("views/last-cls", np.zeros(2, np.float16)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.shape),
)  # fmt: skip
def test_columns_that_do_not_fit_the_description_are_refused(
    name: str, values: np.ndarray, tmp_path: Path
) -> None:
    path = seal(tmp_path)
    old = CacheFile(path).sealed
    arrays = {one: np.asarray(old.column(one)) for one in old.names if one != "meta"} | {name: values}
    columns = [Column(one, array.shape, array.dtype.name, [array]) for one, array in arrays.items()]
    write_sealed(path, old.description.to_json(), columns, replace=True)
    with pytest.raises(CorruptCache, match=rf"column {name} is .* for 2 rows"):
        CacheFile(path)


def test_labels_without_a_name_are_refused(tmp_path: Path) -> None:
    path = seal(tmp_path)
    old = CacheFile(path).sealed
    arrays = {one: np.asarray(old.column(one)) for one in old.names if one != "meta"}
    arrays["labels"] = np.array([0, 9])
    columns = [Column(one, array.shape, array.dtype.name, [array]) for one, array in arrays.items()]
    write_sealed(path, old.description.to_json(), columns, replace=True)
    with pytest.raises(CorruptCache, match="labels that are none of its"):
        CacheFile(path).features("last/cls")
