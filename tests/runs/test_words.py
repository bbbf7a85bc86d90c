"""Runs that read words: trained without a backbone or beside cached features, saved, predicted, compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import HeadError, SourceError, UsageError
from featcache.export.huggingface import export_huggingface
from featcache.export.onnx import export_onnx
from featcache.heads.distributed import ProcessGroup
from featcache.prediction.predictor import Predictor
from featcache.runs.run import load_run
from featcache.runs.train import train_head
from featcache.settings import load_settings
from tests.support.cli_tools import Cli, environment, read_rows
from tests.support.review_files import write_reviews


def test_the_lexical_head_needs_no_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_reviews(Path("reviews"), 90)
    settings = load_settings({"model": "no/such/model", "dataset": "reviews"})
    run = train_head(settings, "lexical")
    assert (run.name, run.record.view, run.record.caches) == ("no-backbone-1", "lexical", {})
    assert run.metric("test", "accuracy") == 1.0
    assert run.record.rows == {"train": 90, "validation": 30, "test": 30}
    predictor = Predictor.from_run(run)
    assert predictor.encoder is None
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    np.testing.assert_allclose(
        predictor.predict_proba(texts), run.predictions("test", probabilities=True).probabilities, atol=1e-6
    )
    found = predictor.predict(["好喜欢", "坏差"])
    assert [one.label for one in found] == ["good", "bad"]
    assert not any(one.truncated for one in found)


def test_words_beside_features_are_predicted_as_they_were_scored(trained: Path) -> None:
    settings = load_settings()
    run = train_head(settings, "exact", "last/mean,lexical")
    assert run.record.view == "last/mean,lexical"
    assert {"C", "C_words", "factor_of_words", "factor_of_features"} <= set(run.record.solver)
    head = load_run(Path("reports"), run.name).head()
    assert head.views == ("last/mean",) and head.ngrams is not None
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    scored = run.predictions("test", probabilities=True).probabilities
    np.testing.assert_allclose(Predictor.from_run(run).predict_proba(texts), scored, atol=1e-4)


def test_a_head_with_words_predicts_without_scikit_learn(trained: Path) -> None:
    run = train_head(load_settings(), "exact", "last/mean,lexical")
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        f"assert main(['predict', '好喜欢', '--explain', '--run', {run.name!r}]) == 0\n"
        "assert 'torch' in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment())


def test_the_texts_of_cached_rows_must_be_there(trained: Path) -> None:
    settings = load_settings()
    lines = Path("reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    # The same files are asked for by the record, so the cache still answers: its rows are looked up.
    from featcache.extraction.api import find_features
    from featcache.runs.words import SplitTexts

    files = {"train": find_features(settings, "train")}
    Path("reviews/train.jsonl").write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match="1 of 60 cached train rows are not in the source"):
        SplitTexts.of_files(settings, files)


def test_words_are_refused_where_they_cannot_be(trained: Path, tmp_path: Path) -> None:
    settings = load_settings()
    run = train_head(settings, "exact", "last/cls,lexical")
    for export in (export_onnx, export_huggingface):
        with pytest.raises(HeadError, match="n-grams"):
            export(run, tmp_path / "exported")
    with pytest.raises(UsageError, match="--head lexical"):
        train_head(settings, "exact", "lexical")
    with pytest.raises(UsageError, match="--view lexical"):
        train_head(settings, "lexical", "last/cls")
    several = ProcessGroup.__new__(ProcessGroup)
    object.__setattr__(several, "size", 2)
    with pytest.raises(UsageError, match="one worker"):
        train_head(settings, "exact", "last/cls,lexical", group=several)


def test_words_in_the_terminal(cli: Cli, trained: Path, tmp_path: Path) -> None:
    made = cli.ok("train-head", "--head", "lexical", "--json").json
    assert (made["run"], made["view"], made["bytes_cached"]) == ("no-backbone-1", "lexical", 0)
    cli.ok("train-head", "--head", "exact", "--view", "last/mean,lexical", "--quiet")
    compared = cli.ok("compare").out
    assert "no-backbone-1" in compared and "the words alone" in compared
    for run in ("no-backbone-1", "exact-last-mean-lexical-1"):
        target = tmp_path / f"{run}.jsonl"
        cli.ok("predict", "--input", "reviews/test.jsonl", "--output", target, "--run", run)
        answers = read_rows(target)
        assert [answer["prediction"] for answer in answers] == [answer["label"] for answer in answers]
        (one,) = cli.ok("predict", "好喜欢干净", "--run", run, "--json").json
        assert one["label"] == "good"
        cli.ok("report", run, "--output", tmp_path / f"{run}.html")
    page = (tmp_path / "no-backbone-1.html").read_text(encoding="utf-8")
    assert "lexical head on the words of the texts, without a backbone" in page
    assert "longest text" not in page
    cli.refused(
        2, ["extract", "--all-splits", "--views", "last/cls,lexical"], "nothing is extracted", "--view"
    )
    cli.refused(2, ["curve", "--head", "lexical"], "a learning curve reads cached features")
    for command in ("curve", "sweep", "inspect"):
        cli.refused(2, [command, "--view", "lexical"], "lexical")
