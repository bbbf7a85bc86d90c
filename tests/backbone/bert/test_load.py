"""BERT without transformers: the same ids and the same bits, and its modelling code is not imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.backbone.bert.layers import BertModel
from featcache.backbone.encoder import Encoder
from featcache.backbone.load import load_backbone
from featcache.backbone.model import Backbone
from featcache.backbone.model_files.find import find_model
from featcache.settings import FeatureSettings
from tests.support.stock import lively, load, mixed, settings_of

Folder = Callable[[str], Path]
VIEWS = ("last/mean", "last/cls", "-2/max", "0/mean")
FAMILIES = ("bert", "roberta", "xlm-roberta")


def pair_of(folder: Path, dtype: str = "float32") -> tuple[Backbone, Backbone]:
    """The backbone without transformers and with it."""
    settings = settings_of(folder, dtype=dtype)
    return load(folder, dtype=dtype), load_backbone(settings, find_model(settings), stock=True)


def same_bits(own: Backbone, stock: Backbone, views: tuple[str, ...] = VIEWS, **changes: Any) -> bool:
    """Whether texts and pairs get the same vectors, and the same fingerprint."""
    features = FeatureSettings(views=views, storage="float32", **changes)
    encoders = [Encoder(backbone, features) for backbone in (own, stock)]
    texts = [*mixed(), "[MASK] 房间 [SEP]", "GOOD Book", "é"]
    found = [(encoder(texts), encoder(texts, texts[::-1])) for encoder in encoders]
    vectors = [[one.views[name] for one in pair for name in sorted(one.views)] for pair in found]
    equal = all(np.array_equal(a, b) for a, b in zip(*vectors, strict=True))
    return equal and encoders[0].document == encoders[1].document


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_bert_gives_the_same_bits(family: str, dtype: str, tiny: Folder, tmp_path: Path) -> None:
    own, stock = pair_of(lively(tiny(family), tmp_path / family), dtype)
    assert isinstance(own.model, BertModel)
    assert type(stock.model).__module__.startswith("transformers.")
    assert (own.packing, own.fused) == (stock.packing, stock.fused)
    assert (own.first_position, own.position_limit) == (stock.first_position, stock.position_limit)
    assert own.runs_pooled_alone
    assert same_bits(own, stock)
    assert same_bits(own, stock, ("last/cls",), lower_case=True, prompt="the good ")
    assert same_bits(own, stock, ("last/mean",), max_length=200, extend_positions="interpolate")


def test_load_bert_in_padded_batches(tiny: Folder, tmp_path: Path) -> None:
    own, stock = pair_of(lively(tiny("roberta"), tmp_path / "roberta"))
    for backbone in (own, stock):
        backbone.use_attention(None)
        backbone.packing = "padded"
    texts = mixed()
    features = FeatureSettings(views=VIEWS, storage="float32")
    found = [Encoder(each, features)(texts).views for each in (own, stock)]
    for name, vectors in found[0].items():
        np.testing.assert_allclose(vectors, found[1][name], rtol=0, atol=1e-5)


def test_load_bert_of_pickled_weights_with_a_prefix(bert: Path, mirror: Path) -> None:
    from safetensors.torch import load_file

    path = bert / "model.safetensors"
    tensors = {f"bert.{name}": values for name, values in load_file(path).items()}
    torch.save(tensors, bert / "pytorch_model.bin")
    path.unlink()
    own, stock = pair_of(bert)
    assert isinstance(own.model, BertModel)
    assert same_bits(own, stock)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"layer_norm_eps": None},
    ],
    ids=str,
)
def test_load_bert_leaves_what_it_does_not_know_to_transformers(bert: Path, changes: dict[str, Any]) -> None:
    path = bert / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), "utf-8")
    assert not isinstance(load(bert).model, BertModel)
