"""Batches under a token budget, and where texts lie in them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.packing import filling, plan_batches
from tests.support.packed_texts import SOME, layout_of

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


# ---------------------------------------------------------------- plan_batches


@given(LENGTHS, st.integers(1, 120))
def test_plan_batches_puts_every_row_in_exactly_one(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    assert all(len(batch) for batch in batches)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 120))
def test_plan_batches_keeps_the_budget_but_for_a_single_long_row(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(np.array(lengths, dtype=np.int64), budget):
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


@given(LENGTHS, st.integers(1, 120))
def test_plan_batches_has_the_longest_first_and_ties_in_file_order(lengths: list[int], budget: int) -> None:
    rows = [int(row) for batch in plan_batches(np.array(lengths, dtype=np.int64), budget) for row in batch]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 120))
def test_plan_batches_fills_batches(lengths: list[int], budget: int) -> None:
    """No two neighbours would have fitted together: the next batch's first row did not fit."""
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[row] for row in batch) + lengths[following[0]] > budget


def test_plan_batches_of_no_rows() -> None:
    assert plan_batches(np.zeros(0, dtype=np.int64), 10) == []


def test_plan_batches_worked_example() -> None:
    batches = plan_batches(np.array([3, 9, 3, 20, 1]), 10)
    assert [batch.tolist() for batch in batches] == [[3], [1], [0, 2, 4]]


# ---------------------------------------------------------------- PackedLayout


@given(SOME)
def test_packed_layout_holds_where_texts_begin(lengths: list[int]) -> None:
    layout = layout_of(lengths)
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert layout.longest == max(lengths)


@given(SOME)
def test_packed_layout_runs_are_neighbours_of_equal_length(lengths: list[int]) -> None:
    runs = layout_of(lengths).runs
    assert [length for _, count, length in runs for _ in range(count)] == lengths
    assert [start for start, _, _ in runs] == [
        sum(count * length for _, count, length in runs[:number]) for number in range(len(runs))
    ]
    assert all(before[2] != after[2] for before, after in itertools.pairwise(runs))


# ---------------------------------------------------------------- few sizes


@given(st.integers(1, 70_000))
def test_filling_is_small_and_leaves_few_sizes(tokens: int) -> None:
    more = filling(tokens)
    assert 0 <= more < 128 and more <= max(15, tokens / 8)
    assert filling(tokens + more) == 0


def test_filling_leaves_fewer_than_60_sizes() -> None:
    assert len({tokens + filling(tokens) for tokens in range(1, 4097)}) < 60
