"""The partition of a split into commit units, and the plan that identifies it on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.staging import Staging, read_plan
from featcache.extraction import partition
from featcache.extraction.partition import Partition, PartitionPlan, partition_rows, token_costs, unit_starts


def small_partition() -> Partition:
    hashes = np.repeat(np.array([0, 1, 0, 2], np.uint8), 32).reshape(4, 32)
    return partition_rows([], hashes, np.ones(4), batch_tokens=1)


def test_partition_rows_encodes_equal_rows_once() -> None:
    partition = small_partition()
    assert partition.to_encode.tolist() == [0, 1, 3] and partition.origin.tolist() == [0, 1, 0, 3]
    assert partition.units == 1 and partition.rows(0).tolist() == [0, 1, 3] and partition.count([0]) == 3


def test_plan_has_the_bytes_that_earlier_versions_wrote(tmp_path: Path) -> None:
    plan = small_partition().plan("f" * 64, 512)
    Staging(tmp_path, plan)
    assert (tmp_path / "plan.json").read_bytes() == (
        b'{"batch_tokens":512,"donors":[],"fingerprint":"' + b"f" * 64 + b'",'
        b'"rows":"20a63514f83dec263f520fc6444731f7ff049af9db76456c05503e3f8fd1e117",'
        b'"starts":"96fb5e4a2704b410bbf097c41e40ff8118ef0bc819ccf4344f31f694d12d536a"}'
    )
    assert read_plan(tmp_path, PartitionPlan) == plan


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300), st.integers(10, 4000))
def test_unit_starts_covers_every_row_with_units_of_equal_cost(sizes: list[int], target: int) -> None:
    costs = token_costs(np.array(sizes), 512)
    starts = unit_starts(costs, target)
    assert starts[0] == 0 and starts[-1] == len(sizes) and (np.diff(starts) > 0).all()
    sums = np.add.reduceat(costs, starts[:-1])
    share = costs.sum() / max(round(costs.sum() / target), 1)
    assert sums.max() <= share + 2 * costs.max() + 1e-6


def test_unit_starts_limits_the_rows_of_a_unit() -> None:
    starts = unit_starts(np.ones(5 * partition.UNIT_ROWS), 1e12)
    assert len(starts) == 6 and np.diff(starts).max() <= partition.UNIT_ROWS + 1
    assert unit_starts(np.zeros(0), 10).tolist() == [0]
