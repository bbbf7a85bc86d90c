"""Which views `depth` stands for, by a model's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featcache.backbone.model_files.depth_views import depth_views
from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import UsageError


def files(folder: Path, **config: Any) -> ModelFiles:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ModelFiles("a-model", folder, None, {})


@pytest.mark.parametrize(
    ("blocks", "layers"),
    [
        (24, ["last", "-5", "-9", "-13"]),
        (12, ["last", "-3", "-5", "-7"]),
        (6, ["last", "-2", "-3", "-4"]),
        (2, ["last", "-2"]),
        (1, ["last"]),
    ],
)
def test_depth_is_mean_and_first_token_of_layers_down_to_the_middle(
    tmp_path: Path, blocks: int, layers: list[str]
) -> None:
    found = depth_views(files(tmp_path, num_hidden_layers=blocks, architectures=["BertForMaskedLM"]))
    assert found == tuple(f"{layer}/{pooling}" for layer in layers for pooling in ("cls", "mean"))


def test_depth_of_a_decoder_takes_the_last_token(tmp_path: Path) -> None:
    found = depth_views(files(tmp_path, n_layer=2, architectures=["GPT2LMHeadModel"]))
    assert found == ("last/last", "last/mean", "-2/last", "-2/mean")


def test_depth_of_a_nested_config(tmp_path: Path) -> None:
    assert depth_views(files(tmp_path, text_config={"num_hidden_layers": 1})) == ("last/cls", "last/mean")


def test_depth_without_a_number_of_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no number of layers"):
        depth_views(files(tmp_path, hidden_size=8))
