"""Tests of this folder run on one thread: with tiny models a second one only waits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.stock import one_thread


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def bert(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return shutil.copytree(tiny("bert"), tmp_path / "bert")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mirror of one test, where converted weights are kept."""
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"
