"""`varlen_attn` by a stand-in for CPUs; what it cannot do is done by SDPA, with the same result."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.attention import varlen as varlen_module
from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.attention.sdpa import Scoring
from featcache.backbone.packing import PackedLayout
from tests.support.packed_texts import SOME, dense, layout_of, states_of
from tests.support.varlen_stand_in import STAND_INS, first, later, varlen_on_cpu

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


def test_attention_varlen_takes_any_strides() -> None:
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
def test_sdpa_is_used_if_varlen_fails_or_disagrees(call: Any, width: int) -> None:
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


def test_sdpa_is_used_by_a_torch_without_varlen() -> None:
    def missing() -> Any:
        raise ImportError("No module named 'torch.nn.attention.varlen'")

    states = [part.bfloat16() for part in states_of([5, 3], 2, 2)]
    module: Any = SimpleNamespace(is_causal=False)
    with varlen_on_cpu(later) as calls, pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_module, "varlen", missing)
        found, _ = packed_attention(module, *states, None, packed=layout_of([5, 3]))
    assert calls == []
    expected = dense(*states, [5, 3], causal=False, window=None, scaling=None)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-2)


def test_varlen_agrees_raises_when_memory_runs_out() -> None:
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
def test_runs_varlen_only_in_16_bits(dtype: torch.dtype) -> None:
    states = [part.to(dtype) for part in states_of([5, 3], 2, 2)]
    with varlen_on_cpu(later) as calls:
        packed_attention(SimpleNamespace(is_causal=False), *states, None, packed=layout_of([5, 3]))  # type: ignore[arg-type]
    assert calls == []


def test_attention_varlen_suits_the_installed_torch() -> None:
    """Shapes and arguments are right for the real one, which itself has no CPU kernel."""
    _, arguments = varlen_module.varlen()
    assert arguments & {"is_causal", "window_size"}
    states = [part.bfloat16().to("meta") for part in states_of([5, 3], 4, 2)]
    layout = layout_of([5, 3])
    meta = PackedLayout(layout.lengths, layout.runs, layout.cu_seqlens.to("meta"))
    for causal, window in itertools.product(
        (True, False), (None, 2) if "window_size" in arguments else (None,)
    ):
        found = varlen_module.attention_varlen(*states, meta, Scoring(None, causal, window))
        assert (found.shape, found.dtype) == ((1, 8, 4, 8), torch.bfloat16)
