"""A cache in a store: an S3 server on loopback, memory, and a folder by URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.record import read_record, record_path
from featcache.cache.remote.eviction import evict
from featcache.cache.remote.listing import Listing
from featcache.cache.sealed_file import SealedFile
from featcache.cache.shards import shard_paths
from featcache.cache.verify import verify
from featcache.errors import CacheError, CorruptCache, UsageError
from featcache.extraction.api import Extracted, extract_splits, find_features
from featcache.settings_file import to_toml
from featcache.system import downloads
from featcache.system.durable import write_file
from featcache.system.lock import locked
from featcache.system.stores import Remote, opened
from featcache_cli.main import main
from tests.support.documents import make_request
from tests.support.extraction import Case, counted, write_case
from tests.support.machines import Machine, entry, make, make_other, make_shards, pushed
from tests.support.stock import one_thread, sentence


def test_web_server_and_runs_in_a_store_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a web server keeps no cache"):
        Cache.open("https://host/cache")
    assert main(["compare", "--reports-dir", "s3://bucket/reports"]) == UsageError.exit_code
    assert "runs are kept in a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- the cache ------------------------------------------------------------------------------------


def test_find_on_another_machine_and_fetch_once(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    cache = there.cache()
    found = cache.find(make_request(source={"asked": 1}), {"last/cls"})
    assert found is not None and not found.path.exists()
    assert (found.split, found.rows, found.views, found.truncated, found.tokens) == (
        "train", 50, ("last/cls",), 0, 150,
    )  # fmt: skip
    assert not found.path.exists()  # none of that needed the file
    x = found.features("last/cls").x
    assert np.array_equal(x, SealedFile(made).column("views/last-cls"))
    assert found.path.read_bytes() == made.read_bytes()
    entry(there, found.path).remove()  # what is here is not fetched again
    again = cache.file(found.path).features("last/cls")
    assert np.array_equal(again.x, x)
    assert list(cache.files("test")) == []


def test_records_of_two_machines_are_merged(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    theirs = there.cache()
    (path,) = theirs.paths()
    add_request(theirs.file(path), make_request(source={"asked": "there"}))
    theirs.push(path)
    add_request(CacheFile(made), make_request(source={"asked": "here"}))
    here.cache().push(made)
    (file,) = there.cache().files()
    record = read_record(path, file.fingerprint)
    assert {one.source["asked"] for one in record.requests} == {1, "here", "there"}


def test_a_damaged_file_of_the_store_is_not_published(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    content = bytearray(made.read_bytes())
    at = SealedFile(made)._entries["views/last-cls"].offset
    content[at + 5] ^= 1
    entry(here, made).write(bytes(content))
    cache = there.cache()
    (file,) = cache.files()
    with pytest.raises(CorruptCache, match=r"(?s)store|bucket|memory.*is damaged.*fetched 2 times") as caught:
        file.features("last/cls")
    assert "/data/model/" in str(caught.value) and "there" not in caught.value.what
    assert not file.path.exists() and not list(file.path.parent.glob("*.h5"))
    assert not verify(file.path, open_file=cache.file).ok
    entry(here, made).write(bytes(content[:-100]))  # now not even its seal holds
    cache = there.cache()
    assert list(cache.files()) == []
    (error,) = cache.damaged("train")
    assert isinstance(error, CorruptCache) and "bytes, sealed with" in error.what


def test_fetch_is_repeated_once(here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(here, 1)
    (file,) = there.cache().files()
    get, tries = Remote.get, []

    def bad_once(self: Remote, target: Path) -> None:
        get(self, target)
        tries.append(target)
        if len(tries) == 1:
            target.write_bytes(target.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(Remote, "get", bad_once)
    assert file.features("last/cls").x.shape == (50, 8)
    assert len(tries) == 2


def test_a_damaged_copy_is_fetched_again(here: Machine, there: Machine) -> None:
    pushed(here, 1)
    cache = there.cache()
    (file,) = cache.files()
    x = np.array(file.features("last/cls").x)
    content = file.path.read_bytes()
    for damaged in (content[:-1], b"", content.replace(content[5000:5004], b"abcd")):
        file.path.write_bytes(damaged)
        (again,) = cache.files()
        assert np.array_equal(again.features("last/cls").x, x)
        assert file.path.read_bytes() == content


def test_push_keeps_the_file_of_the_first_machine(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    cache = there.cache()
    theirs = make(cache, seed=1)
    same = theirs.read_bytes() == made.read_bytes()
    assert same
    changed = make_other(theirs)
    cache.push(theirs)
    assert entry(here, made).read() == made.read_bytes() == theirs.read_bytes() != changed
    changed = make_other(theirs)
    cache.push(theirs, replace=True)  # as --force does
    assert entry(here, made).read() == changed
    cache = here.cache()
    (path,) = cache.paths()
    assert not path.exists()  # what was replaced there is not kept here
    assert np.array_equal(
        cache.file(path).features("last/cls").x, SealedFile(theirs).column("views/last-cls")
    )


def test_shards_are_pushed_and_fetched_one_by_one(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = here.cache()
    made = make_shards(ours)
    names = sorted(path.name for path in shard_paths(made))
    assert len(names) > 2
    ours.push(made)
    expected = np.asarray(ours.file(made).features("last/cls").x)
    cache = there.cache()
    folder = cache.folder
    (file,) = cache.files()
    assert file.tokens == 1800 and not list(folder.rglob("*.h5"))
    x = file.sealed.column("views/last-cls")
    assert np.array_equal(x[-3:], expected[-3:])
    assert [path.name for path in folder.rglob("*.shard-*")] == names[-1:]
    assert np.array_equal(np.asarray(file.features("last/cls").x), expected)
    for content in (b"", SealedFile(made).path.read_bytes()):  # a copy that went bad
        file.path.with_name(names[0]).write_bytes(content)
        (again,) = cache.files()
        assert np.array_equal(np.asarray(again.features("last/cls").x), expected)
    assert verify(file.path, open_file=cache.file).ok
    with monkeypatch.context() as patch:  # shards go like any file, and are fetched again
        patch.setattr(downloads, "GRACE", -1.0)
        patch.setenv(downloads.SIZE, "0")
        assert len(evict()) == len(names) + 1 and not list(folder.rglob("*.h5"))
    (again,) = cache.files()
    assert np.array_equal(np.asarray(again.features("last/cls").x), expected)
    cache.remove(file.path)
    assert not opened(there.url).listing() and not list(folder.rglob("*.h5"))


def test_push_sends_the_manifest_last_and_no_shard_twice(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_shards(here.cache())
    put, sent = Remote.put, []

    def third_fails(self: Remote, source: Path, *, replace: bool = False) -> bool:
        sent.append(source.name)
        if len(sent) == 3:
            raise CacheError("the line is cut")
        return put(self, source, replace=replace)

    monkeypatch.setattr(Remote, "put", third_fails)
    with pytest.raises(CacheError, match="the line is cut"):
        here.cache().push(made)
    assert list(there.cache().files()) == []
    here.cache().push(made)
    names = [path.name for path in shard_paths(made)]
    assert [name for name in sent if name.endswith(".h5")] == [*names[:3], *names[2:], made.name]
    (file,) = there.cache().files()
    assert np.isfinite(np.asarray(file.features("last/cls").x)).all()


def test_remove_takes_a_file_from_every_machine(here: Machine, there: Machine) -> None:
    first, second = pushed(here, 1, 2)
    cache = there.cache()
    for file in cache.files():
        file.features("last/cls")
    assert len(list(cache.folder.rglob("*.h5"))) == 2
    here.cache().remove(first)
    assert entry(here, first).info() is None and entry(here, record_path(first)).info() is None
    cache = there.cache()
    assert [path.name for path in cache.paths()] == [second.name]
    assert [path.name for path in cache.folder.rglob("*.h5")] == [second.name]


def test_refresh_does_not_believe_an_empty_listing(here: Machine, there: Machine) -> None:
    pushed(here, 1)
    (file,) = there.cache().files()
    file.features("last/cls")
    there_too = opened(there.url)
    for name in there_too.listing():
        there_too.child(name).remove()
    assert [path.name for path in there.cache().paths()] == [file.path.name] and file.path.exists()


def test_other_names_in_the_store_are_ignored(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    content = made.read_bytes()
    cache = opened(here.url)
    for name in ("a/b/c/train-0123456789ab.h5", "train-0123456789ab.h5", "a/b/.tmp-1-x.h5", "a/b/x.txt"):
        cache.child(name).write(content)
    assert [path.name for path in there.cache().paths()] == [made.name]


def test_fetch_refuses_a_file_under_another_name(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1)
    opened(here.url).child("data/model/train-0123456789ab.h5").write(made.read_bytes())
    files = {file.path.name: file for file in there.cache().files()}
    with pytest.raises(CorruptCache, match="another cache file"):
        files["train-0123456789ab.h5"].features("last/cls")


def test_evict_removes_the_least_recently_used_that_the_store_has(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(here, 1, 2, 3, rows=500)
    monkeypatch.setattr(downloads, "GRACE", -1.0)
    cache = there.cache()
    own = make(cache, seed=9, rows=500)  # not brought yet
    size = own.stat().st_size
    monkeypatch.setenv(downloads.SIZE, f"{int(3.5 * size)}B")
    files = {file.record.requests[0].source["asked"]: file for file in cache.files()}
    for number, seed in enumerate((1, 2, 1, 3)):
        files[seed] = cache.file(files[seed].path)
        files[seed].features("last/cls")
        for path in (own, *(file.path for file in files.values())):  # one used before the other
            if path.exists():
                stat = path.stat()
                os.utime(path, (stat.st_atime - 10, stat.st_mtime))
        assert number < 3 or not files[2].path.exists()
    assert own.exists() and files[1].path.exists() and files[3].path.exists()
    monkeypatch.setenv(downloads.SIZE, "0")
    with locked(files[1].path):
        evict()
        assert files[1].path.exists() and own.exists() and not files[3].path.exists()
    assert np.isfinite(cache.file(files[3].path).features("last/cls").x).all()  # it is fetched again


FETCHES = """
import sys
from featcache.cache.cache import Cache

(file,) = Cache.open(sys.argv[1]).files()
print(float(file.features("last/cls").x.sum()))
"""


@pytest.mark.parametrize("url", [pytest.param("file")], indirect=True)
def test_processes_that_fetch_at_once_fetch_once(here: Machine, there: Machine) -> None:
    (made,) = pushed(here, 1, rows=2000)
    there.cache()
    command = [sys.executable, "-c", FETCHES, there.url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = [float(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sums == [float(np.asarray(SealedFile(made).column("views/last-cls")).sum())] * 3
    assert len(list(there.root.rglob("*.h5"))) == 1 and not list(there.root.rglob(".tmp-*"))


def test_errors_name_the_url(here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(here, 1)
    (file,) = there.cache().files()
    fs = opened(here.url).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    for name in ("get_file", "put_file", "find"):
        monkeypatch.setattr(fs, name, broken)
    with pytest.raises(CacheError, match=r"cannot fetch .*data/model/.*reset by peer\n.*is kept"):
        file.features("last/cls")
    with pytest.raises(CacheError, match=r"cannot list .*cache: connection reset"):
        there.cache().paths()
    cache = here.cache()
    new = make(cache, seed=5)
    with pytest.raises(CacheError, match=r"cannot write .*reset by peer\n.*is kept"):
        cache.push(new)
    assert new.exists() and Listing(cache.folder).read(new) is None
    monkeypatch.undo()


def test_push_refuses_a_short_upload(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = here.cache()
    new = make(cache, seed=5)
    fs = opened(here.url).fs
    put = fs.put_file

    def short(source: str, *args: Any, **kwargs: Any) -> None:
        write_file(new.with_name("short"), Path(source).read_bytes()[:-7])
        put(str(new.with_name("short")), *args, **kwargs)

    monkeypatch.setattr(fs, "put_file", short)
    with pytest.raises(CacheError, match="the store has other bytes than the"):
        cache.push(new)
    assert entry(here, new).info() is None


# -- the whole way --------------------------------------------------------------------------------


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path, arrow_cache: None) -> Case:
    return write_case(tmp_path / "case", tiny("bert"))


def extract_at(machine: Machine, case: Case, *splits: str, **options: Any) -> list[Extracted]:
    machine.cache()
    return extract_splits(case.settings(cache_dir=machine.url), splits, **options)


def test_extract_on_one_machine_and_find_on_another(here: Machine, there: Machine, case: Case) -> None:
    with one_thread():
        first = extract_at(here, case, "train", "test")
        assert [one.cached for one in first] == [False, False]
        with counted() as passes:
            second = extract_at(there, case, "train", "test")
        assert passes == [] and [one.cached for one in second] == [True, True]
        assert [one.tokens for one in second] == [one.tokens for one in first]
        assert not list(there.root.rglob("*.h5"))  # an answer is no reason to fetch a file
        file = find_features(case.settings(cache_dir=there.url), "train")
        x = file.features("last/cls").x
        assert x.shape == (60, 32)
        assert file.path.read_bytes() == first[0].path.read_bytes()
        with counted() as passes:  # one row more: the others are those of the store
            case.write([*case.rows(), {"text": "新的房间", "label": "good", "name": "n"}])
            third = extract_at(there, case, "train")
        assert [one.encoded for one in third] == [1] and sum(passes) == 1
    here.cache()
    assert find_features(case.settings(cache_dir=here.url), "train").rows == 61


def test_failed_push_is_repeated_by_the_next_extract(
    here: Machine, there: Machine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = opened(here.url).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    with one_thread(), monkeypatch.context() as patch:
        patch.setattr(fs, "put_file", broken)
        with pytest.raises(CacheError, match=r"cannot write .*reset by peer\n.*is kept"):
            extract_at(here, case, "train")
    with counted() as passes:
        (again,) = extract_at(here, case, "train")
    assert passes == [] and again.cached
    there.cache()
    assert find_features(case.settings(cache_dir=there.url), "train").rows == 60


def test_extract_with_force_replaces_the_file_of_the_store(here: Machine, there: Machine, case: Case) -> None:
    with one_thread():
        (made,) = extract_at(here, case, "train")
        changed = make_other(made.path)
        here.cache().push(made.path, replace=True)
        with counted() as passes:
            (again,) = extract_at(there, case, "train", force=True)
    assert sum(passes) == 60
    assert entry(there, again.path).read() == again.path.read_bytes() != changed


def test_commands_with_a_cache_url(
    machines: tuple[Machine, Machine], case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    here, there = machines
    monkeypatch.chdir(tmp_path)
    settings = case.settings(cache_dir=here.url)
    (tmp_path / "featcache.toml").write_text(to_toml(settings), encoding="utf-8")

    def said(*argv: str, code: int = 0) -> Any:
        machine.cache()
        capsys.readouterr()
        assert main([*argv, "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    with one_thread():
        machine = here
        said("extract", "--all-splits")
        machine = there
        listed = said("cache", "ls")["files"]
        assert len(listed) == 3 and all(one["status"] == "sealed" for one in listed)
        assert all(one["path"].startswith(here.url) and one["bytes"] > 1000 for one in listed)
        assert not list(there.root.rglob("*.h5"))
        said("train-head", "--epochs", "2")
        said("compare")
        assert all(one["ok"] for one in said("cache", "verify")["files"])
        name = Path(listed[0]["path"]).name
        assert said("cache", "info", name)["files"][0]["split"] == listed[0]["split"]
        said("cache", "rm", name)
        machine = here
        assert len(said("cache", "ls")["files"]) == 2
    assert main(["cache", "gc"]) == UsageError.exit_code
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob("*:"))


def test_features_of_texts_are_shared_by_machines(
    here: Machine, there: Machine, tiny: Callable[[str], Path]
) -> None:
    from featcache import FeatureExtractor

    texts = [sentence(words) for words in (3, 5, 7)]
    found = []
    for machine in (here, there):
        machine.cache()
        extractor = FeatureExtractor(str(tiny("bert")), cache_dir=machine.url, dtype="float32")
        with one_thread(), counted() as passes:
            found.append(extractor.fit_transform(texts))
        assert sum(passes) == (3 if machine is here else 0)
    assert np.array_equal(*found)
