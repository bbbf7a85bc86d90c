"""Mirrors of this machine are kept within their size; see also `test_mirror.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.cache.remote.eviction import evict
from featcache.system import downloads


def test_evict_removes_old_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = tmp_path / "mirror"
    monkeypatch.setenv(downloads.FOLDER, str(mirrored))
    old, new = mirrored / "data/a/.tmp-0-x.csv", mirrored / "cache/k/d/m/.tmp-0-x.h5"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert evict() == []
    assert not old.exists() and new.exists()
