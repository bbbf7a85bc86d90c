"""Batches, where texts lie in them, and attention that never crosses from one text to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.backbone import attention
from featcache.backbone.attention import IMPLEMENTATION, packed_attention, register
from featcache.backbone.packing import Layout, filling, plan_batches
from featcache.backbone.pooling import POOLINGS
from featcache.errors import BackboneError
from tests.support.stock import one_thread
from tests.support.varlen_stand_in import STAND_INS, first, later, varlen_on_cpu

LENGTHS = st.lists(st.integers(1, 40), max_size=60)
SOME = st.lists(st.integers(1, 12) | st.integers(14, 40), min_size=1, max_size=12)


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of(np.array(lengths, dtype=np.int64), torch.device("cpu"))


# ---------------------------------------------------------------- plan_batches


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_every_row_stands_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    assert all(len(batch) for batch in batches)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_the_budget_holds_but_for_a_single_long_row(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(np.array(lengths, dtype=np.int64), budget):
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_longest_first_and_ties_in_file_order(lengths: list[int], budget: int) -> None:
    rows = [int(row) for batch in plan_batches(np.array(lengths, dtype=np.int64), budget) for row in batch]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_batches_are_full(lengths: list[int], budget: int) -> None:
    """No two neighbours would have fitted together: the next batch's first row did not fit."""
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[row] for row in batch) + lengths[following[0]] > budget


def test_no_rows_no_batches() -> None:
    assert plan_batches(np.zeros(0, dtype=np.int64), 10) == []


def test_a_worked_example() -> None:
    batches = plan_batches(np.array([3, 9, 3, 20, 1]), 10)
    assert [batch.tolist() for batch in batches] == [[3], [1], [0, 2, 4]]


# ---------------------------------------------------------------- Layout


@given(SOME)
@settings(deadline=None)
def test_layout_says_where_texts_lie(lengths: list[int]) -> None:
    layout = layout_of(lengths)
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert layout.longest == max(lengths)


@given(SOME)
@settings(deadline=None)
def test_runs_are_neighbours_of_equal_length(lengths: list[int]) -> None:
    runs = layout_of(lengths).runs
    assert [length for _, count, length in runs for _ in range(count)] == lengths
    assert [start for start, _, _ in runs] == [
        sum(count * length for _, count, length in runs[:number]) for number in range(len(runs))
    ]
    assert all(before[2] != after[2] for before, after in itertools.pairwise(runs))


# ---------------------------------------------------------------- pooling


@given(SOME)
@settings(deadline=None)
def test_poolings_equal_a_loop_over_texts(lengths: list[int]) -> None:
    states = torch.randn(sum(lengths), 6, generator=torch.Generator().manual_seed(sum(lengths)))
    texts = states.split(lengths)
    expected = {
        "cls": [text[0] for text in texts],
        "last": [text[-1] for text in texts],
        "mean": [text.sum(0) / len(text) for text in texts],
        "max": [text.max(0).values for text in texts],
    }
    assert set(POOLINGS) == set(expected)
    for name, vectors in expected.items():
        found = POOLINGS[name](states, layout_of(lengths))
        torch.testing.assert_close(found, torch.stack(vectors), rtol=0, atol=1e-6)


def test_the_mean_of_16_bit_states_is_taken_in_float32() -> None:
    states = torch.full((3000, 1), 1.0, dtype=torch.bfloat16)
    states[::3] = 1.5
    found = POOLINGS["mean"](states, layout_of([3000]))
    assert found.dtype == torch.float32
    assert abs(found.item() - 3.5 / 3) < 1e-5


# ---------------------------------------------------------------- packed_attention


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    *,
    causal: bool,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """All tokens against all others in float64, one mask for everything: `[1, T, heads, d]`."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    sees = text[:, None] == text[None, :]
    ahead = place[None, :] - place[:, None]
    if causal:
        sees &= ahead <= 0
    if window is not None:
        sees &= ahead.abs() < window
    shared = query.shape[1] // key.shape[1]
    q = query[0].double()
    k, v = (states[0].double().repeat_interleave(shared, dim=0) for states in (key, value))
    scores = q @ k.transpose(1, 2) * (scaling if scaling is not None else 1 / math.sqrt(q.shape[-1]))
    weights = scores.masked_fill(~sees, -math.inf).softmax(-1)
    return (weights @ v).transpose(0, 1)[None].float()


def states_of(lengths: list[int], heads: int, key_heads: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(sum(lengths) + heads)
    return tuple(torch.randn(1, n, sum(lengths), 8, generator=draw) for n in (heads, key_heads, key_heads))


@given(
    lengths=SOME,
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 8, 50]),
    scaling=st.sampled_from([None, 0.7]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_packed_attention_equals_a_dense_mask(
    lengths: list[int],
    heads: tuple[int, int],
    causal: bool,
    window: int | None,
    scaling: float | None,
    dtype: torch.dtype,
) -> None:
    states = tuple(part.to(dtype) for part in states_of(lengths, *heads))
    found, weights = packed_attention(
        SimpleNamespace(is_causal=causal),  # type: ignore[arg-type]
        *states,
        None,
        packed=layout_of(lengths),
        scaling=scaling,
        sliding_window=window,
    )
    assert weights is None
    assert (found.shape, found.dtype) == ((1, sum(lengths), heads[0], 8), dtype)
    expected = dense(*states, lengths, causal=causal, window=window, scaling=scaling)
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@given(
    lengths=SOME,
    changed=st.integers(0, 11),
    causal=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@settings(deadline=None)
def test_attention_of_one_text_ignores_the_bits_of_the_others(
    lengths: list[int], changed: int, causal: bool, dtype: str
) -> None:
    """Not even NaN gets across."""
    layout, changed = layout_of(lengths), changed % len(lengths)
    first, last = int(layout.cu_seqlens[changed]), int(layout.cu_seqlens[changed + 1])
    states = [part.to(getattr(torch, dtype)) for part in states_of(lengths, 4, 2)]
    module: Any = SimpleNamespace(is_causal=causal)
    before, _ = packed_attention(module, *states, None, packed=layout)
    for part in states:
        part[:, :, first:last] = torch.nan
    after, _ = packed_attention(module, *states, None, packed=layout)
    assert after[:, first:last].isnan().all()
    others = [token for token in range(sum(lengths)) if not first <= token < last]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "asked", "causal"),
    [
        (SimpleNamespace(is_causal=True), None, True),
        (SimpleNamespace(is_causal=False), None, False),
        (SimpleNamespace(is_causal=True), False, False),
        (SimpleNamespace(is_causal=False), True, True),
        (SimpleNamespace(), None, True),  # as transformers' own attention functions have it
    ],
)
def test_who_decides_on_causality(module: Any, asked: bool | None, causal: bool) -> None:
    lengths = [5, 5, 2]
    states = states_of(lengths, 2, 2)
    found, _ = packed_attention(module, *states, None, packed=layout_of(lengths), is_causal=asked)
    expected = dense(*states, lengths, causal=causal, window=None, scaling=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("mask", "others"),
    [
        (None, {}),  # the layout did not arrive
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), {"packed": layout_of([4])}),
        (None, {"packed": layout_of([4]), "softcap": 30.0}),
        (None, {"packed": layout_of([4]), "position_bias": torch.zeros(1)}),
        (None, {"packed": layout_of([4]), "s_aux": torch.zeros(2)}),
    ],
)
def test_what_packed_attention_cannot_do_is_refused(mask: Any, others: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match="cannot run packed"):
        packed_attention(SimpleNamespace(is_causal=False), *states_of([4], 2, 2), mask, **others)  # type: ignore[arg-type]


# ---------------------------------------------------------------- varlen_attn, as CUDA has it

CHECK = 17 + 5 + 5 + 1 + 40  # tokens of the made-up texts on which it is tried first


@given(
    version=st.sampled_from(list(STAND_INS)),
    lengths=SOME,
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 8, 50]),
    scaling=st.sampled_from([None, 8**-0.5, 0.7]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
@settings(max_examples=80, deadline=None)
def test_varlen_equals_a_dense_mask(
    version: str,
    lengths: list[int],
    heads: tuple[int, int],
    causal: bool,
    window: int | None,
    scaling: float | None,
    dtype: torch.dtype,
) -> None:
    """Whatever this torch's varlen_attn can do it is asked for; the rest is SDPA's, with the same result."""
    states = tuple(part.to(dtype) for part in states_of(lengths, *heads))
    with varlen_on_cpu(STAND_INS[version]) as calls:
        found, _ = packed_attention(
            SimpleNamespace(is_causal=causal),  # type: ignore[arg-type]
            *states,
            None,
            packed=layout_of(lengths),
            scaling=scaling,
            sliding_window=window,
        )
    windowed = window is not None and max(lengths) > window
    able = version != "torch 2.10" or not (windowed or scaling == 0.7)
    assert calls == ([CHECK, sum(lengths)] if able else [])
    expected = dense(*states, lengths, causal=causal, window=window, scaling=scaling)
    assert (found.shape, found.dtype) == ((1, sum(lengths), heads[0], 8), dtype)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-2)


@pytest.mark.parametrize("version", STAND_INS)
def test_varlen_is_tried_once_for_each_kind(version: str) -> None:
    states = tuple(part.bfloat16() for part in states_of([5, 3], 4, 2))
    with varlen_on_cpu(STAND_INS[version]) as calls:
        for causal in (True, True, False, True, False):
            packed_attention(SimpleNamespace(is_causal=causal), *states, None, packed=layout_of([5, 3]))  # type: ignore[arg-type]
    assert calls == [CHECK, 8, 8, CHECK, 8, 8, 8]


def test_varlen_is_given_what_lies_anyhow_in_memory() -> None:
    """Rotated or split projections are no plain views; the kernel wants each head's values side by side."""
    lengths = [5, 3, 3]
    states = [part.bfloat16() for part in states_of(lengths, 4, 4)]
    strided = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in states]
    module: Any = SimpleNamespace(is_causal=False)
    with varlen_on_cpu(later) as calls:
        plain, _ = packed_attention(module, *states, None, packed=layout_of(lengths))
        found, _ = packed_attention(module, *strided, None, packed=layout_of(lengths))
    assert len(calls) == 3
    assert torch.equal(found, plain)


def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Forgets where texts begin."""
    query, cu_seqlens = args[0], args[3]
    whole = torch.tensor([0, len(query)], dtype=torch.int32, device=cu_seqlens.device)
    return later(*args[:3], whole, whole, len(query), len(query), num_splits=1, **kwargs)


def broken(*args: Any, num_splits: int = 0, window_size: Any = None, scale: Any = None) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@pytest.mark.parametrize(("call", "width"), [(wrong, 8), (broken, 8), (later, 12), (later, 264), (first, 12)])
def test_where_varlen_fails_or_disagrees_sdpa_serves(call: Any, width: int) -> None:
    lengths = [5, 3, 3]
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, sum(lengths), width, generator=draw).bfloat16() for _ in range(3)]
    with varlen_on_cpu(call) as calls:
        for _ in range(2):
            found, _ = packed_attention(
                SimpleNamespace(is_causal=False),  # type: ignore[arg-type]
                *states,
                None,
                packed=layout_of(lengths),
            )
    assert calls == [CHECK]
    expected = dense(*states, lengths, causal=False, window=None, scaling=None)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-2)


def test_a_torch_without_varlen_is_served() -> None:
    def missing() -> Any:
        raise ImportError("No module named 'torch.nn.attention.varlen'")

    states = [part.bfloat16() for part in states_of([5, 3], 2, 2)]
    module: Any = SimpleNamespace(is_causal=False)
    with varlen_on_cpu(later) as calls, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen", missing)
        found, _ = packed_attention(module, *states, None, packed=layout_of([5, 3]))
    assert calls == []
    expected = dense(*states, [5, 3], causal=False, window=None, scaling=None)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-2)


def test_running_out_of_memory_says_nothing_of_varlen() -> None:
    """It is raised, so that batches are halved, and varlen is tried again."""
    full = [True]

    def sometimes(*args: Any, num_splits: int, window_size: Any, enable_gqa: bool) -> torch.Tensor:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return later(*args, num_splits=num_splits, window_size=window_size, enable_gqa=enable_gqa)

    states = [part.bfloat16() for part in states_of([5, 3], 2, 2)]
    module: Any = SimpleNamespace(is_causal=False)
    with varlen_on_cpu(sometimes) as calls:
        with pytest.raises(torch.OutOfMemoryError):
            packed_attention(module, *states, None, packed=layout_of([5, 3]))
        packed_attention(module, *states, None, packed=layout_of([5, 3]))
    assert calls == [CHECK, CHECK, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_varlen_is_for_16_bits(dtype: torch.dtype) -> None:
    states = [part.to(dtype) for part in states_of([5, 3], 2, 2)]
    with varlen_on_cpu(later) as calls:
        packed_attention(SimpleNamespace(is_causal=False), *states, None, packed=layout_of([5, 3]))  # type: ignore[arg-type]
    assert calls == []


def test_the_installed_varlen_takes_what_it_is_given() -> None:
    """Shapes and arguments are right for the real one, which itself has no CPU kernel."""
    _, arguments = attention.varlen()
    assert arguments & {"is_causal", "window_size"}
    states = [part.bfloat16().to("meta") for part in states_of([5, 3], 4, 2)]
    layout = layout_of([5, 3])
    meta = Layout(layout.lengths, layout.runs, layout.cu_seqlens.to("meta"))
    for causal, window in itertools.product(
        (True, False), (None, 2) if "window_size" in arguments else (None,)
    ):
        found = attention.attention_varlen(*states, meta, None, causal, window)
        assert (found.shape, found.dtype) == ((1, 8, 4, 8), torch.bfloat16)


def test_registering_twice_is_harmless() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    register()
    register()
    assert AttentionInterface()[IMPLEMENTATION] is packed_attention
    assert AttentionMaskInterface()[IMPLEMENTATION](1, 2, anything=3) is None


# ---------------------------------------------------------------- few sizes


@given(st.integers(1, 70_000))
def test_filling_is_small_and_leaves_few_sizes(tokens: int) -> None:
    more = filling(tokens)
    assert 0 <= more < 128 and more <= max(15, tokens / 8)
    assert filling(tokens + more) == 0


def test_how_many_sizes_there_are() -> None:
    assert len({tokens + filling(tokens) for tokens in range(1, 4097)}) < 60
