"""Every kind of head, from the command line to a prediction; and the 8-bit backbone under them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.heads.registry import KINDS
from featcache_cli.commands.train_head import HEADS
from tests.support.cli_tools import Cli, read_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_the_command_line_knows_every_kind() -> None:
    assert tuple(HEADS) == tuple(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_predictor_of_every_kind_repeats_the_saved_predictions(kind: str, cli: Cli, trained: Path) -> None:
    made = cli.ok("train-head", "--head", kind, "--epochs", "20", "--json").json
    assert made["head"] == kind
    assert made["metrics"]["test"]["accuracy"] > 0.6  # the labels can be learned
    low, high = made["intervals"]["test"]["accuracy"]
    assert low <= made["metrics"]["test"]["accuracy"] <= high
    assert made["calibration"]["log_loss_after"] <= made["calibration"]["log_loss_before"] + 1e-9
    run = featcache.load_run(Path("reports"), made["run"])
    said = run.predictions("test")
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    answers = featcache.Predictor.from_run(run).predict_proba(texts)
    np.testing.assert_allclose(answers, said.probabilities, rtol=0, atol=5e-3)
    files = {path.suffix for path in run.folder.iterdir()}
    assert files <= {".json", ".safetensors", ".parquet"}


def test_several_labels_of_every_kind_from_file_to_prediction(cli: Cli, trained: Path) -> None:
    """Labels of several reviews each: what is good or bad, and whether the text is long."""
    for split in ("train", "validation", "test"):
        rows = read_rows(f"reviews/{split}.jsonl")
        lengths = sorted(len(row["text"]) for row in rows)
        lines = [
            json.dumps(
                {
                    "text": row["text"],
                    "label": [row["label"]] + ["long"] * (len(row["text"]) > lengths[len(rows) // 2]),
                },
                ensure_ascii=False,
            )
            for row in rows
        ]
        Path(f"several-{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = ",".join(f"{split}=several-{split}.jsonl" for split in ("train", "validation", "test"))
    cli.ok("extract", "--all-splits", "--data-files", files)
    for kind in KINDS:
        made = cli.ok("train-head", "--head", kind, "--data-files", files, "--epochs", "30", "--json").json
        assert made["task"] == "multi-label"
        assert made["metrics"]["test"]["micro_f1"] > 0.5
        run = featcache.load_run(Path("reports"), made["run"])
        head = run.head()
        assert head.thresholds is not None and head.thresholds.shape == (3,)
        answer = featcache.Predictor.from_run(run).predict([read_rows("reviews/test.jsonl")[0]["text"]])[0]
        told = [
            n for n, t in zip(head.label_names, head.thresholds, strict=True) if answer.probabilities[n] >= t
        ]
        assert list(answer.labels) == told
        assert answer.label == ", ".join(told)


def test_int8_features_are_close_and_have_another_fingerprint(cli: Cli, trained: Path) -> None:
    cli.ok("extract", "--all-splits", "--dtype", "float32", "--json")
    exact = featcache.load_settings({"dtype": "float32"})
    made = cli.ok("extract", "--split", "test", "--dtype", "int8", "--json").json
    rounded = featcache.load_settings({"dtype": "int8"})
    one, other = (featcache.find_features(s, "test") for s in (exact, rounded))
    assert other.document.encoder.dtype.compute == "int8"
    assert one.fingerprint != other.fingerprint and made is not None
    for view in one.views:
        a, b = (np.asarray(file.features(view).x, np.float64) for file in (one, other))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert 0.99 < cosine.min() < 1 - 1e-7  # near, and not the same arithmetic


def test_int8_vector_does_not_depend_on_the_batch(cli: Cli, trained: Path) -> None:
    from featcache.backbone.load import load_backbone
    from featcache.backbone.model_files.find import find_model

    settings = featcache.load_settings({"dtype": "int8"})
    encoder = featcache.Encoder(
        load_backbone(settings.backbone, find_model(settings.backbone)), settings.features
    )
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")][:8]
    others = [texts[0], *(text[::-1] for text in texts[1:])]
    first, second = encoder(texts), encoder(others)
    for name, values in first.views.items():
        np.testing.assert_array_equal(values[0], second.views[name][0])
