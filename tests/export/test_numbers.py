"""Exports of heads that predict numbers: stock transformers and onnxruntime give the run's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.export.huggingface import export_huggingface
from featcache.heads.head import Head
from featcache.heads.numbers.scale import NumberScale, PredictionInterval
from featcache.heads.scorers import Linear
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run
from tests.support.made_run import TEXTS, made_run

INTERVAL = PredictionInterval(level=0.9, half_width=12.5, rows=50)


def number_run(
    backbone: Path, folder: Path, mean: float = -300.0, deviation: float = 40.0, **options: str
) -> Run:
    """A run whose head has one logit and a scale; its run.json says so."""
    run = made_run(backbone, folder, **options)  # type: ignore[arg-type]
    head = run.head()
    assert isinstance(head.scorer, Linear)
    scorer = Linear(head.scorer.weight[:1], head.scorer.bias[:1])
    scale = NumberScale(mean=mean, deviation=deviation, interval=INTERVAL)
    made: Head = replace(head, scorer=scorer, label_names=(), numbers=scale, temperature=1.0, thresholds=None)
    made.save(folder)
    record = replace(
        run.record, task="regression", label_names=(), scores={}, calibration=None, interval=INTERVAL,
        metrics={"test": {"mae": 1.0, "rmse": 2.0, "r2": 0.5, "spearman": 0.75}}, intervals={},
    )  # fmt: skip
    (folder / "run.json").write_bytes(record.to_bytes())
    return Run(folder, record)


@pytest.mark.parametrize(
    ("family", "view"), [("bert", "last/cls"), ("distilbert", "last/cls"), ("gpt2", "last/last")]
)
def test_stock_transformers_give_the_numbers(
    family: str, view: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import pipeline

    run = number_run(tiny(family), tmp_path / "run", view=view)
    made = export_huggingface(run, tmp_path / "model")
    classify = pipeline("text-classification", model=str(made.folder), device="cpu")
    found = [classify(text, truncation=True, function_to_apply="none")[0]["score"] for text in TEXTS]
    wanted = [one.number for one in Predictor.from_run(run, device="cpu").predict_numbers(TEXTS)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.05)
    assert np.std(wanted) > 1
    config = json.loads((made.folder / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "regression"
    assert config["featcache_interval"]["half_width"] == 12.5
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    for words in ("function_to_apply", "± 12.5", "| split | mae | rmse | r2 | spearman |", "come from where"):
        assert words in card


@pytest.mark.usefixtures("onnx_graphs")
def test_onnxruntime_gives_the_numbers(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    import onnxruntime
    from transformers import AutoTokenizer

    from featcache.export.onnx import export_onnx

    run = number_run(tiny("bert"), tmp_path / "run", view="last/mean")
    made = export_onnx(run, tmp_path / "model")
    note = json.loads((made.folder / "featcache.json").read_text(encoding="utf-8"))
    assert (note["task"], note["labels"], note["interval"]["level"]) == ("regression", [], 0.9)
    tokens = AutoTokenizer.from_pretrained(made.folder)(
        TEXTS, padding=True, truncation=True, max_length=note["max_length"], return_tensors="np"
    )
    session = onnxruntime.InferenceSession(made.folder / "model.onnx")
    found = session.run(["logits"], {name: tokens[name].astype("int64") for name in note["inputs"]})[0]
    wanted = [one.number for one in Predictor.from_run(run, device="cpu").predict_numbers(TEXTS)]
    assert found.shape == (len(TEXTS), 1)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=0, atol=0.05)
    assert "print(logits[:, 0])" in (made.folder / "README.md").read_text(encoding="utf-8")


def test_numbers_that_float32_cannot_tell_apart_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    run = number_run(tiny("bert"), tmp_path / "run", mean=1e9, deviation=2.0)
    with pytest.raises(HeadError, match="differ little for their size"):
        export_huggingface(run, tmp_path / "model")
    near = Predictor.from_run(run, device="cpu").predict_numbers(TEXTS)
    assert len({one.number for one in near}) == len(TEXTS)  # the head itself keeps them apart
