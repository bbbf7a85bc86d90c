"""Heads over vectors of an endpoint: run, train, predict, and what needs the files of a backbone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from featcache.backbone.endpoint.model import EndpointModel
from featcache.errors import BackboneError, UsageError
from featcache.prediction.predictor import Predictor
from featcache.prediction.sklearn_api import FeatureExtractor
from featcache.runs.run import load_run
from featcache.serving.app import RunInfo, Service
from tests.support.cli_tools import Cli
from tests.support.endpoint_server import Behaviour, EndpointServer, vector_of

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]
DATA = ("--data-files", "train=all.csv")


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer(Behaviour()) as running:
        yield running


@pytest.fixture
def trained_by(server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Cli:
    """A working folder with a run on vectors of the server."""
    monkeypatch.chdir(tmp_path)
    rows = [(f"{'good' if n % 2 else 'bad'} film {n}", n % 2) for n in range(120)]
    Path("all.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    Path("featcache.toml").write_text(f'[backbone]\nmodel = "{server.model}"\n[data]\ntest_share = 0.2\n')
    cli.ok("extract", "--all-splits", *DATA, "--quiet")
    cli.ok("train-head", "--head", "logistic", *DATA, "--name", "mine", "--quiet")
    return cli


def test_a_head_predicts_by_the_endpoint(trained_by: Cli, server: EndpointServer) -> None:
    before = len(server.seen.answered)
    answer = trained_by.ok("predict", "a good film", "--json").json
    assert answer[0]["label"] == "1"
    assert server.seen.answered[before:][-1] == "a good film" and len(server.seen.answered) - before == 17
    Path("new.txt").write_text("a good one\na bad one\n")
    trained_by.ok("predict", "--input", "new.txt", "--output", "out.jsonl", "--quiet")
    labels = [json.loads(line)["prediction"] for line in Path("out.jsonl").read_text().splitlines()]
    assert labels == ["1", "0"]


def test_an_endpoint_that_changed_predicts_nothing(trained_by: Cli, server: EndpointServer) -> None:
    server.behaviour.model = "b"
    failed = trained_by("predict", "a good film")
    assert failed.code == BackboneError.exit_code and "no longer gives the vectors" in failed.err
    assert "a good film" not in server.seen.answered


def test_texts_go_to_another_machine_only_by_the_word_of_the_user(
    trained_by: Cli, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointModel, "is_local", False)
    before = server.seen.requests
    with pytest.raises(UsageError, match=r"to 127\.0\.0\.1, which only you can allow") as error:
        Predictor.from_run(load_run(Path("reports"), "mine"))
    assert server.model in (error.value.hint or "") and server.seen.requests == before
    assert Predictor.from_run(load_run(Path("reports"), "mine"), model=server.model).predict(["good"])
    trained_by.ok("predict", "a good film", "--json")  # featcache.toml names it, too
    Path("featcache.toml").unlink()
    assert trained_by("predict", "a good film").code == 2


def test_the_endpoint_is_the_one_of_the_head(trained_by: Cli) -> None:
    with EndpointServer() as other:
        failed = trained_by("predict", "a good film", "--model", other.model)
        assert failed.code == 2 and "not of tiny-embedding" in failed.err and other.seen.requests == 0


def test_what_needs_the_files_of_a_backbone_says_so(trained_by: Cli) -> None:
    for words in (
        ("export", "mine", "--format", "onnx", "--output", "o"),
        ("plan", *DATA),
        ("finetune", *DATA),
    ):
        failed = trained_by(*words)
        assert failed.code in (2, 6) and "behind an endpoint" in failed.err, words


def test_actors_of_a_cluster_ask_no_endpoint(
    trained_by: Cli, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.cluster.cluster.require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.predict.require_ray", lambda: None)
    Path("new.txt").write_text("a good one\n")
    before = server.seen.requests
    on_ray = ("predict", "--input", "new.txt", "--output", "out", "--engine", "ray")
    trained_by.refused(UsageError.exit_code, on_ray, "its own limits of requests and of cost")
    assert server.seen.requests == before and not Path("out").exists()


def test_info_says_what_is_true_of_an_endpoint(trained_by: Cli, server: EndpointServer) -> None:
    shown = trained_by.ok("cache", "info", "--all").out
    assert "float16 stored" in shown and "by a server" in shown and server.address in shown.replace("\n", "")
    assert "truncated to 0" not in shown and "weights" not in shown
    trained_by.ok("cache", "verify")


def test_run_trains_heads_without_depth(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{'good' if n % 2 else 'bad'} film {n},{n % 2}\n" for n in range(150)]
    Path("all.csv").write_text("text,label\n" + "".join(rows))
    done = cli.ok("run", "all.csv", "--model", server.model)
    assert "no head over depth: an endpoint gives one vector a text" in done.err
    assert "behind" not in done.err


def test_sweep_compare_and_report_read_the_features_of_an_endpoint(
    trained_by: Cli, server: EndpointServer
) -> None:
    before = server.seen.requests
    trained_by.ok("sweep", *DATA, "--lr", "0.1,0.01", "--epochs", "3", "--quiet")
    compared = trained_by.ok("compare", "--json").json["runs"]
    assert {one["head"] for one in compared} == {"linear", "logistic"}
    trained_by.ok("report", "--quiet")
    pages = "".join(path.read_text("utf-8") for path in Path("reports").rglob("*.html"))
    assert "tiny-embedding" in pages and "bad film" in pages
    assert server.seen.requests == before  # all of them read the cache


def test_the_estimator_reads_an_endpoint(server: EndpointServer, tmp_path: Path) -> None:
    extractor = FeatureExtractor(server.model, cache_dir=tmp_path)
    found = extractor.fit_transform(["good", "bad", "good"])
    assert np.allclose(found, np.stack([vector_of(text) for text in ("good", "bad", "good")]), atol=1e-3)
    before = server.seen.requests
    assert np.array_equal(extractor.transform(["bad"])[0], found[1]) and server.seen.requests == before


def test_a_service_answers_by_the_endpoint(trained_by: Cli, server: EndpointServer) -> None:
    predictor = Predictor.from_run(load_run(Path("reports"), "mine"))
    service = Service(predictor, about=RunInfo(run="mine"), hosts=("testserver",))
    with TestClient(service.app) as client:
        assert client.get("/info").json()["model"] == "tiny-embedding"
        answer = client.post("/predict", json={"texts": ["a good film", "a bad film"]})
        assert [one["label"] for one in answer.json()["predictions"]] == ["1", "0"]
        server.behaviour.form, server.behaviour.status = "error", 401
        assert client.post("/predict", json={"texts": ["another one"]}).status_code >= 400
