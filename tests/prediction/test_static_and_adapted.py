"""Static models and adapters from the command line: extracted, trained, predicted, found again or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.prediction.predictor import Predictor
from featcache.prediction.sklearn_api import FeatureExtractor
from featcache.runs.run import load_run
from tests.support.adapters import random_matrices, tensors_of, write_adapter
from tests.support.cli_tools import Cli, make_work
from tests.support.static_models import by_hand, table_of, write_model2vec

USAGE, MODEL, HEAD = 2, 4, 6
TEXTS = ["房间干净，服务好", "坏电池 失望", "☃"]
QUERY = "encoder.layer.1.attention.self.query"


@pytest.fixture
def potion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_model2vec(tmp_path / "potion", table_of())
    monkeypatch.chdir(make_work(tmp_path / "work", folder, views="last/auto,depth"))
    return folder


def test_a_static_model_from_texts_to_labels(potion: Path, cli: Cli) -> None:
    extracted = cli.ok("extract", "--all-splits")
    assert "last/mean-normalized (as its sentence-transformers settings say)" in extracted.err
    assert cli.ok("extract", "--all-splits", "--json").json["splits"][0]["cached"]
    cli.ok("train-head", "--head", "exact", "--view", "depth,lexical", "--name", "both")
    cli.ok("train-head", "--head", "ridge", "--name", "dense")
    said = cli.ok("predict", "--run", "both", *TEXTS, "--json").json
    assert [one["label"] for one in said[:2]] == ["good", "bad"]
    assert [one["unknown_tokens"] for one in said] == [0, 0, 0.5]
    run = load_run(Path("reports"), "dense")
    wanted = by_hand(potion, table_of(), TEXTS, drop=True, normalize=True).astype(np.float16)
    found = Predictor.from_run(run).predict_proba(TEXTS)
    np.testing.assert_allclose(found, run.head().predict_proba(wanted), atol=1e-3)
    made = FeatureExtractor(str(potion), storage="float32", cache_dir="other").fit(TEXTS[:2])
    assert made.n_features_out_ == wanted.shape[1] and made.dtype_ == "float32"
    np.testing.assert_allclose(made.transform(TEXTS[:2]), wanted[:2].astype(np.float32), atol=1e-3)
    assert cli.ok("plan", "--json").json


def test_what_a_static_model_does_not_have_is_said(potion: Path, cli: Cli) -> None:
    cli.ok("extract", "--all-splits")
    cli.ok("train-head", "--head", "linear", "--epochs", "2", "--name", "dense")
    cli.refused(MODEL, ("export", "dense", "--format", "onnx", "--output", "o"), "table of token vectors")
    cli.refused(HEAD, ("export", "dense", "--output", "o"), "stock models")
    tuned = cli("finetune", "--train", "top-blocks:1")
    assert tuned.code == USAGE and "block" in tuned.err, tuned.err
    cls = cli("extract", "--split", "train", "--views", "last/cls")
    assert cls.code == USAGE and "knows nothing of its text" in cls.err
    gguf = cli("extract", "--split", "train", "--model", "some.gguf")
    assert gguf.code == MODEL and "GGUF" in gguf.err


def test_a_head_finds_its_adapter_again(tiny: Callable[[str], Path], work: Path, cli: Cli) -> None:
    model = tiny("bert")
    adapter = write_adapter(Path("lora"), tensors_of(random_matrices(model, [QUERY])))
    plain = cli.ok("extract", "--all-splits", "--json").json["splits"][0]["fingerprint"]
    adapted = cli.ok("extract", "--all-splits", "--adapter", "lora", "--json").json["splits"][0]
    assert adapted["fingerprint"] != plain and adapted["encoded"] > 0
    cli.ok("train-head", "--head", "ridge", "--adapter", "lora", "--view", "last/mean", "--name", "own")
    told = cli.ok("predict", "--run", "own", *TEXTS[:2], "--json").json
    adapter.rename("moved")
    cli.refused(MODEL, ("predict", "--run", "own", *TEXTS), "no folder lora", "--adapter")
    moved = ("predict", "--run", "own", *TEXTS[:2], "--adapter", "moved", "--json")
    assert cli.ok(*moved).json == told
    config = Path("moved/adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))
    cli.refused(HEAD, moved[:-1], "adapter_config.json", "its adapter: --adapter FOLDER")
