"""Loading a backbone: what is refused, and on which device and in which dtype it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featcache.backbone.load import resolve_device, resolve_dtype
from featcache.backbone.model_files.find import find_model
from featcache.backbone.private_torch import cpu_capabilities
from featcache.errors import BackboneError, UsageError
from tests.support.stock import (
    assert_features,
    encoder,
    load,
    mixed,
    settings_of,
    stock,
)
from tests.support.text_families import build_family, worst_difference

Folder = Callable[[str], Path]


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "key",
    [
        "encoder.layer.1.attention.self.query.weight",
        "embeddings.word_embeddings.weight",
        "encoder.layer.2.output.LayerNorm.bias",
    ],
)
def test_load_backbone_refuses_missing_weights(bert: Path, key: str) -> None:
    change_weights(bert, lambda tensors: tensors.pop(key))
    with pytest.raises(BackboneError, match="lacks 1 of its weights") as caught:
        load(bert)
    assert key in str(caught.value)


def test_load_backbone_without_a_pooler(bert: Path, tiny: Folder) -> None:
    change_weights(bert, lambda tensors: [tensors.pop(key) for key in list(tensors) if "pooler" in key])
    texts = mixed()
    assert_features(encoder(load(bert))(texts).views, stock(tiny("bert")).matrix(texts), 3)


def test_load_backbone_of_a_model_with_a_head(bert: Path, tiny: Folder) -> None:
    """`BertForMaskedLM` checkpoints: a prefix before every name, and a head that is left out."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(bert)
    model.save_pretrained(bert)
    from safetensors.torch import load_file

    assert "bert.encoder.layer.0.output.dense.weight" in load_file(bert / "model.safetensors")
    texts = mixed()
    assert_features(encoder(load(bert))(texts).views, stock(tiny("bert")).matrix(texts), 3)


def test_load_backbone_of_a_language_model_in_another_model(tmp_path: Path) -> None:
    """Llama 4 keeps its language model with a head beside a tower for images."""
    backbone = load(build_family("llama4", tmp_path / "llama4"))
    assert type(backbone.model).__name__ == "Llama4TextModel"
    assert worst_difference(backbone) < 1e-5


def test_load_backbone_without_a_tokenizer(bert: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    with pytest.raises(BackboneError, match="has no tokenizer"):
        find_model(settings_of(bert))


def test_load_backbone_of_a_tokenizer_without_words(bert: Path) -> None:
    """tokenizer_config.json alone names a class but brings no vocabulary."""
    (bert / "tokenizer.json").unlink()
    with pytest.raises(BackboneError):
        load(bert)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_load_backbone_refuses_damaged_json(bert: Path, name: str, content: str) -> None:
    (bert / name).write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match="bert"):
        load(bert)


def test_load_backbone_without_config(bert: Path) -> None:
    (bert / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"no config\.json"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("keep", [0, 5, 1000, -1000])
def test_load_backbone_refuses_truncated_weights(bert: Path, keep: int) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BackboneError, match="cannot load bert") as caught:
        load(bert)
    assert "download" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"intermediate_size": 64},
        {"num_hidden_layers": 4},
        {"vocab_size": 1000},
        {"max_position_embeddings": 128},
        {"model_type": "electra"},
        {"model_type": "no-such-type"},
        {"num_attention_heads": 5},
    ],
    ids=str,
)
def test_load_backbone_refuses_a_config_of_other_weights(bert: Path, changes: dict[str, Any]) -> None:
    change_config(bert, **changes)
    with pytest.raises(BackboneError, match="bert"):
        load(bert)


def test_resolve_device_refuses_an_absent_device(tiny: Folder) -> None:
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (missing, "no-such-device"):
        with pytest.raises(UsageError, match=f"--device {device}") as caught:
            load(tiny("bert"), device=device)
        assert "--device cpu" in str(caught.value)


def test_resolve_device_and_dtype() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("float32", cpu) == "float32"
    native = {"avx512_bf16", "amx_bf16"} & cpu_capabilities()
    assert resolve_dtype("auto", cpu) == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [({"avx2"}, {"bfloat16"}), ({"avx2", "avx512_bf16"}, set()), ({"neon"}, {"bfloat16", "int8"})],
    ids=["avx2", "native", "arm"],
)
def test_a_dtype_that_is_emulated_is_noted(
    flags: set[str], emulated: set[str], tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.backbone.private_torch.cpu_capabilities", lambda: flags)
    for dtype in ("float32", "bfloat16", "int8"):
        notes = load(tiny("bert"), dtype=dtype).notes
        said = [f"only emulates {dtype}: float32" in note for note in notes]
        assert said == [True] * (dtype in emulated)


def test_load_backbone_is_silent_and_keeps_the_verbosity(
    bert: Path, tiny: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    change_weights(bert, lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}))
    logging.set_verbosity_info()
    try:
        capfd.readouterr()
        load(bert)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()
