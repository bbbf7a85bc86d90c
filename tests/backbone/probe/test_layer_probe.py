"""What the first run of a model finds out: layers that can be read, and why a model cannot encode texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.errors import BackboneError, UsageError
from tests.support.stock import assert_features, encoder, load, mixed, stock
from tests.support.text_families import build_family, worst_difference

NOISE = 1e-5


@pytest.mark.parametrize(
    "family",
    ["ibert", "layoutlm", "longformer", "squeezebert", "openai-gpt", "luke", "xlm", "xlnet", "big_bird"],
)
def test_vectors_are_those_of_the_stock_model(family: str, tmp_path: Path) -> None:
    folder = build_family(family, tmp_path / family)
    texts = mixed((30, 1, 7, 44, 7, 3))
    views = ("last/mean", "last/cls", "0/mean")
    found = encoder(load(folder), *views)(texts).views
    expected = stock(folder).matrix(texts, views=views)
    assert_features(found, expected, 2)


@pytest.mark.parametrize("family", ["t5", "mt5", "bart"])
def test_the_encoder_of_an_encoder_decoder_is_used(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = build_family(family, tmp_path / family)
    texts = mixed((20, 1, 7))
    found = encoder(load(folder), "last/mean")(texts).views["last/mean"]
    whole = AutoModel.from_pretrained(folder).eval().get_encoder()
    tokens = stock_tokens(folder, texts)
    with torch.inference_mode():
        wanted = [whole(input_ids=ids).last_hidden_state[0].mean(0).numpy() for ids in tokens]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=1e-4)


def stock_tokens(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]


@pytest.mark.parametrize("family", ["clip", "chinese_clip"])
def test_the_text_tower_beside_an_image_tower_is_used(family: str, tmp_path: Path) -> None:
    backbone = load(build_family(family, tmp_path / family))
    assert not any("vision" in name for name, _ in backbone.model.named_parameters())
    assert worst_difference(backbone) < NOISE


def test_canine_has_states_of_characters_at_its_last_layer_alone(tmp_path: Path) -> None:
    backbone = load(build_family("canine", tmp_path / "canine"))
    assert backbone.packing == "equal lengths"
    assert worst_difference(backbone) < NOISE  # a text of three characters among them
    with pytest.raises(UsageError, match="last layer alone"):
        encoder(backbone, "-2/mean")


def test_xmod_says_that_it_needs_a_language(tmp_path: Path) -> None:
    folder = build_family("xmod", tmp_path / "xmod")
    with pytest.raises(BackboneError, match="cannot encode texts") as caught:
        load(folder)
    assert "default_language" in str(caught.value)
    backbone = load(build_family("xmod", tmp_path / "english", default_language="en_XX"))
    assert worst_difference(backbone) < NOISE


def test_a_model_that_needs_more_than_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot encode texts: IndexError: too many indices"):
        load(build_family("tapas", tmp_path / "tapas"))


def test_a_model_that_cannot_compute_in_16_bits_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="BFloat16") as caught:
        load(build_family("fnet", tmp_path / "fnet"), dtype="bfloat16")
    assert "--dtype float32" in str(caught.value)


def test_big_bird_attends_to_all_tokens_at_every_length(tmp_path: Path) -> None:
    """Its own code changes over to sparse attention by the longest text of a batch, and back for good."""
    backbone = load(build_family("big_bird", tmp_path / "bird", block_size=4, num_random_blocks=1))
    assert backbone.model.attention_type == "original_full"
    assert worst_difference(backbone) < NOISE  # with texts longer than its limit of 28 tokens


def test_texts_longer_than_a_window_of_the_model_itself(tmp_path: Path) -> None:
    """Reformer pads such texts to a multiple of its chunks; its random numbers need a seed."""
    with pytest.raises(BackboneError, match="other states each time") as caught:
        load(build_family("reformer", tmp_path / "random"))
    assert "hash_seed" in str(caught.value)
    backbone = load(build_family("reformer", tmp_path / "seeded", hash_seed=1))
    assert backbone.packing == "equal lengths"
    assert worst_difference(backbone) < NOISE
