"""A Ray cluster on this machine or of two nodes, a case to extract and a run to predict with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.cluster.cluster import connected
from featcache.extraction import partition
from featcache.runs.run import Run, load_run
from tests.support.cli_tools import arrow_in, make_one_run
from tests.support.extraction import Case, one_thread, write_case
from tests.support.ray_runs import HEAD, UNIT


@pytest.fixture(scope="package", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process keeps the Arrow files of `datasets` in one folder, and computes on one thread."""
    folder = tmp_path_factory.mktemp("arrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        with arrow_in(folder), one_thread():
            yield


@pytest.fixture(scope="package")
def alone(arrow_files: None) -> Iterator[None]:
    """A Ray cluster on this machine, shared by the tests of this folder."""
    with connected(None):
        yield


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit units of few rows, so that there are several."""
    monkeypatch.setattr(partition, "UNIT_ROWS", UNIT)


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path) -> Case:
    return write_case(tmp_path / "case", tiny("bert"))


@pytest.fixture(scope="package")
def run(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = make_one_run(tmp_path_factory.mktemp("trained"), tiny("bert"))
    return load_run(folder / "reports", HEAD)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
