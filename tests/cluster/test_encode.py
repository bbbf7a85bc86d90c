"""Encoded units on their way between the nodes of a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.cache.staging import Staging
from featcache.cluster.encode import put_units, take_units
from featcache.cluster.extract import extract_with_ray
from featcache.system.stores import Remote, opened
from tests.support.extraction import Case, assert_same_file
from tests.support.ray_runs import needs_ray


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_units_are_sent_through_the_store_of_the_cache(
    case: Case, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    store = tmp_path / "store"
    sent: set[str] = set()

    def take(place: Remote, staging: Staging) -> None:
        sent.update(path.name for path in store.rglob("block-*.safetensors"))
        take_units(place, staging)

    monkeypatch.setattr("featcache.cluster.extract.take_units", take)
    (made,) = extract_with_ray(case.settings(cache_dir=store.as_uri()), ["train"], workers=2)
    assert_same_file(made.path, case.extract("train").path)
    assert len(sent) > 1 and list(store.rglob("block-*.safetensors")) == []


def test_take_units_drops_damaged_units_and_those_of_another_plan(tmp_path: Path) -> None:
    plan = {"fingerprint": "one"}
    there, here = Staging(tmp_path / "there", plan), Staging(tmp_path / "here", plan)
    store = opened((tmp_path / "store").as_uri())
    for number in range(3):
        there.commit(number, {"x": np.arange(number + 1)})
    other = Staging(tmp_path / "other", {"fingerprint": "two"})
    other.commit(5, {"x": np.arange(5)})
    put_units(there, store)
    put_units(other, store)
    assert there.named() == other.named() == set()
    (damaged,) = (tmp_path / "store").glob("block-00000001-*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    (tmp_path / "store" / "note.txt").write_text("not ours")
    take_units(store, here)
    assert here.committed() == {0, 2}
    assert here.read(2)["x"].tolist() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["note.txt"]
    take_units(store, here)  # once more changes nothing
    assert here.committed() == {0, 2}
