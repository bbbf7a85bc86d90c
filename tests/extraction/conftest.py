"""Train and test of a small corpus, extracted once, and a counter of forward passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featcache.extraction.api import extract_splits
from tests.support.extraction import Case, counted, one_thread, write_case


@pytest.fixture(scope="package", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its Arrow files in one folder for all tests here."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        with one_thread():
            yield


@pytest.fixture(scope="package")
def made(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Train and test, extracted; not to be changed."""
    case = write_case(tmp_path_factory.mktemp("made"), tiny("bert"))
    first = extract_splits(case.settings(), ["train", "test"])
    assert [(one.rows, one.encoded, one.cached) for one in first] == [(60, 60, False), (20, 20, False)]
    return case


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    """A copy of `made` in the test's own folder: data and cache moved, that is."""
    shutil.copytree(made.folder, tmp_path / "case")
    return Case(tmp_path / "case", made.model, dict(made.asked))


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """Texts of each forward pass of the test."""
    with counted() as counts:
        yield counts
