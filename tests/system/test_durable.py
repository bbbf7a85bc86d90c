"""Reading and removing where others may have put links, pipes, devices and folders."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import CacheError
from featcache.plain_file import read_plain
from featcache.system.durable import is_plain, make_own_folder, remove_own_folder

pytestmark = pytest.mark.bad_input("files touched outside")

OURS = re.compile(r"plan\.json|block-\d+")


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """A test that waits for ever ends after five minutes."""

    def stop(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)  # what is tested takes a moment, but machines may be busy
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "link").symlink_to("a")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "link") == b"one"
    assert is_plain(tmp_path / "a") and not is_plain(tmp_path / "link")


def a_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(path))
    server.close()


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "socket": a_socket,
}


@pytest.mark.enable_socket
@pytest.mark.parametrize("kind", list(ODD))
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    ODD[kind](tmp_path / "a")
    with pytest.raises(OSError) as caught:
        read_plain(tmp_path / "a")
    assert caught.value.strerror
    assert not is_plain(tmp_path / "a")


def test_a_file_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(OSError, match="more than"):
        read_plain(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"12345")
    assert read_plain(tmp_path / "b", 5) == b"12345"
    with pytest.raises(OSError, match="more than"):
        read_plain(tmp_path / "b", 4)


def test_own_folders_are_no_links(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to("theirs")
    with pytest.raises(CacheError, match="is a link"):
        make_own_folder(tmp_path / "link")
    make_own_folder(tmp_path / "own" / "deep")
    assert (tmp_path / "own" / "deep").is_dir()


def test_removing_a_link_leaves_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "plan.json").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("theirs")
    remove_own_folder(tmp_path / "link", OURS)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "theirs" / "plan.json").read_bytes() == b"precious"


def test_only_what_was_made_here_is_removed(tmp_path: Path) -> None:
    folder, precious = tmp_path / "own", tmp_path / "precious"
    folder.mkdir()
    precious.write_bytes(b"precious")
    (folder / "plan.json").write_bytes(b"{}")
    (folder / "block-1").symlink_to(precious)
    remove_own_folder(folder, OURS)
    assert not folder.exists() and precious.read_bytes() == b"precious"
    remove_own_folder(folder, OURS)  # it is gone: nothing to do

    (folder / "block-2").mkdir(parents=True)  # a folder with the name of a file
    (folder / "block-2" / "inside").write_bytes(b"precious")
    (folder / "letter.txt").write_bytes(b"precious")
    (folder / "plan.json").write_bytes(b"{}")
    with pytest.raises(CacheError, match=r"holds block-2, letter.txt, which featcache did not make"):
        remove_own_folder(folder, OURS)
    assert sorted(path.name for path in folder.rglob("*")) == ["block-2", "inside", "letter.txt"]
