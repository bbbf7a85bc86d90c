"""Exported models, loaded back by stock transformers, say what the run's own predictor says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import BackboneError, DiskError, FeatcacheError, HeadError, UsageError
from featcache.export import huggingface as hf_export
from featcache.export import stock_heads
from featcache.export.huggingface import export_huggingface
from featcache.heads.head import Head
from featcache.heads.scorers import Linear, Mlp
from featcache.prediction.predictor import Predictor
from tests.support.made_run import NAMES, TEXTS, made_run
from tests.support.pickled import pickled
from tests.support.stock import encoder, load

FAMILIES = ("bert", "albert", "roberta", "xlm-roberta", "distilbert", "electra")


def said(folder: Path, **options: Any) -> np.ndarray:
    """Probabilities `[N, C]` by the stock pipeline, in the order of NAMES."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu")
    found = [classify(text, truncation=True, top_k=None, **options) for text in TEXTS]
    return np.array([[{one["label"]: one["score"] for one in row}[name] for name in NAMES] for row in found])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_pipeline_gives_the_same_probabilities(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    run = made_run(tiny(family), tmp_path / "run", temperature=1.7)
    made = export_huggingface(run, tmp_path / "model")
    assert made.difference < 1e-4 and made.compared == len(hf_export.SAMPLES)
    expected = Predictor.from_run(run, device="cpu").predict_proba(TEXTS)
    np.testing.assert_allclose(said(made.folder), expected, rtol=0, atol=1e-5)
    assert expected.std(axis=0).min() > 0.05  # the head does tell texts apart


def test_the_exported_model_gives_the_logits_of_the_head(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = made_run(tiny("bert"), tmp_path / "run", temperature=0.5)
    folder = export_huggingface(run, tmp_path / "model").folder
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**inputs).logits.numpy()
    features = encoder(load(tiny("bert")), "last/cls")(TEXTS).views["last/cls"]
    head = run.head()
    np.testing.assert_allclose(found, head.logits(features) / 0.5, rtol=0, atol=1e-4)
    assert tuple(model.config.id2label.values()) == NAMES


def test_prompt_and_length_are_in_the_tokenizer(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run", prompt="very good: ", max_length=20)
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(TEXTS)
    np.testing.assert_allclose(said(folder), expected, rtol=0, atol=1e-5)


def test_export_of_a_multi_label_head(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("distilbert"), tmp_path / "run", thresholds=np.array([0.2, 0.5, 0.75]))
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(TEXTS)
    np.testing.assert_allclose(said(folder), expected, rtol=0, atol=1e-5)
    assert abs(expected.sum(1) - 1).max() > 0.1  # a sigmoid each
    assert "好评/good (predicted from 0.7500 on)" in (folder / "README.md").read_text(encoding="utf-8")


def test_trained_blocks_are_exported(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run", tuned=True)
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(TEXTS)
    np.testing.assert_allclose(said(folder), expected, rtol=0, atol=1e-5)
    plain = made_run(tiny("bert"), tmp_path / "plain")
    other = Predictor.from_run(plain, device="cpu").predict_proba(TEXTS)
    assert abs(other - expected).max() > 0.05  # the blocks do change what is said


def test_a_backbone_with_pickled_weights_is_exported(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(pickled(tiny("bert"), tmp_path / "bin"), tmp_path / "run")
    folder = export_huggingface(run, tmp_path / "model").folder
    expected = Predictor.from_run(run, device="cpu").predict_proba(TEXTS)
    np.testing.assert_allclose(said(folder), expected, rtol=0, atol=1e-5)
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))


def test_export_refuses_a_prompt_for_pairs(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A normalizer would put it before both texts."""
    run = made_run(tiny("bert"), tmp_path / "run", prompt="very good: ", pairs=True)
    with pytest.raises(HeadError, match="before both texts"):
        export_huggingface(run, tmp_path / "model")


def test_export_refuses_folders_that_are_in_use(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    for folder, words in ((run.folder, "the run itself"), (tmp_path, "of its own"), (Path(), "of its own"),
                          (tmp_path / "file", "is a file")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            export_huggingface(run, folder, force=True)
    assert (run.folder / "head.json").is_file()
    with pytest.raises(DiskError, match="cannot write"):
        export_huggingface(run, tmp_path / "file" / "model")


def test_the_model_card(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run", temperature=1.25)
    card = (export_huggingface(run, tmp_path / "model").folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\npipeline_tag: text-classification\n")
    assert "| test | 0.8765 |" in card and "| validation | 0.9000 | 0.8900 |" in card
    settings = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert settings["temperature"] == 1.25 and settings["rows"] == {"train": 60}
    assert settings["encoder"]["max_length"] == 64


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("bert", {"view": "last/mean"}, "last/mean"),
        ("bert", {"view": "-2/cls"}, "-2/cls"),
        ("modernbert", {}, "cannot hold"),
        ("llama", {}, "classifies the last token"),
        ("gpt2", {}, "classifies the last token"),
        ("bert", {"view": "last/last"}, "classifies the first token"),
        ("bert", {"scorer": "mlp"}, r"mlp head .*\n--format onnx holds it"),
        ("electra", {"scorer": "wide"}, "too many"),
    ],
)
def test_export_refuses_what_no_stock_model_can_do(
    family: str, options: dict[str, Any], words: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    one = np.ones(3, np.float32)
    if options.get("scorer") == "mlp":
        options = {
            "scorer": Mlp(
                np.ones((4, 32), np.float32), np.ones(4, np.float32), np.ones((3, 4), np.float32), one
            )
        }
    elif options.get("scorer") == "wide":
        names = tuple(map(str, range(17)))
        run = made_run(tiny(family), tmp_path / "run")
        head = run.head()
        wide = Linear(np.ones((17, 32), np.float32), np.ones(17, np.float32))
        Head(wide, names, head.view, head.encoder, "linear").save(tmp_path / "run")
        with pytest.raises(HeadError, match=words):
            export_huggingface(run, tmp_path / "model")
        return
    with pytest.raises(HeadError, match=words):
        export_huggingface(made_run(tiny(family), tmp_path / "run", **options), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_writes_nothing_if_the_logits_differ(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were if another token were read, or the activation were another."""
    run = made_run(tiny("bert"), tmp_path / "run")
    monkeypatch.setattr(stock_heads, "SHRINK", 0.5)  # no identity any more
    with pytest.raises(BackboneError, match="other logits"):
        export_huggingface(run, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_replaces_a_folder_only_with_force(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(UsageError, match=r"there already[\s\S]*--force"):
        export_huggingface(run, tmp_path / "model")
    export_huggingface(run, tmp_path / "model", force=True)
    assert (tmp_path / "model" / "config.json").exists() and not (tmp_path / "model" / "mine").exists()


def test_export_refuses_another_backbone(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run")
    with pytest.raises(FeatcacheError, match=r"other files[\s\S]*model\.safetensors"):
        export_huggingface(run, tmp_path / "model", model=str(tiny("electra")))
