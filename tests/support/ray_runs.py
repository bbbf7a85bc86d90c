"""Input and output of predictions on a Ray cluster, and the rows that one machine writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featcache.runs.run import Run
from featcache_cli.main import main
from tests.support.extraction import some_texts

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
HEAD = "linear-last-mean-1"
UNIT = 8  # rows


def write_parquet(path: Path, count: int, seed: int, group: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts: list[str | None] = list(some_texts(count, seed))
    texts[3] = "  "  # a row without a usable text
    pq.write_table(pa.table({"id": range(count), "text": texts}), path, row_group_size=group)
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of the output, in order."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def rows_of_one_machine(run: Run, source: Path, target: Path) -> list[dict[str, Any]]:
    """The rows that one machine writes for one file."""
    argv = ["predict", "--run", str(run.folder), "--input", str(source), "--output", str(target), "--quiet"]
    assert main([*argv, "--device", "cpu"]) == 0
    return pq.read_table(target).to_pylist()


def same_rows(rows: list[dict[str, Any]], want: list[dict[str, Any]]) -> bool:
    """Check that the rows and labels are equal, and the probabilities up to the last digits."""
    assert len(rows) == len(want)
    for one, other in zip(rows, want, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert np.isclose(value, other[name], atol=1e-5)
            else:
                assert value == other[name], name
    return True
