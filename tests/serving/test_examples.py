"""Texts of the test split for the page."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.data.split import load_splits
from featcache.runs.run import Run, choose_run
from featcache.serving.examples import EXAMPLES, examples_of
from featcache.settings import DataSettings


def chosen() -> Run:
    return choose_run(Path("reports"), None)


def test_examples_are_texts_of_the_test_split_with_their_own_labels(trained: Path) -> None:
    run = chosen()
    assert run.record.data is not None
    test = load_splits(run.record.data, ("test",), seed=run.record.seed)["test"]
    rows = dict(zip(test.texts(slice(None)), test.labels.tolist(), strict=True))
    found = examples_of(run, DataSettings())
    assert len(found) == EXAMPLES == len({one.text for one in found})
    for one in found:
        assert one.label == test.label_names[rows[one.text]] and one.pair is None
    assert {one.label for one in found} == set(test.label_names)  # each label, in their order
    assert [test.label_names.index(one.label) for one in found] == sorted(
        test.label_names.index(one.label) for one in found
    )
    assert examples_of(run, DataSettings()) == found


def test_examples_of_numbers(rated: Path) -> None:
    found = examples_of(chosen(), DataSettings())
    assert len(found) == EXAMPLES
    assert [float(one.label) for one in found] == sorted(float(one.label) for one in found)


def test_no_examples_where_the_data_are_gone_or_elsewhere(trained: Path) -> None:
    run = chosen()
    data = run.record.data
    assert data is not None
    url = replace(data, data_files={"test": "memory://bucket/test.csv"})
    foreign = replace(run, record=replace(run.record, data=url))
    assert examples_of(foreign, DataSettings()) == []  # a run of anybody makes no server read a URL
    large = replace(run, record=replace(run.record, rows={"train": 2_000_000}))
    assert examples_of(large, DataSettings()) == []
    shutil.rmtree(data.dataset)
    assert examples_of(run, DataSettings()) == []
    (run.folder / "predictions-test.parquet").unlink()
    assert examples_of(run, DataSettings()) == []


@pytest.fixture(autouse=True)
def _no_arrow_files_elsewhere(arrow_cache: None) -> None:
    """The texts are read through `datasets`."""
