"""A cache file: its views with labels, and its description."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.cache.catalog import (
    CacheFile,
)
from featcache.errors import CacheMiss
from featcache.fingerprint import row_hashes
from tests.support.cache_files import VIEWS, seal


def test_features_returns_each_view_of_the_file(tmp_path: Path) -> None:
    file = CacheFile(seal(tmp_path))
    for number, view in enumerate(VIEWS):
        found = file.features(view)
        assert (found.x == number).all() and found.x.shape == (2, 3) and found.view == view
        assert (found.y.tolist(), found.label_names, found.split) == ([1, 0], ("bad", "good"), "train")
        assert (found.row_hash == row_hashes(["a", "b"])).all() and found.encoder.max_length == 9
        assert found.fingerprint == file.fingerprint and found.path == file.path
    assert (file.rows, file.truncated, set(file.views)) == (2, 1, set(VIEWS))
    with pytest.raises(CacheMiss, match=r"has views .*, not last/max"):
        file.features("last/max")
