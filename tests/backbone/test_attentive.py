"""Attentive pooling: what queries pool is what the formula says, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.backbone import attentive
from featcache.backbone.attentive import Attention, pool_layers
from featcache.backbone.encoder import Encoder
from featcache.backbone.packing import PackedLayout
from featcache.errors import HeadError, UsageError
from featcache.settings import FeatureSettings
from tests.support.stock import loaded, mixed

CPU = torch.device("cpu")


def learned(queries: int, width: int, seed: int = 0) -> Attention:
    draw = np.random.default_rng(seed)
    return Attention.of(
        draw.normal(size=(queries, width)).astype(np.float32), draw.normal(size=width).astype(np.float32)
    )


def by_formula(states: np.ndarray, attention: Attention) -> np.ndarray:
    """One text `[t, H]`: number j is averaged by the softmax of the query `j * M // H`."""
    queries, center = attention.queries.double().numpy(), attention.center.double().numpy()
    scores = np.exp(states @ queries.T - (states @ queries.T).max(axis=0))
    shares = scores / scores.sum(axis=0)
    count, width = queries.shape
    return np.array([shares[:, j * count // width] @ states[:, j] for j in range(width)]) - center


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), queries=st.integers(1, 7))
def test_pooling_is_the_formula_for_each_text(lengths: list[int], queries: int) -> None:
    draw, width = np.random.default_rng(sum(lengths)), 7
    texts = [draw.normal(size=(length, width)) * 3 for length in lengths]
    states = torch.from_numpy(np.concatenate(texts)).float()
    attention = learned(queries, width)
    found = attention.pool(states, PackedLayout.of(np.array(lengths), CPU))
    np.testing.assert_allclose(found, [by_formula(text, attention) for text in texts], atol=1e-4)


def test_large_scores_do_not_overflow() -> None:
    attention = Attention(torch.full((1, 2), 1e4), torch.zeros(2))
    states = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    assert attention.pool(states, PackedLayout.of(np.array([2]), CPU)).tolist() == [[5.0, 6.0]]


def test_the_encoder_pools_each_layer_by_its_queries(tiny: Callable[[str], Path]) -> None:
    backbone, texts = loaded(tiny("bert")), mixed((5, 1, 9, 9))
    attention = {"last/attentive": learned(4, 32), "-3/attentive": learned(2, 32, 1)}
    features = FeatureSettings(views=tuple(attention), storage="float32")
    made = Encoder(backbone, features, attention=attention)
    found = made(texts).views
    tokens = made.tokenize(texts)
    for view, layer in (("last/attentive", 3), ("-3/attentive", 1)):
        for row in range(len(texts)):
            states = backbone.states(tokens.batch(np.array([row])), [layer])[0][layer]
            wanted = by_formula(states.double().numpy(), attention[view])
            np.testing.assert_allclose(found[view][row], wanted, atol=1e-4)


def test_an_attentive_view_cannot_be_extracted_without_a_head(tiny: Callable[[str], Path]) -> None:
    backbone, features = loaded(tiny("bert")), FeatureSettings(views=("last/attentive",))
    with pytest.raises(UsageError, match="pooled by what a head has learnt") as error:
        Encoder(backbone, features)
    assert "--head attentive" in str(error.value.hint)
    with pytest.raises(UsageError, match="is no view"):
        Encoder(backbone, FeatureSettings(views=("last/attentive-normalized",)))
    with pytest.raises(HeadError, match="states of 16 numbers"):
        Encoder(backbone, features, attention={"last/attentive": learned(2, 16)})
    windows = FeatureSettings(views=("last/attentive",), long_text="chunks", overlap=8)
    with pytest.raises(UsageError, match="not over windows"):
        Encoder(backbone, windows, attention={"last/attentive": learned(2, 32)})


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), queries=st.integers(1, 7))
@settings(max_examples=20)
def test_gradients_of_several_layers_are_those_of_the_formula(lengths: list[int], queries: int) -> None:
    draw, width, layers = torch.Generator().manual_seed(sum(lengths)), 7, 3
    states = torch.randn(layers, sum(lengths), width, generator=draw).bfloat16()
    learnt = torch.randn(layers, queries, width, generator=draw).requires_grad_()
    given_back = torch.randn(layers, len(lengths), width, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attentive, "PIECE", 64)  # several pieces
        patch.setattr(attentive, "PADDED", 3.0)  # of unlike lengths
        pooled = pool_layers(states, PackedLayout.of(np.array(lengths), CPU), learnt)
    (pooled * given_back).sum().backward()
    exact = learnt.detach().double().requires_grad_()
    wanted = torch.stack(
        [
            torch.stack([_by_formula(text, queries) for text in layer.double().split(lengths)])
            for layer, queries in zip(states, exact, strict=True)
        ]
    )
    (wanted * given_back).sum().backward()
    assert learnt.grad is not None and exact.grad is not None
    torch.testing.assert_close(pooled.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learnt.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)


def _by_formula(text: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """See `by_formula`, without a center, for autograd."""
    shares = (text @ queries.T).softmax(0)
    return (shares[:, torch.arange(text.shape[1]) * len(queries) // text.shape[1]] * text).sum(0)
