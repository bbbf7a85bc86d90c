"""Several backbones, one of them imported vectors or an endpoint: what predicts, and what cannot."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from featcache.backbone.endpoint.answer import Vectors
from featcache.backbone.endpoint.encoder import EndpointEncoder
from featcache.backbone.endpoint.model import EndpointModel
from featcache.data.formats.lines import Row
from featcache.errors import BadRow, UsageError
from featcache.prediction.joined_encoder import JoinedEncoder
from featcache.prediction.predictor import Predictor
from featcache.prediction.vectors import VectorPredictor
from featcache.runs.run import load_run
from featcache.serving.app import RunInfo, Service
from tests.support.cli_tools import Cli, make_work, read_rows
from tests.support.endpoint_server import Behaviour, EndpointServer, vector_of
from tests.support.stock import encoder, load

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]
USAGE, HEAD = 2, 6
WIDTH = 5
TEXTS = ["房间干净，服务好", "坏电池 失望", "a good film"]
HEADS = {  # name: backbones and view
    "file": ("A=vectors:mine", "A:vectors,last/mean"),
    "server": ("E=SERVER", "E:vector,last/mean"),
    "no files": ("A=vectors:mine,E=SERVER", "A:vectors,E:vector"),
    "two": ("A=vectors:mine,B=vectors:other", "A:vectors,B:vectors,last/mean"),
}


def vectors_of(texts: list[str], seed: int = 0) -> np.ndarray:
    """A vector `[WIDTH]` for each text, float32."""
    draw = np.random.default_rng(seed)
    table = {text: draw.normal(size=WIDTH) for text in sorted({*texts, *TEXTS})}
    return np.array([table[text] for text in texts], np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[EndpointServer]:
    with EndpointServer(Behaviour()) as running:
        yield running


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path], server: EndpointServer
) -> Path:
    """Vectors imported under two names, features extracted, and a head over each pair of backbones."""
    from featcache_cli.main import main

    folder = make_work(tmp_path_factory.mktemp("kinds") / "work", tiny("bert"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split in ("train", "validation", "test"):
            texts = [row["text"] for row in read_rows(f"reviews/{split}.jsonl")]
            np.save(f"{split}.npy", vectors_of(texts))
            texts_of = ["--texts", f"reviews/{split}.jsonl", "--split", split, "--quiet"]
            for name in ("mine", "other"):
                assert main(["import", f"{split}.npy", *texts_of, "--as", name]) == 0
        for name, (backbones, view) in HEADS.items():
            flags = ["--backbones", backbones.replace("SERVER", server.model), "--quiet"]
            assert main(["extract", "--all-splits", "--views", view, *flags]) == 0
            named = ["--view", view, "--name", name.replace(" ", "-")]
            assert main(["train-head", "--head", "ridge", *named, *flags]) == 0
    return folder


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    rows = [["text"], *([text] for text in TEXTS)]
    with open("new.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    np.save("new.npy", vectors_of(TEXTS, seed=1))
    return tmp_path / "work"


def wanted(name: str, tiny: Callable[[str], Path]) -> np.ndarray:
    """The probabilities of a head by features that are made here, each part alone."""
    own = encoder(load(tiny("bert")), "last/mean", storage="float16", max_length=16)
    parts = {
        "A:vectors": vectors_of(TEXTS, seed=1),
        "E:vector": np.array([vector_of(text) for text in TEXTS]).astype(np.float16),
        "last/mean": own(TEXTS).views["last/mean"],
    }
    head = load_run(Path("reports"), name).head()
    return head.predict_proba(np.concatenate([parts[view] for view in head.views], axis=1))


@pytest.mark.parametrize("name", ["file", "no-files"])
def test_a_file_is_labelled_by_its_vectors_and_by_what_encodes_its_texts(
    name: str, work: Path, cli: Cli, tiny: Callable[[str], Path]
) -> None:
    cli.ok("predict", "--run", name, "--input", "new.csv", "--vectors", "new.npy", "--output", "out.jsonl")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    found = np.array([line["probability"] for line in lines])
    np.testing.assert_allclose(found, wanted(name, tiny).max(axis=1), atol=1e-3)


def test_an_endpoint_and_a_model_predict_with_one_pass_of_each(
    work: Path, cli: Cli, tiny: Callable[[str], Path], server: EndpointServer
) -> None:
    predictor = Predictor.from_run(load_run(Path("reports"), "server"))
    before = len(server.seen.answered)
    found = predictor.predict_proba(TEXTS)
    assert server.seen.answered[before:] == TEXTS
    np.testing.assert_allclose(found, wanted("server", tiny), atol=1e-3)
    assert len(cli.ok("predict", "--run", "server", *TEXTS, "--json").json) == 3
    service = Service(predictor, about=RunInfo(run="server"), hosts=("testserver",))
    with TestClient(service.app) as client:
        info = client.get("/info").json()
        assert info["model"].endswith(", tiny-embedding") and info["max_length"] == 16
        answer = client.post("/predict", json={"texts": TEXTS}).json()
    assert [one["label"] for one in answer["predictions"]] == [
        predictor.label_names[place] for place in found.argmax(axis=1)
    ]


def test_texts_that_a_model_here_refuses_are_not_sent_any_more(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = Predictor.from_run(load_run(Path("reports"), "server")).encoder
    assert isinstance(joined, JoinedEncoder)
    endpoint = joined.encoders["E"]
    assert isinstance(endpoint, EndpointEncoder)
    waiting: list[Future[Vectors]] = []

    def submit(texts: list[str]) -> Future[Vectors]:
        waiting.append(Future())
        return waiting[-1]

    def refuse(*_: object) -> None:
        raise BadRow("NaN", 1)

    monkeypatch.setattr(endpoint.client, "submit", submit)
    monkeypatch.setattr(joined.first, "encode", refuse)
    before = endpoint.spending._reserved
    with pytest.raises(BadRow):
        joined.encode(joined.tokenize(TEXTS))
    assert waiting and all(each.cancelled() for each in waiting)
    assert endpoint.spending._reserved == pytest.approx(before)


def test_texts_go_to_another_machine_only_by_the_word_of_the_user(
    work: Path, cli: Cli, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointModel, "is_local", False)
    before = server.seen.requests
    with pytest.raises(UsageError, match="which only you can allow") as error:
        Predictor.from_run(load_run(Path("reports"), "server"))
    assert f"--model E={server.model}" in (error.value.hint or "") and server.seen.requests == before
    cli.refused(USAGE, ("predict", "--run", "server", *TEXTS), "which only you can allow")
    cli.ok("predict", "--run", "server", *TEXTS, "--model", f"E={server.model}", "--json")
    settings = Path("featcache.toml")
    text = settings.read_text("utf-8").replace("# backbones =", f'backbones = {{E = "{server.model}"}} #')
    settings.write_text(text, "utf-8")
    cli.ok("predict", "--run", "server", *TEXTS, "--json")
    local = load_run(Path("reports"), "server").record.backbone.named[""].model
    cli.ok("predict", "--run", "server", *TEXTS, "--model", f"={local}", "--json")  # of the other one


def test_texts_alone_have_no_imported_vectors(work: Path, cli: Cli, server: EndpointServer) -> None:
    before = server.seen.requests
    for name in ("file", "no-files", "two"):
        refused = cli("predict", "--run", name, *TEXTS)
        assert refused.code == HEAD, refused
        assert "featcache predict --input FILE --vectors FILE" in " ".join(refused.err.split())
    assert server.seen.requests == before
    new = ("--input", "new.csv", "--output", "out.csv")
    cli.refused(USAGE, ("predict", "--run", "two", *new, "--vectors", "new.npy"), "vectors of 2 names")
    cli.refused(USAGE, ("predict", "--run", "server", *new, "--vectors", "new.npy"), "leave it out")
    cli.refused(HEAD, ("export", "file", "--output", "o"), "several backbones")


def test_such_runs_are_compared_and_reported(work: Path, cli: Cli) -> None:
    assert len(cli.ok("compare", "--json").json["runs"]) == len(HEADS)
    for name in ("file", "server"):
        assert "not shown" not in json.dumps(json.loads(cli.ok("report", name, "--json").out))


def test_rows_before_those_that_were_read_last_keep_their_vectors(work: Path) -> None:
    """A batch of which the model refuses a row is prepared again, after later ones were read ahead."""
    run = load_run(Path("reports"), "file")
    predictor = VectorPredictor.of_file(run, Path("new.npy"))
    rows = [Row(number, number + 1, {}, text) for number, text in enumerate(TEXTS, start=1)]
    later = predictor.prepare_rows(rows[2:], None)
    again = predictor.prepare_rows(rows[:2], None)
    found = np.concatenate([predictor.answer(each).probabilities for each in (again, later)])
    whole = predictor.answer(predictor.prepare_rows(rows, None)).probabilities
    np.testing.assert_allclose(found, whole, atol=1e-6)
