"""Predicted numbers: in Python, from the command line, in files of every format, and from the server."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

import featcache
from featcache.errors import HeadError
from featcache.prediction.predictor import Predictor
from featcache.runs.numbers.predictions import number_predictions
from featcache.runs.run import load_run
from featcache.serving.app import RunInfo, Service
from tests.support.cli_tools import Cli, read_rows
from tests.support.rated_reviews import LINEAR, RIDGE

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.mark.parametrize("name", [RIDGE, LINEAR])
def test_a_predictor_repeats_the_saved_predictions(name: str, rated: Path) -> None:
    run = featcache.load_run(Path("reports"), name)
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    predictor = featcache.Predictor.from_run(run)
    found = predictor.predict_numbers(texts)
    wanted = number_predictions(run, "test").predicted
    np.testing.assert_allclose([one.number for one in found], wanted, atol=5e-3)
    interval = run.record.interval
    assert interval is not None
    for one in found:
        assert one.low is not None and one.high is not None
        assert one.high - one.number == pytest.approx(interval.half_width)
        assert one.number - one.low == pytest.approx(interval.half_width)
    assert predictor.predict_numbers([]) == []
    with pytest.raises(HeadError, match="this head predicts numbers"):
        predictor.predict(texts)
    with pytest.raises(HeadError, match="this head predicts numbers"):
        predictor.predict_proba(texts)


def test_a_head_of_labels_predicts_no_numbers(trained: Path) -> None:
    predictor = Predictor.from_run(featcache.list_runs(Path("reports"))[0])
    with pytest.raises(HeadError, match="this head predicts labels"):
        predictor.predict_numbers(["好"])


def test_the_command_line_shows_numbers_with_their_ends(rated: Path, cli: Cli) -> None:
    said = cli.ok("predict", "--run", RIDGE, "房间很干净", "电池坏", "--json").json
    assert [set(one) for one in said] == [
        {"text", "number", "low", "high", "truncated", "unknown_tokens"}
    ] * 2
    assert all(one["low"] < one["number"] < one["high"] for one in said)
    lines = cli.ok("predict", "--run", RIDGE, "房间很干净", "电池坏").out.splitlines()
    assert [float(line.split("\t")[0]) for line in lines] == pytest.approx(
        [one["number"] for one in said], rel=1e-4
    )
    assert "best by validation: RMSE" in cli.ok("predict", "好").err
    cli.refused(2, ("predict", "--top-k", "2", "好"), "--top-k is about labels")
    cli.refused(2, ("predict", "--explain", "好"), "--explain is about labels")
    cli.refused(6, ("predict", "--max-error", "0.1", "好"), "--max-error 0.1 is about classes")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "txt"])
def test_a_file_gets_numbers_in_its_own_columns(ending: str, rated: Path, cli: Cli) -> None:
    rows = [{"id": str(n), "text": text} for n, text in enumerate(["房间很干净", "电池坏", " "])]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path("in.jsonl").write_text(content, encoding="utf-8")
    files = ("--run", RIDGE, "--input", "in.jsonl", "--output")
    done = cli.ok("predict", *files, f"out.{ending}", "--json").json
    assert (done["labelled"], done["bad_rows"], done["counts"]) == (2, 1, {})
    predictor = Predictor.from_run(load_run(Path("reports"), RIDGE))
    wanted = predictor.predict_numbers([row["text"] for row in rows[:2]])
    numbers = [one.number for one in wanted]
    if ending == "txt":
        lines = Path("out.txt").read_text().splitlines()
        assert [float(line) for line in lines[:2]] == pytest.approx(numbers, rel=1e-6) and lines[2] == ""
        return
    if ending == "csv":
        with Path("out.csv").open(encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        added = ["prediction", "prediction_low", "prediction_high", "truncated"]
        assert list(found[0]) == ["id", "text", *added]
        assert found[2]["prediction"] == found[2]["prediction_low"] == ""
    else:
        found = pq.read_table("out.parquet").to_pylist() if ending == "parquet" else read_rows("out.jsonl")
        assert found[2]["prediction"] is None
    for row, one in zip(found, wanted, strict=False):
        ends = [float(row[name]) for name in ("prediction_low", "prediction", "prediction_high")]
        assert ends == pytest.approx([one.low, one.number, one.high], rel=1e-6)
    shown = cli.ok("predict", *files, f"o2.{ending}").out
    assert "2 of 3 rows labelled" in shown and "share" not in shown


def test_a_file_of_another_head_is_not_continued_with_numbers(rated: Path, cli: Cli) -> None:
    """The interval is a part of what decides the output."""
    from featcache.prediction.file import _head_hash

    first = Predictor.from_run(load_run(Path("reports"), RIDGE))
    made = cli.ok("train-head", "--head", "ridge", "--view", "last/mean", "--interval", "0.5", "--json").json
    second = Predictor.from_run(load_run(Path("reports"), made["run"]))
    assert _head_hash(first) != _head_hash(second)


def test_the_server_answers_with_numbers(rated: Path) -> None:
    predictor = Predictor.from_run(load_run(Path("reports"), RIDGE))
    service = Service(predictor, about=RunInfo(run=RIDGE), hosts=("testserver",))
    with TestClient(service.app) as client:
        info = client.get("/info").json()
        assert (info["task"], info["labels"], info["interval"]["level"]) == ("regression", [], 0.9)
        one = client.post("/predict", json={"text": "房间很干净", "top_k": 3}).json()
        (wanted,) = predictor.predict_numbers(["房间很干净"])
        assert one == {
            "number": wanted.number, "low": wanted.low, "high": wanted.high, "truncated": False,
            "unknown_tokens": wanted.unknown_tokens,
        }  # fmt: skip
        two = client.post("/predict", json={"texts": ["好", "坏"]}).json()["predictions"]
        assert [set(answer) for answer in two] == [set(one)] * 2
        assert "featcache_abstained_total 0.0" in client.get("/metrics").text
