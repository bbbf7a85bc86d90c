"""Decoders: a linear head of the last token in a stock model whose classifier has no bias."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import HeadError
from featcache.export.huggingface import export_huggingface
from featcache.heads.head import Head
from featcache.heads.scorers import Linear
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run
from tests.support.made_run import NAMES, TEXTS, made_run

Folder = Callable[[str], Path]
BATCH = [*TEXTS, "good 房间"]


def decoder_run(folder: Path, run: Path, *, bias: bool = True, **options: Any) -> Run:
    """A run with a `last/last` head; `bias=False`: its bias is the same for all labels."""
    made = made_run(folder, run, view="last/last", **options)
    if not bias:
        replace_head(made, Linear(made.head().scorer.weight, np.full(3, 0.7, np.float32)))
    return made


def replace_head(run: Run, scorer: Linear) -> None:
    head = run.head()
    changed = Head(scorer, head.label_names, head.view, head.encoder, "linear", temperature=head.temperature)
    changed.save(run.folder)


def batch_of_stock(folder: Path, side: str, multi_label: bool = False) -> np.ndarray:
    """Probabilities `[N, C]` of the exported model, all texts in one batch that is padded on `side`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(BATCH, padding=True, truncation=True, padding_side=side, return_tensors="pt")
    assert not inputs["attention_mask"].all()
    with torch.inference_mode():
        logits = model(**inputs).logits
    probabilities = torch.sigmoid(logits) if multi_label else torch.softmax(logits, 1)
    assert tuple(model.config.id2label.values()) == NAMES
    return np.asarray(probabilities)


@pytest.mark.parametrize(
    ("family", "bias", "sides"),
    [
        ("gpt2", True, ["right"]),  # positions are learned: padding on the left moves every word
        ("llama", False, ["right", "left"]),
        ("qwen3", False, ["right", "left"]),
        ("mistral", False, ["right", "left"]),
    ],
)
def test_a_decoder_gives_the_same_probabilities_in_padded_batches(
    family: str, bias: bool, sides: list[str], tiny: Folder, tmp_path: Path
) -> None:
    run = decoder_run(tiny(family), tmp_path / "run", bias=bias, temperature=1.7)
    made = export_huggingface(run, tmp_path / "model")
    assert made.difference < 1e-4
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    assert expected.std(axis=0).min() > 0.05  # the head does tell texts apart
    for side in sides:
        found = batch_of_stock(made.folder, side)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert ("padded on either side" in card) == (len(sides) == 2)
    assert json.loads((made.folder / "config.json").read_text(encoding="utf-8"))["pad_token_id"] == 0


def test_the_pipeline_pads_where_the_logits_stay(tiny: Folder, tmp_path: Path) -> None:
    """GPT-2's tokenizer is saved with the side on which padding changes nothing."""
    from transformers import pipeline

    run = decoder_run(tiny("gpt2"), tmp_path / "run")
    folder = export_huggingface(run, tmp_path / "model").folder
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    found = classify(BATCH, truncation=True, top_k=1, batch_size=len(BATCH))
    predicted = Predictor.from_run(run, device="cpu").predict(BATCH)
    assert [row[0]["label"] for row in found] == [one.label for one in predicted]


def test_export_of_a_multi_label_decoder(tiny: Folder, tmp_path: Path) -> None:
    """A sigmoid sees what all logits share: the whole bias is folded."""
    run = decoder_run(tiny("gpt2"), tmp_path / "run", thresholds=np.array([0.2, 0.5, 0.75]))
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    found = batch_of_stock(folder, "right", multi_label=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_trained_blocks_of_a_decoder_are_exported(tiny: Folder, tmp_path: Path) -> None:
    run = decoder_run(tiny("gpt2"), tmp_path / "run", tuned=True)
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    np.testing.assert_allclose(batch_of_stock(folder, "right"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_bias_has_no_place_where_the_final_norm_has_none(family: str, tiny: Folder, tmp_path: Path) -> None:
    run = decoder_run(tiny(family), tmp_path / "run")
    with pytest.raises(HeadError, match="no bias in its classifier") as caught:
        export_huggingface(run, tmp_path / "model")
    assert "--format onnx" in str(caught.value) and "RMSNorm" in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_bias_that_the_weights_cannot_give_is_refused(tiny: Folder, tmp_path: Path) -> None:
    """Two labels with the same weights differ by their bias alone."""
    run = decoder_run(tiny("gpt2"), tmp_path / "run")
    weight = run.head().scorer.weight.copy()
    weight[1] = weight[0]
    replace_head(run, Linear(weight, np.array([0.5, -0.5, 0.1], np.float32)))
    with pytest.raises(HeadError, match="depend on each other"):
        export_huggingface(run, tmp_path / "model")


def test_weights_that_add_up_to_zero_have_a_bias_up_to_a_constant(tiny: Folder, tmp_path: Path) -> None:
    """As logistic regression leaves them; softmax does not see what all labels share."""
    run = decoder_run(tiny("gpt2"), tmp_path / "run")
    weight = run.head().scorer.weight
    replace_head(run, Linear(weight - weight.mean(0), np.array([0.5, -0.2, 0.9], np.float32)))
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    np.testing.assert_allclose(batch_of_stock(folder, "right"), expected, rtol=0, atol=1e-5)


def set_tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_a_padding_token_that_ends_every_text_is_not_used(tiny: Folder, tmp_path: Path) -> None:
    """Embedding models of the Qwen kind end every text with the token that they pad with."""
    import shutil

    from tests.support.tiny import write_tokenizer

    folder = shutil.copytree(tiny("qwen3"), tmp_path / "qwen3")
    write_tokenizer(folder, limit=64)  # [CLS] text [SEP]
    set_tokenizer(folder, pad_token="[SEP]")
    run = decoder_run(folder, tmp_path / "run", bias=False)
    made = export_huggingface(run, tmp_path / "model").folder
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    assert config["pad_token_id"] != 3
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    for side in ("right", "left"):
        np.testing.assert_allclose(batch_of_stock(made, side), expected, rtol=0, atol=1e-5)


def test_a_tokenizer_without_a_padding_token_gets_one(tiny: Folder, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny("gpt2"), tmp_path / "gpt2")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "pad_token"}), encoding="utf-8"
    )
    run = decoder_run(folder, tmp_path / "run")
    made = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(BATCH)
    np.testing.assert_allclose(batch_of_stock(made, "right"), expected, rtol=0, atol=1e-5)
