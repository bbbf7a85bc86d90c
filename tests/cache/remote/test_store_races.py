"""One machine changes a cache in a store while others read it: no reader gets half of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.cache import shards
from featcache.cache.cache import Cache
from featcache.errors import CacheError, CorruptCache
from featcache.system import downloads as fetched
from featcache.system import stores as remote
from tests.support.extraction import Case, write_case
from tests.support.stub_encoder import stubbed

BLOCK = 4


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(shards, "LEAST_SHARD", 1000)
    return write_case(tmp_path / "case", tiny("bert"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`machine(name)`: be this machine, with a mirror of its own, from now on; the URL of the cache."""

    def be(name: str) -> str:
        monkeypatch.setenv(fetched.FOLDER, str(tmp_path / name))
        return f"file://{tmp_path}/store/cache"

    return be


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "store").rglob("*.h5"))


def read(url: str) -> tuple[int, ...]:
    (file,) = Cache.open(url).files()
    return np.asarray(file.features("last/cls").x).shape


def test_interrupted_force_leaves_the_cache_of_the_store_whole(
    case: Case, machine: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stubbed(BLOCK):
        case.extract(cache_dir=machine("a"), shard_size="21000")
    put, seen = remote.Remote.put, list[str]()

    def failing(self: remote.Remote, source: Path, *, replace: bool = False) -> bool:
        seen.append(self.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return put(self, source, replace=replace)

    with monkeypatch.context() as patch, stubbed(BLOCK):
        patch.setattr(remote.Remote, "put", failing)
        url = machine("b")  # which never fetched the manifest
        with pytest.raises(KeyboardInterrupt):
            case.extract(cache_dir=url, shard_size="26000", force=True)
    assert all(".shard-" in name for name in seen)
    assert read(machine("c"))[0] == 60


def test_unused_shards_of_the_store_are_removed(
    case: Case, machine: Callable[[str], str], tmp_path: Path
) -> None:
    url = machine("a")
    with stubbed(BLOCK):
        case.extract(cache_dir=url, shard_size="21000")
        first = names(tmp_path)
        case.extract(cache_dir=url, shard_size="21000", force=True)
    assert len(first) == len(names(tmp_path)) and set(first) & set(names(tmp_path)) == {first[0]}
    assert read(machine("b"))[0] == 60
    left = next((tmp_path / "store").rglob("*.shard-00000b.h5"))
    left.with_name(left.name.replace("b.h5", ".h5")).write_bytes(left.read_bytes())  # of a killed upload
    cache = Cache.open(machine("c"))
    (path,) = cache.paths()
    cache.remove(path)
    assert names(tmp_path) == []


def test_a_damaged_file_of_the_store_is_reported_before_encoding(
    case: Case, machine: Callable[[str], str], tmp_path: Path
) -> None:
    with stubbed(BLOCK):
        case.extract(cache_dir=machine("a"))
    (there,) = (tmp_path / "store").rglob("*.h5")
    content = bytearray(there.read_bytes())
    content[100] ^= 1
    there.write_bytes(content)
    with stubbed(BLOCK) as encoder, pytest.raises(CorruptCache, match="seal is damaged"):
        case.extract(cache_dir=machine("b"))
    assert encoder.encoded == []


def test_refresh_ignores_files_that_vanish_meanwhile(
    case: Case, machine: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stubbed(BLOCK):
        url = machine("a")
        case.extract(cache_dir=url)
        case.extract("test", cache_dir=url)
    listing = remote.Remote.listing

    def removed(self: remote.Remote) -> dict[str, dict[str, object]]:
        found = listing(self)
        for path in (tmp_path / "store").rglob("train-*"):
            path.unlink()
        return found

    monkeypatch.setattr(remote.Remote, "listing", removed)
    (path,) = Cache.open(machine("b")).paths()
    assert path.name.startswith("test-")


def test_force_needs_a_store_that_can_be_listed(
    case: Case, machine: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stubbed(BLOCK):
        case.extract(cache_dir=machine("a"), shard_size="21000")

    def refused(self: remote.Remote) -> dict[str, dict[str, object]]:
        raise CacheError("out of reach")

    with stubbed(BLOCK), pytest.raises(CacheError, match="out of reach"):
        url = machine("b")
        monkeypatch.setattr(remote.Remote, "listing", refused)
        case.extract(cache_dir=url, shard_size="26000", force=True)
