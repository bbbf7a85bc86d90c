"""The cache of a folder: names, order, removal, and which file answers a request."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.cache.cache import Cache, slug
from featcache.cache.catalog import (
    CacheFile,
    add_request,
)
from featcache.cache.record import Provenance
from featcache.errors import CacheError
from tests.support.cache_files import VIEWS, seal
from tests.support.documents import make_request


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lansinuote/ChnSentiCorp", "lansinuote--ChnSentiCorp"),
        ("bert-base-chinese", "bert-base-chinese"),
        ("./data/reviews/", "reviews"),
        ("/home/me/my reviews", "my_reviews"),
        ("~/models/bert", "bert"),
        ("a/b/c", "c"),
        (r"C:\data\reviews", "reviews"),
        ("评论/酒店", "评论--酒店"),
        ("../..", "unnamed"),
        ("", "unnamed"),
        ("some/data:zh", "some--data_zh"),
    ],
)
def test_slug_and_path_of_a_cache_file(name: str, folder: str, tmp_path: Path) -> None:
    assert slug(name) == folder
    path = Cache(tmp_path).path(name, name, "train", "0123456789abcdef" * 4)
    assert path == tmp_path / folder / folder / "train-0123456789ab.h5"


def test_files_are_sorted_newest_first_without_damaged_ones(tmp_path: Path) -> None:
    old, new = seal(tmp_path, age=100), seal(tmp_path, prompt="q", age=200)
    test = seal(tmp_path, "test", age=300)
    bad = seal(tmp_path, prompt="bad", age=400)
    bad.write_bytes(bad.read_bytes()[:-1])
    assert [file.path for file in Cache(tmp_path).files("train")] == [new, old]
    assert [file.path for file in Cache(tmp_path).files()] == [test, new, old]
    assert Cache(tmp_path).paths() == [bad, test, new, old]
    writing = new.with_name(f".tmp-0123456789ab-{new.name}")  # another process is about to publish it
    shutil.copy(new, writing)
    assert writing not in [*Cache(tmp_path).paths(), *(file.path for file in Cache(tmp_path).files())]
    assert list(Cache(tmp_path / "nowhere").files()) == [] and Cache(tmp_path / "nowhere").paths() == []


def test_files_opens_one_file_at_a_time(tmp_path: Path) -> None:
    """A process may have 1,024 files open, on a Mac 256; what it cannot open must not look like a miss."""
    resource = pytest.importorskip("resource")
    path = seal(tmp_path)
    for number in range(100):
        shutil.copy(path, path.with_name(f"train-{number:012x}.h5"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {
        int(name) for name in os.listdir("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd")
    }
    most = [number for number in range(1000) if number not in used][50]  # room for 50 more
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        found = sum(1 for _ in Cache(tmp_path).files("train"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == 101


def test_remove_takes_record_lock_and_unfinished_work(tmp_path: Path) -> None:
    path, other = seal(tmp_path), seal(tmp_path, prompt="q")
    add_request(CacheFile(path), make_request(), Provenance(seconds=1))
    add_request(CacheFile(other), make_request())
    for suffix in (".lock", ".holder"):
        path.with_suffix(suffix).write_bytes(b"")
    path.with_suffix(".partial").mkdir()
    (path.with_suffix(".partial") / "plan.json").write_bytes(b"{}")
    Cache(tmp_path).remove(path)
    assert set(path.parent.iterdir()) == {other, other.with_suffix(".json"), other.with_suffix(".lock")}
    Cache(tmp_path).remove(path)  # and again is no error


def test_remove_follows_no_link(tmp_path: Path) -> None:
    """`rm` removes symbolic links to another disk, not the files that they lead to."""
    path = seal(tmp_path)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "plan.json").write_bytes(b"{}")
    os.replace(path, tmp_path / "features")
    path.symlink_to(tmp_path / "features")
    path.with_suffix(".partial").symlink_to(tmp_path / "blocks")
    Cache(tmp_path).remove(path)
    assert list(path.parent.iterdir()) == []
    assert (tmp_path / "features").is_file() and (tmp_path / "blocks" / "plan.json").is_file()


def test_remove_takes_temporary_files_of_the_same_name(tmp_path: Path) -> None:
    path, other = seal(tmp_path), seal(tmp_path, prompt="q")
    path.with_name(f".tmp-0123456789ab-{path.name}").write_bytes(b"half")
    theirs = path.with_name(f".tmp-0123456789ab-{other.name}")
    theirs.write_bytes(b"half")
    Cache(tmp_path).remove(path)
    assert set(path.parent.iterdir()) == {other, theirs}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_folders_and_pipes_are_refused_and_left_out(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = seal(tmp_path)
    odd = path.with_name("train-000000000000.h5")
    make(odd)
    with pytest.raises(CacheError, match="is no cache file but a"):
        CacheFile(odd)
    assert [file.path for file in Cache(tmp_path).files()] == [path]
    with pytest.raises(CacheError, match=r"cannot read .*No such file"):
        CacheFile(path.with_name("train-000000000001.h5"))


def test_find_returns_the_file_that_answered_the_request(tmp_path: Path) -> None:
    path = seal(tmp_path)
    views = {view: view for view in VIEWS} | {"9/mean": "-4/mean"}
    for asked in (make_request(), make_request(max_length=9), make_request()):
        add_request(CacheFile(path), replace(asked, views=views), Provenance(seconds=2.5))
    assert len(CacheFile(path).record.requests) == 2
    assert CacheFile(path).record.made.to_json() == {"seconds": 2.5}
    cache = Cache(tmp_path)
    for wanted in ({"last/cls"}, {"9/mean", "last/cls"}, set()):
        found = cache.find(make_request(max_length=9), wanted)
        assert found is not None and found.path == path
    assert cache.find(make_request(), {"last/max"}) is None
    assert cache.find(make_request(max_length=8), {"last/cls"}) is None


def test_nearest_returns_the_file_with_the_fewest_differences(tmp_path: Path) -> None:
    far, near = seal(tmp_path, age=200), seal(tmp_path, prompt="q", age=100)
    views = {"last/cls": "last/cls"}
    add_request(CacheFile(far), make_request(prompt="x", max_length=9, views=views))
    add_request(CacheFile(near), make_request(prompt="x", views=views))
    found = Cache(tmp_path).nearest(make_request(prompt="y"))
    assert found is not None and found[0].path == near
    assert [difference.field for difference in found[1]] == ["encoder.prompt"]
    assert Cache(tmp_path / "nowhere").nearest(make_request()) is None


def test_open_of_a_path_is_a_folder(tmp_path: Path) -> None:
    assert Cache.open("some/folder").folder == Path("some/folder")
    assert Cache.open(tmp_path).folder == tmp_path
