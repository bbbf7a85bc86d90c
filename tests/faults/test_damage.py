"""Damaged, shortened, extended and forged files are refused without a crash, a hang or code that runs."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.cache.seal import CHUNK
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.staging import Staging
from featcache.errors import CacheError, CorruptCache
from featcache.system import durable as files
from tests.cache.test_sealed_file import sealed_as, small
from tests.faults.test_power import PLAN, unit, work
from tests.support import fault_counts as faults
from tests.support.disk import Quick, plugged_in


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with columns of several checksums each."""
    path = tmp_path_factory.mktemp("large") / "a.h5"
    draw = np.random.default_rng(0)
    columns = [
        Column(f"views/{name}", (rows, 512), "uint8", [draw.integers(0, 256, (rows, 512), dtype=np.uint8)])
        for name, rows in (("a", 5 * CHUNK // 1024), ("b", 17 * CHUNK // 512))
    ]
    write_sealed(path, {"format": "featcache"}, columns)
    return path.read_bytes()


def read_all(path: Path) -> list[bytes]:
    """Every column of a sealed file, checked."""
    file = SealedFile(path)
    return [file.column(name).tobytes() for name in file.names]


@pytest.mark.parametrize("flips", [60, pytest.param(3000, marks=pytest.mark.slow)], ids=["some", "many"])
def test_a_flipped_bit_is_refused_and_its_chunk_named(tmp_path: Path, large: bytes, flips: int) -> None:
    path, draw = tmp_path / "a.h5", random.Random(flips)
    path.write_bytes(large)
    entries = json.loads(large.split(b"\n", 2)[1])["columns"]
    with path.open("r+b", buffering=0) as file:
        for _ in range(flips):
            place = draw.randrange(len(large))
            bad = bytes([large[place] ^ (1 << draw.randrange(8))])
            file.seek(place)
            file.write(bad)
            said = r"the seal|outside its columns|no featcache cache file|cache format"
            for name, entry in entries.items():
                if entry["offset"] <= place < entry["offset"] + entry["bytes"]:
                    number = (place - entry["offset"]) // CHUNK
                    row = (place - entry["offset"]) // entry["shape"][-1] if name != "meta" else None
                    said = rf"chunk {number} of {name} \(rows \d+ to \d+\) is damaged"
            faults.COUNT["flips"] += 1
            with pytest.raises(CacheError, match=said) as caught:
                read_all(path)
                faults.require(False, "wrong", f"the change of byte {place} was not noticed")
            assert str(path) in caught.value.what
            if said.startswith("chunk") and row is not None:
                first, last = map(int, re.findall(r"rows (\d+) to (\d+)", caught.value.what)[0])
                assert first <= row <= last
            file.seek(place)
            file.write(large[place : place + 1])
    assert path.read_bytes() == large and read_all(path)


@pytest.mark.parametrize("length", [0, 1, 511, 4096, 2 * CHUNK, -1])
def test_a_shorter_or_longer_file_is_refused(tmp_path: Path, large: bytes, length: int) -> None:
    path = tmp_path / "a.h5"
    for bad in (large[:length], large + large[: max(length, 1)]):
        path.write_bytes(bad)
        with pytest.raises(CacheError, match=re.escape(str(path))):
            read_all(path)


def test_a_file_that_becomes_shorter_while_it_is_open_is_refused(tmp_path: Path, large: bytes) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(large)
    file = SealedFile(path)
    os.truncate(path, 9000)
    with pytest.raises(CorruptCache, match=r"a\.h5 cannot be mapped"):
        file.column("views/b")


def test_a_pipe_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="it is no file"):
        SealedFile(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"columns": ' * 50_000, b"9" * 10_000, b"\xff\xfe", b"null", b"[]", b"{}"],
    ids=lambda line: repr(line[:12]),
)
def test_a_hostile_seal_is_refused(tmp_path: Path, line: bytes) -> None:
    import xxhash

    head = b"featcache cache 1\n" + line + b"\n"
    (tmp_path / "a.h5").write_bytes(head + xxhash.xxh3_128_hexdigest(head).encode() + b"\n" + bytes(9000))
    with pytest.raises(CorruptCache, match="the seal is damaged"):
        SealedFile(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[1]", b"7", b"{"], ids=lambda c: repr(c[:3]))
def test_a_hostile_description_is_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("featcache.cache.sealed_writer.json.dumps", Forged(content))
        write_sealed(tmp_path / "a.h5", {}, [Column("a", (1,), "uint8", [np.zeros(1, np.uint8)])])
    with pytest.raises(CorruptCache, match="does not hold what its description says"):
        SealedFile(tmp_path / "a.h5")


class Forged:
    """`json.dumps`, except that the description becomes `content`."""

    def __init__(self, content: bytes) -> None:
        self.content, self.dumps = content, json.dumps

    def __call__(self, value: Any, **options: Any) -> Any:
        return self.dumps(value, **options) if value else self

    def encode(self, _: str) -> bytes:
        return self.content


def test_overlapping_columns_are_refused(tmp_path: Path) -> None:
    small(tmp_path / "a.h5")
    seal = json.loads((tmp_path / "a.h5").read_bytes().split(b"\n", 2)[1])
    labels = seal["columns"]["labels"]
    for changed in (
        {**labels, "offset": seal["columns"]["row_hash"]["offset"]},
        {**labels, "offset": 0},
        {**labels, "shape": [5.0]},
        {**labels, "shape": [True, 5]},
        {**labels, "bytes": 48, "shape": [6]},
    ):
        sealed_as(tmp_path / "a.h5", columns={"labels": changed})
        with pytest.raises(CorruptCache):
            SealedFile(tmp_path / "a.h5")


def test_links_are_refused_and_reading_does_not_load_hdf5(tmp_path: Path) -> None:
    """A file with links is refused, and a sealed file is read without the HDF5 library."""
    small(tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["labels"] = h5py.ExternalLink("/etc/hostname", "/")
        file["views/last-cls"] = h5py.SoftLink("/labels")
        layout = h5py.VirtualLayout(shape=(5,), dtype="i8")
        layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(5,))
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(CacheError, match="no featcache cache file"):
        SealedFile(tmp_path / "evil.h5")
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from featcache.cache.sealed_file import SealedFile\n"
        f"print(SealedFile(__import__('pathlib').Path({str(tmp_path / 'a.h5')!r})).column('labels').tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[0, 1, 2, 3, 4]\n" and (tmp_path / "a.h5").read_bytes() == whole


# ---------------------------------------------------------------- disks that refuse


class Refusing(Quick):
    """A disk on which the n-th operation of one kind, and each one after it, fails with an error."""

    def __init__(self, what: str, number: int, code: int) -> None:
        self.what, self.left, self.code = what, number, code

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "what"):
            self.left -= 1
            if self.left < 0:
                raise OSError(self.code, os.strerror(self.code))
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("what", ["open", "fsync", "fsync_folder", "replace", "link", "reserve", "mkdir"])
def test_an_error_of_any_operation_is_reported_and_loses_nothing(
    tmp_path: Path, what: str, code: int
) -> None:
    with plugged_in(Quick()):
        (tmp_path / "whole").mkdir()
        work(tmp_path / "whole")
    whole = next((tmp_path / "whole").rglob("*.h5")).read_bytes()
    failed = 0
    for number in range(40):
        root = tmp_path / str(number)
        root.mkdir()
        acknowledged: set[int] = set()
        with plugged_in(Refusing(what, number, code)):
            try:
                work(root, acknowledged.add)
                break
            except CacheError as error:
                failed += 1
                assert os.strerror(code) in error.what and error.hint
                full = code in (errno.ENOSPC, errno.EDQUOT)
                assert ("free some space" in error.hint) == full
        with plugged_in(Quick()):
            assert not list(root.rglob(".tmp-*")), "an unfinished file was left"
            folder = next(root.rglob("*.partial"), None)
            kept = Staging(folder, PLAN).committed() if folder else set()
            sealed = list(root.rglob("*.h5"))
            faults.require(bool(sealed) or kept >= acknowledged, "lost", f"{acknowledged - kept}")
            work(root)
        assert next(root.rglob("*.h5")).read_bytes() == whole
    assert failed >= {"link": 1, "reserve": 1, "mkdir": 4, "replace": 4}.get(what, 5)


def test_a_unit_that_cannot_be_read_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(tmp_path / "a.partial", PLAN)
    staging.commit(0, unit(0))

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("featcache.cache.staging.read_plain", refuse)
        for act in (staging.committed, lambda: staging.read(0)):
            with pytest.raises(CacheError, match=r"cannot read .*block-00000000.*Input/output error"):
                act()
    assert staging.committed() == {0}


def test_make_folder_fsyncs_up_to_a_folder_without_write_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files.Disk, "fsync_folder", lambda _, folder: synced.append(folder))
    allowed = [tmp_path, tmp_path / "a"]
    monkeypatch.setattr(os, "access", lambda path, mode: path in allowed)
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path / "a", tmp_path]
    assert (tmp_path / "a" / "b").is_dir()


def test_fsync_folder_accepts_file_systems_that_cannot_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errors.pop(), "no")

    errors = [errno.EIO, errno.EINVAL, errno.ENOTSUP]
    monkeypatch.setattr(os, "fsync", fsync)
    files.fsync_folder(tmp_path)
    files.fsync_folder(tmp_path)
    with pytest.raises(OSError, match="no"):
        files.fsync_folder(tmp_path)
