"""Adapters: the features of a model with an adapter are those of the model it was merged into by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featcache.backbone.model_files.find import find_model
from featcache.errors import BackboneError, UsageError
from featcache.settings import BackboneSettings
from tests.support.adapters import (
    ALPHA,
    RANK,
    Tensors,
    merged_model,
    random_matrices,
    tensors_of,
    write_adapter,
)
from tests.support.pickled import RunsCommand
from tests.support.static_models import table_of, write_model2vec
from tests.support.stock import encoder, load, mixed

Tiny = Callable[[str], Path]
TEXTS = mixed((9, 3, 30))
QUERY = "encoder.layer.{}.attention.self.query"
MODULES = [QUERY.format(0), QUERY.format(2), "encoder.layer.1.output.dense"]
SCALE = ALPHA / RANK
A, B = "lora_A.weight", "lora_B.weight"


def features(model: Path, adapter: Path | None = None, **changes: Any) -> np.ndarray:
    settings = {"adapter": None if adapter is None else str(adapter)} | changes
    return encoder(load(model, **settings), "last/mean")(TEXTS).views["last/mean"]


def products(matrices: Any, scale: float = SCALE) -> Tensors:
    return {f"{name}.weight": scale * (pair[1] @ pair[0]) for name, pair in matrices.items()}


def refused(model: Path, adapter: Path, *words: str) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        features(model, adapter)
    assert caught.value.hint
    for word in words:
        assert word in caught.value.what, caught.value.what
    return caught.value


# --- merged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "bert.", "deberta.bert."])
def test_an_adapter_of_a_bare_model_or_of_one_with_a_head(tiny: Tiny, tmp_path: Path, prefix: str) -> None:
    model, matrices = tiny("bert"), random_matrices(tiny("bert"), MODULES)
    adapter = write_adapter(tmp_path / "a", tensors_of(matrices, prefix))
    merged = merged_model(model, tmp_path / "m", products(matrices))
    found = features(model, adapter)
    np.testing.assert_allclose(found, features(merged), atol=1e-6)
    assert np.abs(found - features(model)).max() > 0.01


def test_by_the_modelling_code_of_transformers(tiny: Tiny, tmp_path: Path) -> None:
    names = ["layers.0.self_attn.q_proj", "layers.2.mlp.down_proj"]
    model, matrices = tiny("llama"), random_matrices(tiny("llama"), names)
    adapter = write_adapter(tmp_path / "a", tensors_of(matrices, "model."))
    merged = merged_model(model, tmp_path / "m", products(matrices))
    np.testing.assert_allclose(features(model, adapter), features(merged), atol=1e-6)


def test_weights_that_lie_the_other_way_round(tiny: Tiny, tmp_path: Path) -> None:
    """GPT-2's layers have `[in, out]`; their product is turned, whatever `fan_in_fan_out` says."""
    model, name = tiny("gpt2"), "h.1.attn.c_attn"
    weight = load_file(model / "model.safetensors")[f"{name}.weight"]
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(RANK, len(weight), generator=draw), torch.randn(weight.shape[1], RANK)
    adapter = write_adapter(tmp_path / "a", tensors_of({name: (first, second)}, "transformer."))
    merged = merged_model(model, tmp_path / "m", {f"{name}.weight": SCALE * (second @ first).T})
    np.testing.assert_allclose(features(model, adapter), features(merged), rtol=1e-4, atol=1e-5)


def test_embeddings_and_whole_weights(tiny: Tiny, tmp_path: Path) -> None:
    model, matrices = tiny("bert"), random_matrices(tiny("bert"), MODULES[:1])
    words, norm = "embeddings.word_embeddings", "encoder.layer.1.output.LayerNorm"
    weights = load_file(model / "model.safetensors")
    rows, width = weights[f"{words}.weight"].shape
    first, second = 0.1 * torch.randn(RANK, rows), torch.randn(width, RANK)
    before = "base_model.model.bert."
    adapter = write_adapter(
        tmp_path / "a",
        {
            **tensors_of(matrices, "bert."),
            f"{before}{words}.lora_embedding_A": first,
            f"{before}{words}.lora_embedding_B": second,
            f"{before}{norm}.weight": torch.full((width,), 3.0),
            "base_model.model.classifier.weight": torch.ones(2, width),
        },
        modules_to_save=["classifier", "LayerNorm"],
    )
    added = products(matrices) | {f"{words}.weight": SCALE * (second @ first).T}
    added[f"{norm}.weight"] = 3 - weights[f"{norm}.weight"]
    merged = merged_model(model, tmp_path / "m", added)
    np.testing.assert_allclose(features(model, adapter), features(merged), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"use_rslora": True}, [ALPHA / math.sqrt(RANK)] * 3),
        ({"alpha_pattern": {"layer.2.attention.self.query": 6}}, [SCALE, 6 / RANK, SCALE]),
        ({"alpha_pattern": {"query": 30, "dense": 3}, "rank_pattern": {"query": 3}}, [10, 10, 1]),
        ({"lora_alpha": 1.5}, [0.5] * 3),
    ],
)
def test_scales(tiny: Tiny, tmp_path: Path, settings: dict[str, Any], scales: list[float]) -> None:
    model, matrices = tiny("bert"), random_matrices(tiny("bert"), MODULES)
    adapter = write_adapter(tmp_path / "a", tensors_of(matrices, "bert."), **settings)
    added = {
        f"{name}.weight": scale * (pair[1] @ pair[0])
        for (name, pair), scale in zip(matrices.items(), scales, strict=True)
    }
    merged = merged_model(model, tmp_path / "m", added)
    np.testing.assert_allclose(features(model, adapter), features(merged), atol=1e-6)


def test_pickled_weights_are_read_without_running_them(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(random_matrices(tiny("bert"), MODULES))
    adapter = write_adapter(tmp_path / "a", tensors)
    found = features(tiny("bert"), adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    np.testing.assert_array_equal(features(tiny("bert"), adapter), found)
    torch.save({"x": RunsCommand(tmp_path / "trace")}, adapter / "adapter_model.bin")
    refused(tiny("bert"), adapter, "is refused")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_compute_types(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    model, matrices = tiny("bert"), random_matrices(tiny("bert"), MODULES)
    adapter = write_adapter(tmp_path / "a", tensors_of(matrices))
    merged = merged_model(model, tmp_path / "m", products(matrices))
    found, wanted = features(model, adapter, dtype=dtype), features(merged, dtype=dtype)
    assert np.abs(found - wanted).max() < 0.1 < np.abs(found - features(model, dtype=dtype)).max()


# --- identity and notes -------------------------------------------------------------------------


def test_the_fingerprint_has_the_bytes_of_both_files(tiny: Tiny, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", tensors_of(random_matrices(tiny("bert"), MODULES)))

    def document() -> Any:
        return encoder(load(tiny("bert"), adapter=str(adapter)), "last/mean").document

    first = document()
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(first.files)
    plain = encoder(load(tiny("bert")), "last/mean").document
    assert plain.files == {name: sha for name, sha in first.files.items() if "/" not in name}
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 13}))
    assert document().files != first.files


def test_what_is_not_used_is_said(tiny: Tiny, tmp_path: Path) -> None:
    tensors = tensors_of(random_matrices(tiny("bert"), MODULES), "bert.") | {
        "base_model.model.classifier.dense.weight": torch.ones(2, 2),
        "base_model.model.bert.pooler.dense.lora_A.weight": torch.ones(RANK, 32),
        "base_model.model.bert.pooler.dense.lora_B.weight": torch.ones(32, RANK),
    }
    adapter = write_adapter(tmp_path / "a", tensors, base_model_name_or_path="someone/other-bert")
    notes = encoder(load(tiny("bert"), adapter=str(adapter)), "last/mean").notes
    assert any("trained on someone/other-bert" in note for note in notes)
    assert any("classifier, pooler is not used" in note for note in notes)


def test_the_encoder_of_a_model_with_two_parts(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    from tests.support.tiny import VOCABULARY, write_tokenizer

    torch.manual_seed(0)
    config = T5Config(vocab_size=len(VOCABULARY), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    T5Model(config).save_pretrained(tmp_path / "t5")
    write_tokenizer(tmp_path / "t5", decoder=True)
    name = "block.0.layer.0.SelfAttention.q"
    matrices = random_matrices(tmp_path / "t5", [f"encoder.{name}", f"decoder.{name}"])
    adapter = write_adapter(tmp_path / "a", tensors_of(matrices))
    merged = merged_model(tmp_path / "t5", tmp_path / "m", products(matrices))
    np.testing.assert_allclose(features(tmp_path / "t5", adapter), features(merged), atol=1e-5)


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "of the kind 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"made_up_later": True}, "made_up_later"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "names of modules, not patterns"),
        ({"alpha_pattern": 3}, "alpha_pattern"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_alpha": 1e400}, "lora_alpha"),
    ],
)
def test_kinds_that_cannot_be_merged(tiny: Tiny, tmp_path: Path, settings: Any, words: str) -> None:
    tensors = tensors_of(random_matrices(tiny("bert"), MODULES))
    refused(tiny("bert"), write_adapter(tmp_path / "a", tensors, **settings), words)


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{QUERY.format(9)}.{A}": (3, 32), f"{QUERY.format(9)}.{B}": (32, 3)}, "fits no"),
        ({f"{QUERY.format(1)}.{A}": (3, 32)}, "one matrix"),
        ({f"{QUERY.format(1)}.{A}": (3, 31), f"{QUERY.format(1)}.{B}": (32, 3)}, "[32, 31]"),
        ({f"{QUERY.format(1)}.{A}": (2, 32), f"{QUERY.format(1)}.{B}": (32, 3)}, "multiplied"),
        ({f"{QUERY.format(0)}.lora_magnitude_vector": (32,)}, "no part of a LoRA adapter"),
        ({"embeddings.word_embeddings.weight": (7, 32)}, "is for a weight [7, 32]"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    tiny: Tiny, tmp_path: Path, changes: dict[str, tuple[int, ...]], words: str
) -> None:
    tensors = tensors_of(random_matrices(tiny("bert"), MODULES))
    tensors |= {f"base_model.model.{name}": torch.ones(shape) for name, shape in changes.items()}
    refused(tiny("bert"), write_adapter(tmp_path / "a", tensors), words)


@pytest.mark.bad_input("wrong vectors")
def test_folders_that_are_no_adapters(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("bert")
    refused(model, tmp_path / "none", "no folder")
    refused(model, model, "no adapter's folder")
    tensors = tensors_of(random_matrices(tiny("llama"), ["layers.0.self_attn.q_proj"]))
    refused(model, write_adapter(tmp_path / "other", tensors), "no weight of it fits")
    adapter = write_adapter(tmp_path / "a", tensors_of(random_matrices(model, MODULES)))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    refused(model, adapter, "cannot read")
    (adapter / "adapter_config.json").write_text("[")
    refused(model, adapter, "cannot read")


@pytest.mark.bad_input("wrong vectors")
def test_weights_that_change_while_they_are_loaded(tiny: Tiny, tmp_path: Path) -> None:
    from featcache.backbone.load import load_backbone

    adapter = write_adapter(tmp_path / "a", tensors_of(random_matrices(tiny("bert"), MODULES)))
    settings = BackboneSettings(model=str(tiny("bert")), device="cpu", adapter=str(adapter))
    files = find_model(settings)
    write_adapter(adapter, tensors_of(random_matrices(tiny("bert"), MODULES, seed=1)))
    with pytest.raises(BackboneError, match="changed while it was read"):
        load_backbone(settings, files)


def test_a_static_model_takes_no_adapter(tiny: Tiny, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", tensors_of(random_matrices(tiny("bert"), MODULES)))
    folder = write_model2vec(tmp_path / "m", table_of())
    with pytest.raises(UsageError, match="table of token vectors"):
        load(folder, adapter=str(adapter))
