"""Caches, data and predictions in object stores: an S3 server on loopback, memory, and a folder by URL."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache import catalog as store
from featcache.cache import shards
from featcache.cache.record import read_record, record_path
from featcache.cache.remote import eviction, mirror
from featcache.cache.remote.listing import card_path
from featcache.cache.sealed_file import Column, SealedFile, write_sealed
from featcache.cache.upkeep import verify
from featcache.data.split import describe_source, load_splits
from featcache.errors import CacheError, CorruptCache, SourceError, UsageError
from featcache.extraction.api import Extracted, extract_splits, find_features
from featcache.prediction.predictor import Predictor
from featcache.settings import DataSettings, to_toml
from featcache.system import downloads as fetched
from featcache.system import stores as remote
from featcache.system.durable import write_file
from featcache_cli.commands.predict import file as predict_file
from featcache_cli.main import main
from tests.support.documents import cache_document, encoder_document, make_request
from tests.support.extraction import Case, counted, write_case
from tests.support.stock import one_thread, sentence
from tests.support.tiny_predictor import tiny_predictor

HOSTS = pytest.mark.allow_hosts(["127.0.0.1"])
STORES = [pytest.param("file"), pytest.param("memory"), pytest.param("s3", marks=HOSTS)]


@dataclass
class Machine:
    """One of several machines that use the same store: its own mirror folder."""

    root: Path
    url: str
    use: Callable[[Machine], None]

    def folder(self) -> Path:
        """Be this machine from now on; the folder that its cache is mirrored in, freshly looked at."""
        self.use(self)
        folder = mirror.cache_folder(self.url)
        mirror._MIRRORS[folder]._looked = -mirror.REFRESH_EVERY
        return folder


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder of a store."""
    import fsspec

    if request.param == "s3":
        yield f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"file://{tmp_path}/store"


@pytest.fixture
def machines(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, each with nothing mirrored yet."""
    monkeypatch.setattr(mirror, "_MIRRORS", {})

    def use(machine: Machine) -> None:
        monkeypatch.setenv(fetched.FOLDER, str(machine.root))

    yield (
        Machine(tmp_path / "here", f"{url}/cache", use),
        Machine(tmp_path / "there", f"{url}/cache", use),
    )


@pytest.fixture
def here(machines: tuple[Machine, Machine]) -> Machine:
    return machines[0]


@pytest.fixture
def there(machines: tuple[Machine, Machine]) -> Machine:
    return machines[1]


def make(folder: Path, name: str = "train", seed: int = 0, rows: int = 50, width: int = 8) -> Path:
    """A sealed cache file of random features with a record that answers `{"asked": seed}`."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 256, (rows, 32), dtype=np.uint8)
    labels = draw.integers(0, 2, rows)
    encoder = encoder_document(max_length=16, storage="float32")
    document = cache_document(encoder, ["last/cls"], hashes, labels, ("bad", "good"))
    path = store.cache_path(folder, "data", "model", name, document.fingerprint)
    x = draw.standard_normal((rows, width)).astype(np.float32)
    columns = [
        Column("views/last-cls", x.shape, "float32", [x]),
        Column("labels", (rows,), "int64", [labels]),
        Column("row_hash", (rows, 32), "uint8", [hashes]),
        Column("n_tokens", (rows,), "int32", [np.full(rows, 3)]),
        Column("truncated", (rows,), "uint8", [np.zeros(rows)]),
    ]
    content = document.to_json()
    meta = {"format": "featcache", "fingerprint": document.fingerprint, "split": name, "document": content}
    write_sealed(path, meta, columns)
    asked = make_request(views={"last/cls": "last/cls"}, source={"asked": seed})
    store.add_request(store.CacheFile(path), asked)
    return path


def brought(machine: Machine, *seeds: int, **options: Any) -> list[Path]:
    """Files made by `machine` and brought to the store."""
    folder = machine.folder()
    paths = [make(folder, seed=seed, **options) for seed in seeds]
    for path in paths:
        mirror.push(path)
    return paths


def entry(machine: Machine, path: Path) -> remote.Remote:
    """The file of the store that belongs to the mirror's `path`."""
    return remote.opened(machine.url).child("/".join(path.parts[-3:]))


def overwrite(machine: Machine, path: Path, content: bytes) -> None:
    entry(machine, path).write(content)


# -- what is a URL --------------------------------------------------------------------------------


def test_paths_are_no_urls() -> None:
    for text in ("cache", "/a/b", "C:/data", "C:\\data", "C://data", "a:b", "s3:/x", "", "://x"):
        assert not remote.is_remote(text)
    for text in ("s3://b/x", "gs://b", "hdfs://host:1/x", "memory://x", "file:///x", "S3://b/x"):
        assert remote.is_remote(text)
    assert mirror.cache_folder("some/folder") == Path("some/folder")


def test_an_unknown_store_is_said_to_be_so() -> None:
    with pytest.raises(UsageError, match=r"no store called s4://.*\n.*did you mean"):
        remote.is_remote("s4://bucket/x")


def test_a_missing_driver_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match="gs:// needs a package that is not installed\npip install gcsfs"):
        remote.opened("gs://bucket/x")


@pytest.mark.parametrize("text", ["memory://", "s3://", "file:///"])
def test_a_store_alone_is_no_folder(text: str) -> None:
    pytest.importorskip("s3fs")
    with pytest.raises(UsageError, match="names no file or folder"):
        remote.opened(text)


def test_no_password_is_ever_shown() -> None:
    assert remote.shown("sftp://me:secret@host/x?token=1") == "sftp://***@host/x?..."


def test_a_web_server_and_a_folder_of_runs_in_a_store_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a web server keeps no cache"):
        mirror.cache_folder("https://host/cache")
    assert main(["compare", "--reports-dir", "s3://bucket/reports"]) == UsageError.exit_code
    assert "runs are kept in a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- the cache ------------------------------------------------------------------------------------


def test_another_machine_finds_it_by_request_and_fetches_it_once(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    folder = there.folder()
    asked = make_request(source={"asked": 1})
    found = store.find_request(store.cache_files(folder, "train"), asked, {"last/cls"})
    assert found is not None and not found.path.exists()
    assert (found.split, found.rows, found.views, found.truncated, found.tokens) == (
        "train", 50, ("last/cls",), 0, 150,
    )  # fmt: skip
    assert not found.path.exists()  # none of that needed the file
    x = found.features("last/cls").x
    assert np.array_equal(x, SealedFile(made).column("views/last-cls"))
    assert found.path.read_bytes() == made.read_bytes()
    entry(there, found.path).remove()  # what is here is not fetched again
    again = store.CacheFile(found.path).features("last/cls")
    assert np.array_equal(again.x, x)
    assert list(store.cache_files(folder, "test")) == []


def test_a_record_grows_on_two_machines(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    other = there.folder()
    (path,) = store.cache_paths(other)
    store.add_request(store.CacheFile(path), make_request(source={"asked": "there"}))
    mirror.push(path)
    store.add_request(store.CacheFile(made), make_request(source={"asked": "here"}))
    here.folder()
    mirror.push(made)
    there.folder()
    store.cache_paths(other)
    record = read_record(path, store.CacheFile(path).fingerprint)
    assert {one.source["asked"] for one in record.requests} == {1, "here", "there"}


def test_what_comes_damaged_is_never_published(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    content = bytearray(made.read_bytes())
    at = SealedFile(made)._entries["views/last-cls"]["offset"]
    content[at + 5] ^= 1
    overwrite(here, made, bytes(content))
    folder = there.folder()
    (file,) = store.cache_files(folder)
    with pytest.raises(CorruptCache, match=r"(?s)store|bucket|memory.*is damaged.*fetched 2 times") as caught:
        file.features("last/cls")
    assert "/data/model/" in str(caught.value) and "there" not in caught.value.what
    assert not file.path.exists() and not list(file.path.parent.glob("*.h5"))
    assert not verify(file.path).ok
    overwrite(here, made, bytes(content[:-100]))  # now not even its seal holds
    there.folder()
    assert list(store.cache_files(folder)) == []
    (error,) = store.damaged(folder, "train")
    assert isinstance(error, CorruptCache) and "bytes, sealed with" in error.what


def test_a_fetch_that_fails_once_is_repeated(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought(here, 1)
    (file,) = store.cache_files(there.folder())
    get, tries = remote.Remote.get, []

    def bad_once(self: remote.Remote, target: Path) -> None:
        get(self, target)
        tries.append(target)
        if len(tries) == 1:
            target.write_bytes(target.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(remote.Remote, "get", bad_once)
    assert file.features("last/cls").x.shape == (50, 8)
    assert len(tries) == 2


def test_a_copy_that_went_bad_is_fetched_again(here: Machine, there: Machine) -> None:
    brought(here, 1)
    folder = there.folder()
    (file,) = store.cache_files(folder)
    x = np.array(file.features("last/cls").x)
    content = file.path.read_bytes()
    for damaged in (content[:-1], b"", content.replace(content[5000:5004], b"abcd")):
        file.path.write_bytes(damaged)
        (again,) = store.cache_files(folder)
        assert np.array_equal(again.features("last/cls").x, x)
        assert file.path.read_bytes() == content


def test_of_two_machines_the_first_ones_file_stays(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    theirs = make(there.folder(), seed=1)
    same = theirs.read_bytes() == made.read_bytes()
    assert same
    changed = make_other(theirs)
    mirror.push(theirs)
    assert entry(here, made).read() == made.read_bytes() == theirs.read_bytes() != changed
    changed = make_other(theirs)
    mirror.push(theirs, replace=True)  # as --force does
    assert entry(here, made).read() == changed
    here.folder()
    (path,) = store.cache_paths(made.parents[2])
    assert not path.exists()  # what was replaced there is not kept here
    assert np.array_equal(
        store.CacheFile(path).features("last/cls").x, SealedFile(theirs).column("views/last-cls")
    )


def make_other(path: Path) -> bytes:
    """Give the file of the same fingerprint other numbers, as another processor would."""
    sealed = SealedFile(path)
    columns = [
        Column(name, column.shape, column.dtype.name, [column + (name.startswith("views"))])
        for name in sealed.names
        if name != "meta"
        for column in [np.array(sealed.column(name))]
    ]
    write_sealed(path, sealed.meta, columns, replace=True)
    return path.read_bytes()


def make_shards(folder: Path, seed: int = 3) -> Path:
    """A cache file of several shards."""
    single = make(folder, seed=seed, rows=600)
    sealed = SealedFile(single)
    arrays = {name: np.array(sealed.column(name)) for name in sealed.names if name != "meta"}

    def columns(rows: slice) -> list[Column]:
        parts = {name: array[rows] for name, array in arrays.items()}
        return [Column(name, part.shape, part.dtype.name, [part]) for name, part in parts.items()]

    assert shards.write_cache(single, sealed.meta, 600, columns, 25_000, replace=True)
    return single


def test_shards_are_brought_and_fetched_one_by_one(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_shards(here.folder())
    names = sorted(path.name for path in shards.shard_paths(made))
    assert len(names) > 2
    mirror.push(made)
    expected = np.asarray(store.CacheFile(made).features("last/cls").x)
    folder = there.folder()
    (file,) = store.cache_files(folder)
    assert file.tokens == 1800 and not list(folder.rglob("*.h5"))
    x = file.sealed.column("views/last-cls")
    assert np.array_equal(x[-3:], expected[-3:])
    assert [path.name for path in folder.rglob("*.shard-*")] == names[-1:]
    assert np.array_equal(np.asarray(file.features("last/cls").x), expected)
    for content in (b"", SealedFile(made).path.read_bytes()):  # a copy that went bad
        file.path.with_name(names[0]).write_bytes(content)
        (again,) = store.cache_files(folder)
        assert np.array_equal(np.asarray(again.features("last/cls").x), expected)
    assert verify(file.path).ok
    with monkeypatch.context() as patch:  # shards go like any file, and are fetched again
        patch.setattr(fetched, "GRACE", -1.0)
        patch.setenv(fetched.SIZE, "0")
        assert len(eviction.evict()) == len(names) + 1 and not list(folder.rglob("*.h5"))
    (again,) = store.cache_files(folder)
    assert np.array_equal(np.asarray(again.features("last/cls").x), expected)
    store.remove(file.path)
    assert not remote.opened(there.url).listing() and not list(folder.rglob("*.h5"))


def test_a_manifest_is_brought_last_and_shards_are_not_brought_twice(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_shards(here.folder())
    put, sent = remote.Remote.put, []

    def third_fails(self: remote.Remote, source: Path, *, replace: bool = False) -> bool:
        sent.append(source.name)
        if len(sent) == 3:
            raise CacheError("the line is cut")
        return put(self, source, replace=replace)

    monkeypatch.setattr(remote.Remote, "put", third_fails)
    with pytest.raises(CacheError, match="the line is cut"):
        mirror.push(made)
    assert list(store.cache_files(there.folder())) == []
    here.folder()
    mirror.push(made)
    names = [path.name for path in shards.shard_paths(made)]
    assert [name for name in sent if name.endswith(".h5")] == [*names[:3], *names[2:], made.name]
    (file,) = store.cache_files(there.folder())
    assert np.isfinite(np.asarray(file.features("last/cls").x)).all()


def test_what_was_removed_is_gone_everywhere(here: Machine, there: Machine) -> None:
    first, second = brought(here, 1, 2)
    folder = there.folder()
    for file in store.cache_files(folder):
        file.features("last/cls")
    assert len(list(folder.rglob("*.h5"))) == 2
    here.folder()
    store.remove(first)
    assert entry(here, first).info() is None and entry(here, record_path(first)).info() is None
    there.folder()
    assert [path.name for path in store.cache_paths(folder)] == [second.name]
    assert [path.name for path in folder.rglob("*.h5")] == [second.name]


def test_a_store_that_shows_nothing_is_not_believed(here: Machine, there: Machine) -> None:
    brought(here, 1)
    folder = there.folder()
    (file,) = store.cache_files(folder)
    file.features("last/cls")
    there_too = remote.opened(there.url)
    for name in there_too.listing():
        there_too.child(name).remove()
    there.folder()
    assert [path.name for path in store.cache_paths(folder)] == [file.path.name] and file.path.exists()


def test_names_that_lead_elsewhere_are_not_looked_at(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    content = made.read_bytes()
    cache = remote.opened(here.url)
    for name in ("a/b/c/train-0123456789ab.h5", "train-0123456789ab.h5", "a/b/.tmp-1-x.h5", "a/b/x.txt"):
        cache.child(name).write(content)
    assert [path.name for path in store.cache_paths(there.folder())] == [made.name]


def test_a_file_under_a_wrong_name_is_refused(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1)
    remote.opened(here.url).child("data/model/train-0123456789ab.h5").write(made.read_bytes())
    files = {file.path.name: file for file in store.cache_files(there.folder())}
    with pytest.raises(CorruptCache, match="another cache file"):
        files["train-0123456789ab.h5"].features("last/cls")


def test_the_least_recently_used_goes_and_never_what_only_this_machine_has(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought(here, 1, 2, 3, rows=500)
    monkeypatch.setattr(fetched, "GRACE", -1.0)
    folder = there.folder()
    own = make(folder, seed=9, rows=500)  # not brought yet
    size = own.stat().st_size
    monkeypatch.setenv(fetched.SIZE, f"{int(3.5 * size)}B")
    files = {file.record.requests[0].source["asked"]: file for file in store.cache_files(folder)}
    for number, seed in enumerate((1, 2, 1, 3)):
        files[seed] = store.CacheFile(files[seed].path)
        files[seed].features("last/cls")
        for path in (own, *(file.path for file in files.values())):  # one used before the other
            if path.exists():
                stat = path.stat()
                os.utime(path, (stat.st_atime - 10, stat.st_mtime))
        assert number < 3 or not files[2].path.exists()
    assert own.exists() and files[1].path.exists() and files[3].path.exists()
    monkeypatch.setenv(fetched.SIZE, "0")
    from featcache.system.lock import locked

    with locked(files[1].path):
        eviction.evict()
        assert files[1].path.exists() and own.exists() and not files[3].path.exists()
    assert np.isfinite(store.CacheFile(files[3].path).features("last/cls").x).all()  # it is fetched again


FETCHES = """
import sys
from featcache.cache.remote import mirror
from featcache.cache import catalog as store

(file,) = store.cache_files(mirror.cache_folder(sys.argv[1]))
print(float(file.features("last/cls").x.sum()))
"""


@pytest.mark.parametrize("url", [pytest.param("file")], indirect=True)
def test_processes_that_fetch_at_once_fetch_once(here: Machine, there: Machine) -> None:
    (made,) = brought(here, 1, rows=2000)
    there.folder()
    command = [sys.executable, "-c", FETCHES, there.url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = [float(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sums == [float(np.asarray(SealedFile(made).column("views/last-cls")).sum())] * 3
    assert len(list(there.root.rglob("*.h5"))) == 1 and not list(there.root.rglob(".tmp-*"))


def test_errors_name_the_url_and_what_is_kept(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought(here, 1)
    (file,) = store.cache_files(there.folder())
    fs = remote.opened(here.url).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    for name in ("get_file", "put_file", "find"):
        monkeypatch.setattr(fs, name, broken)
    with pytest.raises(CacheError, match=r"cannot fetch .*data/model/.*reset by peer\n.*is kept"):
        file.features("last/cls")
    with pytest.raises(CacheError, match=r"cannot list .*cache: connection reset"):
        store.cache_paths(there.folder())
    new = make(here.folder(), seed=5)
    with pytest.raises(CacheError, match=r"cannot write .*reset by peer\n.*is kept"):
        mirror.push(new)
    assert new.exists() and not card_path(new).exists()
    monkeypatch.undo()


def test_an_upload_that_arrives_short_is_refused(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    new = make(here.folder(), seed=5)
    fs = remote.opened(here.url).fs
    put = fs.put_file

    def short(source: str, *args: Any, **kwargs: Any) -> None:
        write_file(new.with_name("short"), Path(source).read_bytes()[:-7])
        put(str(new.with_name("short")), *args, **kwargs)

    monkeypatch.setattr(fs, "put_file", short)
    with pytest.raises(CacheError, match="did not arrive as it was sent"):
        mirror.push(new)
    assert entry(here, new).info() is None


def test_two_that_bring_a_file_at_once(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each sees that there is none; a store that can refuses the second one."""
    if here.url.startswith("file"):
        pytest.skip("a rename replaces: of two at once the last one stays, and both are whole")
    (made,) = brought(here, 1)
    looked, info = [], remote.Remote.info

    def blind(self: remote.Remote) -> dict[str, Any] | None:
        looked.append(self.url)
        return None if len(looked) == 1 else info(self)

    other = made.with_name("other")
    other.write_bytes(b"other")
    monkeypatch.setattr(remote.Remote, "info", blind)
    assert entry(here, made).put(other) is False
    assert entry(here, made).read() == made.read_bytes()


def test_a_store_that_knows_no_exclusive_writing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("file"):
        pytest.skip("files are put there in another way")
    target = remote.opened(f"{url}/x")
    put_file = target.fs.put_file

    def limited(source: str, path: str, mode: str) -> None:
        if mode == "create":
            raise OSError(5, "A header you provided implies functionality that is not implemented")
        put_file(source, path, mode=mode)

    monkeypatch.setattr(target.fs, "put_file", limited)
    (tmp_path / "x").write_bytes(b"content")
    assert target.put(tmp_path / "x") and target.read() == b"content"


def test_what_a_killed_fetch_left_goes_after_a_day(mirrored: Path) -> None:
    old, new = mirrored / "data/a/.tmp-0-x.csv", mirrored / "cache/k/d/m/.tmp-0-x.h5"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert eviction.evict() == []
    assert not old.exists() and new.exists()


# -- data -----------------------------------------------------------------------------------------


def put(url: str, content: bytes | str) -> str:
    """A file of the store; its URL."""
    remote.opened(url).write(content.encode() if isinstance(content, str) else content)
    return url


CSV = "text,label\n" + "".join(
    f"房间{number}号很好,{'good' if number % 2 else 'bad'}\n" for number in range(12)
)


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all that is fetched, empty."""
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def test_data_files_by_url_are_those_of_this_machine(
    url: str, mirrored: Path, tmp_path: Path, arrow_cache: None
) -> None:
    local = tmp_path / "train.csv"
    local.write_text(CSV, encoding="utf-8")
    there = put(f"{url}/data/train.csv", CSV)
    documents = [
        describe_source(DataSettings(data_files={"train": place}), seed=0) for place in (str(local), there)
    ]
    assert documents[0] == documents[1]  # so that a cache made from either answers for both
    for data in (DataSettings(data_files={"train": there}), DataSettings(dataset=there)):
        split = load_splits(data, ["train"], seed=0)["train"]
        assert (len(split), split.label_names) == (10, ("bad", "good"))


def test_data_are_fetched_once_and_again_when_they_change(
    url: str, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(f"{url}/data/train.csv", CSV)
    get, fetches = remote.Remote.get, []
    monkeypatch.setattr(
        remote.Remote, "get", lambda self, target: (fetches.append(self.url), get(self, target))
    )
    first = fetched.fetched(there)
    assert fetched.fetched(there) == first and first.read_text(encoding="utf-8") == CSV
    assert len(fetches) == 1 and first.name == "train.csv"
    put(there, CSV + "又一个,good\n")
    assert fetched.fetched(there).read_text(encoding="utf-8").endswith("又一个,good\n")
    assert len(fetches) == 2


def test_data_that_are_not_there(url: str, mirrored: Path) -> None:
    for name, words in (("none.csv", "no such file: .*none.csv"), ("folder", "name files, not folders")):
        with pytest.raises(SourceError, match=words):
            describe_source(DataSettings(data_files={"train": f"{url}/{name}"}), seed=0)
    assert not list(mirrored.rglob("*.csv"))


def test_data_that_come_short_are_not_used(url: str, mirrored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = put(f"{url}/data/train.csv", CSV)
    fs = remote.opened(there).fs

    def short(source: str, target: str, **options: Any) -> None:
        Path(target).write_bytes(CSV.encode()[:-3])

    with monkeypatch.context() as patch:
        patch.setattr(fs, "get_file", short)
        with pytest.raises(SourceError, match=r"cannot fetch .*train.csv: \d+ of \d+ bytes came"):
            fetched.fetched(there)
    assert not list(mirrored.rglob("*.csv"))
    assert fetched.fetched(there).read_text(encoding="utf-8") == CSV


def test_a_size_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.SIZE, "much")
    with pytest.raises(UsageError, match="FEATCACHE_MIRROR_SIZE: 'much' is not a size"):
        fetched.mirror_size()


# -- predictions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(tiny: Callable[[str], Path]) -> Iterator[Predictor]:
    with one_thread():
        yield tiny_predictor(tiny("bert"))


def labelled(predictor: Predictor, *argv: str) -> int:
    """What `featcache predict` makes of these flags."""
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="*")
    parser.set_defaults(pair=None, config=None, quiet=True, json=True)
    predict_file.add_flags(parser)
    return predict_file.run_file(parser.parse_args(argv), lambda: predictor)


def rows_at(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in remote.opened(url).read().decode().splitlines()]


def some_rows(count: int, seed: int = 0) -> str:
    rows = ({"id": number, "text": sentence(3 + number % 9, seed + number)} for number in range(count))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_a_file_of_a_store_is_labelled_into_the_store(
    url: str, mirrored: Path, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = (
        put(f"{url}/in/x.jsonl", some_rows(20) + '{"id": 20, "text": ""}\n'),
        f"{url}/out/y.jsonl",
    )
    assert labelled(predictor, "--input", source, "--output", target) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], said["rows"], said["bad_rows"]) == (target, 21, 1)
    assert said["bad_rows_file"] == f"{target}.bad.jsonl"
    assert [row["row"] for row in rows_at(f"{target}.bad.jsonl")] == [21]
    local = tmp_path / "x.jsonl"
    local.write_bytes(remote.opened(source).read())
    assert labelled(predictor, "--input", str(local), "--output", str(tmp_path / "y.jsonl")) == 0
    assert remote.opened(target).read() == (tmp_path / "y.jsonl").read_bytes()
    assert not list((mirrored / "outputs").rglob("*.jsonl*")) and not list(mirrored.rglob("*.partial"))
    with pytest.raises(UsageError, match=r"y.jsonl is there already\n.*--force"):
        labelled(predictor, "--input", source, "--output", target)
    with pytest.raises(UsageError, match="is the input"):
        labelled(predictor, "--input", source, "--output", source)
    put(source, some_rows(3))
    assert labelled(predictor, "--input", source, "--output", target, "--force") == 0
    assert len(rows_at(target)) == 3
    assert remote.opened(f"{target}.bad.jsonl").info() is None  # that of the file before


def test_an_upload_that_fails_costs_no_row(
    url: str,
    mirrored: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = put(f"{url}/in/x.jsonl", some_rows(20)), f"{url}/out/y.jsonl"
    fs = remote.opened(target).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(fs, "put_file", broken)
        with pytest.raises(SourceError, match=r"cannot write .*y.jsonl: connection reset.*\n.*is kept"):
            labelled(predictor, "--input", source, "--output", target)
    assert remote.opened(target).info() is None
    assert labelled(predictor, "--input", source, "--output", target) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 20
    assert len(rows_at(target)) == 20


def test_many_files_of_a_store(
    url: str, mirrored: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 10, 1):
        put(f"{url}/in/part-{number}.jsonl", some_rows(number, number))
    many, out = f"{url}/in/part-*.jsonl", f"{url}/out/"
    with pytest.raises(UsageError, match=r"matches 3 files\nlet --output end in /"):
        labelled(predictor, "--input", many, "--output", f"{url}/out.jsonl")
    with pytest.raises(SourceError, match="no file matches"):
        labelled(predictor, "--input", f"{url}/in/*.csv", "--output", out)
    assert labelled(predictor, "--input", many, "--output", out) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["output"] for one in said["files"]] == [f"{out}part-{n}.jsonl" for n in (1, 10, 2)]
    assert [len(rows_at(f"{out}part-{n}.jsonl")) for n in (1, 2, 10)] == [1, 2, 10]
    remote.opened(f"{out}part-2.jsonl").remove()  # as after a call that was killed before the last
    assert labelled(predictor, "--input", many, "--output", out) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["output"] for one in said["files"]] == [f"{out}part-2.jsonl"]
    assert said["left"] == [f"{out}part-1.jsonl", f"{out}part-10.jsonl"]


# -- the whole way --------------------------------------------------------------------------------


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path, arrow_cache: None) -> Case:
    return write_case(tmp_path / "case", tiny("bert"))


def extract_at(machine: Machine, case: Case, *splits: str, **options: Any) -> list[Extracted]:
    machine.folder()
    return extract_splits(case.settings(cache_dir=machine.url), splits, **options)


def test_extracted_on_one_machine_trained_on_another(here: Machine, there: Machine, case: Case) -> None:
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
    here.folder()
    assert find_features(case.settings(cache_dir=here.url), "train").rows == 61


def test_what_could_not_be_brought_is_brought_the_next_time(
    here: Machine, there: Machine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = remote.opened(here.url).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    with one_thread(), monkeypatch.context() as patch:
        patch.setattr(fs, "put_file", broken)
        with pytest.raises(CacheError, match=r"cannot write .*reset by peer\n.*is kept"):
            extract_at(here, case, "train")
    with counted() as passes:
        (again,) = extract_at(here, case, "train")
    assert passes == [] and again.cached
    there.folder()
    assert find_features(case.settings(cache_dir=there.url), "train").rows == 60


def test_force_replaces_what_the_store_has(here: Machine, there: Machine, case: Case) -> None:
    with one_thread():
        (made,) = extract_at(here, case, "train")
        changed = make_other(made.path)
        mirror.push(made.path, replace=True)
        with counted() as passes:
            (again,) = extract_at(there, case, "train", force=True)
    assert sum(passes) == 60
    assert entry(there, again.path).read() == again.path.read_bytes() != changed


def test_the_commands_work_at_a_url(
    machines: tuple[Machine, Machine], case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    here, there = machines
    monkeypatch.chdir(tmp_path)
    settings = case.settings(cache_dir=here.url)
    (tmp_path / "featcache.toml").write_text(to_toml(settings), encoding="utf-8")

    def said(*argv: str, code: int = 0) -> Any:
        machine.folder()
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


def test_features_of_texts_in_memory_are_shared(
    here: Machine, there: Machine, tiny: Callable[[str], Path]
) -> None:
    from featcache import FeatureExtractor

    texts = [sentence(words) for words in (3, 5, 7)]
    found = []
    for machine in (here, there):
        machine.folder()
        extractor = FeatureExtractor(str(tiny("bert")), cache_dir=machine.url, dtype="float32")
        with one_thread(), counted() as passes:
            found.append(extractor.fit_transform(texts))
        assert sum(passes) == (3 if machine is here else 0)
    assert np.array_equal(*found)
