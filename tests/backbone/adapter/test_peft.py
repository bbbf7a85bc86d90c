"""Adapters as PEFT saves them, merged: the states of PEFT's own forward pass. Needs `pip install peft`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from featcache.backbone.model_files.adapter.files import READ, WITHOUT_EFFECT, find_adapter
from featcache.errors import BackboneError
from tests.support.stock import encoder, load, mixed

peft = pytest.importorskip("peft")

Tiny = Callable[[str], Path]
TEXTS = mixed((9, 3, 30))
TARGETS = {  # family: modules of its attention and of its feed-forward layers
    "bert": ["query", "value", "dense"],
    "distilbert": ["q_lin", "v_lin", "lin1", "lin2"],
    "gpt2": ["c_attn", "c_proj"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "root of the rank": {"use_rslora": True},
    "patterns": {"rank_pattern": {}, "alpha_pattern": {}},  # filled by family
    "gaussian": {"init_lora_weights": "gaussian"},
}
REFUSED = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


def saved(model: Any, folder: Path, targets: list[str], **settings: Any) -> Any:
    """The model with random LoRA weights, as PEFT runs it; its adapter is saved in `folder`."""
    config = peft.LoraConfig(r=4, lora_alpha=7, lora_dropout=0.1, target_modules=targets, **settings)
    made = peft.get_peft_model(model.eval(), config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    made.save_pretrained(folder)
    return made.eval()


def pooled(model: Any, folder: Path) -> np.ndarray:
    """The mean of the last states of each text, alone; float32 `[N, H]`."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    with torch.no_grad():
        for text in TEXTS:
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            found.append(states[-1][0].mean(0).numpy())
    return np.stack(found)


def features(folder: Path, adapter: Path | None = None) -> np.ndarray:
    backbone = load(folder, adapter=None if adapter is None else str(adapter))
    return encoder(backbone, "last/mean")(TEXTS).views["last/mean"]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", TARGETS)
def test_the_vectors_are_those_of_peft(
    family: str, settings: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    folder = tiny(family)
    targets = TARGETS[family]
    patterns = {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[1]: 3}}
    own = settings | {name: patterns[name] for name in settings if name in patterns}
    own |= {"fan_in_fan_out": family == "gpt2"}
    model = saved(AutoModel.from_pretrained(folder), tmp_path / "a", targets, **own)
    found = features(folder, tmp_path / "a")
    difference = np.abs(found - pooled(model, folder)).max()
    assert difference < 2e-6 and np.abs(found - features(folder)).max() > 0.01


def test_an_adapter_of_a_classifier_with_its_head(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("bert")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    made = saved(model, tmp_path / "a", TARGETS["bert"], task_type="SEQ_CLS")
    assert np.abs(features(folder, tmp_path / "a") - pooled(made, folder)).max() < 2e-6


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(name: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("bert")
    saved(AutoModel.from_pretrained(folder), tmp_path / "a", ["query"], **REFUSED[name])
    with pytest.raises(BackboneError, match=name):
        features(folder, tmp_path / "a")


def test_a_setting_that_peft_writes_is_known_or_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    """Those of a plain adapter are known; others have no value there, and are refused with one."""
    saved(AutoModel.from_pretrained(tiny("bert")), tmp_path, ["query"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert find_adapter(str(tmp_path))
    others = config.keys() - {*READ, *WITHOUT_EFFECT}
    assert "trainable_token_indices" in others
    for name in others:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {name: [1]}))
        with pytest.raises(BackboneError, match=f"with {name} = "):
            find_adapter(str(tmp_path))
