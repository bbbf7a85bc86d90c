"""`bench_store` on few texts; its folder is empty again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.bench.store import bench_store
from featcache.errors import CacheError
from featcache.settings import load_settings
from featcache.system.progress import Progress


def test_bench_store_shares_match_the_seconds(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    asked = {
        "model": str(tiny("bert")),
        "dataset": str(tmp_path),
        "cache_dir": str(cache),
        "dtype": "float32",
    }
    said: list[Progress] = []
    found = bench_store(load_settings(asked), ["好房间"] * 1100, rows=2000, on_progress=said.append)
    seconds = found.seconds
    assert all(value > 0 for value in seconds.values())
    safety = seconds["commit"] + seconds["seal"] + seconds["discard"]
    assert found.commit_overhead == pytest.approx(safety / seconds["encode"], rel=0.02)
    assert found.read_overhead == pytest.approx(seconds["verify"] / seconds["first_pass"], rel=0.1)
    assert found.convert_overhead == pytest.approx(seconds["verify"] / seconds["convert"], rel=0.1)
    assert (found.texts, found.rows, found.bytes) == (1100, 2000, 2000 * 32 * 2)
    assert len(said) == 2 and list(cache.iterdir()) == []


def test_bench_store_refuses_a_file_that_does_not_fit(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = {"model": str(tiny("bert")), "dataset": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(CacheError, match="free"):
        bench_store(load_settings(asked), ["好房间"], rows=1 << 44)
    assert list((tmp_path / "cache").iterdir()) == []
