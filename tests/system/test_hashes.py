"""`current_hash` reads bytes again when, and only when, the file may hold others than before."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from featcache.system import hashes
from featcache.system.hashes import changed_files, current_hash


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once."""
    monkeypatch.setattr(hashes, "SETTLED", 0.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes are read."""
    found: list[str] = []
    digest = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        found.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[call-overload]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


@pytest.mark.usefixtures("settled")
def test_the_bytes_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    assert [current_hash(tmp_path / "a") for _ in range(3)] == [sha256(b"one")] * 3
    assert reads == ["a"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["written", "replaced", "appended", "linked"])
def test_a_change_is_seen_though_size_and_time_stay(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    before = path.stat()
    assert current_hash(path) == sha256(b"one")
    wanted = b"one+" if how == "appended" else b"two"
    if how == "replaced":
        other.replace(path)
    elif how == "linked":
        path.unlink()
        path.symlink_to(other)
    else:
        path.write_bytes(wanted)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and archives do
    assert current_hash(path) == sha256(wanted)


def test_a_file_that_has_just_been_written_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    current_hash(tmp_path / "a")
    current_hash(tmp_path / "a")
    assert reads == ["a", "a"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        current_hash(tmp_path / "a")


def test_changed_files_names_what_differs() -> None:
    assert changed_files({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == "b, c, d"
    assert changed_files({"a": "1"}, {"a": "1"}) == ""
