"""The HTTP application: what it answers and what it refuses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.abstaining import abstaining_predictor
from tests.support.stock import sentence
from tests.support.tiny_predictor import NAMES, HeldPredictor, tiny_predictor

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from featcache.prediction.predictor import Prediction, Predictor
from featcache.serving.app import RunInfo, Service
from featcache.serving.request import Limits

LOCAL = "http://127.0.0.1"
LIMITS = Limits(body_bytes=2000, texts=4, characters=300, seconds=20, queue_texts=8)


@contextlib.contextmanager
def client_of(predictor: Predictor, limits: Limits = LIMITS, **options: Any) -> Iterator[TestClient]:
    service = Service(predictor, limits, RunInfo("linear-1"), **options)
    with TestClient(service.app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with client_of(predictor) as client:
        yield client


def checked(found: Any, one: Prediction) -> None:
    assert found["label"] == one.label and found["labels"] == list(one.labels)
    assert found["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
    assert list(found["probabilities"].values()) == sorted(found["probabilities"].values(), reverse=True)
    assert found["probability"] == pytest.approx(one.probability, abs=1e-5)
    assert found["truncated"] == one.truncated
    assert found["unknown_tokens"] == one.unknown_tokens


def test_predict_without_an_answer(predictor: Predictor) -> None:
    """Half of the texts; `/info` has the level, `/metrics` the count."""
    texts = [sentence(length) for length in range(3, 4 + 3 * 4)]
    held = abstaining_predictor(predictor, texts)
    expected = held.predict(texts)
    assert 0 < sum(one.abstained for one in expected) < len(texts)
    with client_of(held) as client:
        for text, one in zip(texts, expected, strict=True):
            found = client.post("/predict", json={"text": text}).json()
            checked(found, one)
            assert found["abstained"] == one.abstained and found["reason"] == one.reason
            assert found["out_of_scope"] == pytest.approx(one.out_of_scope, abs=0.1)
        about = client.get("/info").json()["abstention"]
        assert (about["coverage"], about["max_error"]) == (0.5, None) and about["threshold"] > 0
        count = sum(one.abstained for one in expected)
        assert f"featcache_abstained_total {count:.1f}" in client.get("/metrics").text


def test_predict_one_text_and_several(client: TestClient, predictor: Predictor) -> None:
    texts = ["好 房间", "very bad book", sentence(70)]
    expected = predictor.predict(texts)
    assert [one.truncated for one in expected] == [False, False, True]
    for text, one in zip(texts, expected, strict=True):
        reply = client.post("/predict", json={"text": text})
        assert reply.status_code == 200
        checked(reply.json(), one)
    found = client.post("/predict", json={"texts": texts}).json()["predictions"]
    for answer, one in zip(found, expected, strict=True):
        checked(answer, one)
    top = client.post("/predict", json={"text": "好", "top_k": 1}).json()
    assert list(top["probabilities"]) == [top["label"]]


def test_predict_pairs(client: TestClient, predictor: Predictor) -> None:
    (expected,) = predictor.predict(["好 房间"], ["坏"])
    checked(client.post("/predict", json={"text": "好 房间", "pair": "坏"}).json(), expected)
    found = client.post("/predict", json={"texts": ["好 房间"] * 2, "pairs": ["坏"] * 2}).json()
    checked(found["predictions"][1], expected)


def test_predict_refuses_pairs_for_a_head_of_single_texts(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(predictor) as client:
        for known, asked in ((False, {"text": "好", "pair": "坏"}), (True, {"text": "好"})):
            monkeypatch.setattr(predictor, "pairs", known)
            reply = client.post("/predict", json=asked)
            assert reply.status_code == 422 and "trained on" in reply.json()["error"]


def test_predict_with_a_multi_label_head(tiny: Callable[[str], Path]) -> None:
    several = tiny_predictor(tiny("bert"), several=True)
    texts = ["好 房间", "very bad book", "一 是", "差"]
    with client_of(several) as client:
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
        for answer, one in zip(found, several.predict(texts), strict=True):
            checked(answer, one)
        assert client.get("/info").json()["multi_label"] is True


def test_info_health_and_openapi(client: TestClient) -> None:
    info = client.get("/info").json()
    assert (info["run"], info["labels"], info["view"]) == ("linear-1", list(NAMES), "last/mean")
    assert info["limits"]["texts"] == 4 and info["max_length"] == 64
    assert client.get("/health").json() == {"status": "ok"}
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/predict"]["post"]
    assert {"200", "400", "413", "422", "429", "503"} <= set(operation["responses"])
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {"text", "texts", "pair", "pairs", "top_k", "explain"}
    for path in ("/docs", "/redoc"):  # pages that would load scripts from elsewhere
        assert client.get(path).status_code == 404


def test_metrics_count_requests_and_texts(predictor: Predictor) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with client_of(predictor) as client:
        client.post("/predict", json={"texts": ["好", "坏"]})
        client.post("/predict", json={"text": ""})
        end = time.monotonic() + 10.0
        text = client.get("/metrics").text
        while "featcache_texts_total 2" not in text and time.monotonic() < end:  # counted after the answer
            text = client.get("/metrics").text
    values = {
        (sample.name, sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["featcache_requests_total", "200"] == 1
    assert values["featcache_requests_total", "422"] == 1
    assert values["featcache_texts_total", None] == 2
    assert values["featcache_batch_texts_count", None] == 1
    assert values["featcache_request_seconds_count", None] == 2
    assert values["featcache_waiting_texts", None] == 0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff\xfe{}", 400, "JSON"),
        (b'{"text": "\xff"}', 400, "JSON"),
        (b'{"text": "\\ud800"}', 400, "JSON"),
        (b"[" * 1500, 400, "JSON"),
        (b"null", 422, "object"),
        (b'"text"', 422, "object"),
        (b"[]", 422, "object"),
        (b"{}", 422, "one of text and texts"),
        (b'{"text": null}', 422, "one of text and texts"),
        (b'{"text": "a", "texts": ["b"]}', 422, "one of text and texts"),
        (b'{"text": 5}', 422, "text"),
        (b'{"text": ["a"]}', 422, "text"),
        (b'{"texts": "abc"}', 422, "texts"),
        (b'{"texts": []}', 422, "texts"),
        (b'{"texts": ["a", null]}', 422, "texts.1"),
        (b'{"texts": ["a", "  "]}', 422, "text 2 is empty"),
        (b'{"text": ""}', 422, "text 1 is empty"),
        (b'{"text": "a", "more": 1}', 422, "more"),
        (b'{"text": "a", "top_k": 0}', 422, "top_k"),
        (b'{"text": "a", "top_k": "1"}', 422, "top_k"),
        (b'{"text": "a", "top_k": true}', 422, "top_k"),
        (b'{"texts": ["a", "b"], "pairs": ["c"]}', 422, "2 texts but 1 pairs"),
        (b'{"text": "a", "pairs": ["c"]}', 422, "pair belongs"),
        (b'{"text": "a", "pair": " "}', 422, "pair 1 is empty"),
        (b'{"texts": ["a", "a", "a", "a", "a"]}', 413, "5 texts; at most 4"),
        (b'{"text": "' + b"a" * 301 + b'"}', 413, "301 characters; at most 300"),
        (b'{"text": "a' + b" " * 2000 + b'"}', 413, "larger than 2000 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_predict_refuses_invalid_requests(body: bytes, status: int, words: str, client: TestClient) -> None:
    reply = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    assert words.lower() in reply.json()["error"].lower()
    assert client.post("/predict", json={"text": "好"}).status_code == 200


def test_predict_counts_a_body_while_it_arrives(client: TestClient) -> None:
    """Chunked, so that no length is announced; the rest of it is never asked for."""
    sent = [0]

    def endless() -> Iterator[bytes]:
        while sent[0] < 1000:
            sent[0] += 1
            yield b" " * 500

    reply = client.post("/predict", content=endless(), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413 and reply.headers["connection"] == "close"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_predict_reads_only_json(kind: str, client: TestClient) -> None:
    """What a page of another site may send without asking first."""
    reply = client.post("/predict", content=b'{"text": "a"}', headers={"Content-Type": kind})
    assert reply.status_code == 415


def test_other_hosts_are_refused_and_no_cors_headers_are_sent(predictor: Predictor) -> None:
    with client_of(predictor) as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80"):
            assert client.get("/info", headers={"Host": host}).status_code == 400
        for host in ("localhost:8000", "127.0.0.1", "127.0.0.1:9"):
            assert client.get("/info", headers={"Host": host}).status_code == 200
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        reply = client.options("/predict", headers=asked)
        assert reply.status_code == 405
        reply = client.get("/info", headers=asked)
        assert not any(name.startswith("access-control") for name in reply.headers)
    with client_of(predictor, hosts=("shop.example",)) as client:
        assert client.get("/info", headers={"Host": "shop.example"}).status_code == 200
        assert client.get("/info", headers={"Host": "localhost"}).status_code == 400


def test_other_methods_and_paths_are_refused(client: TestClient) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/page/page.js").status_code == 404


def test_predict_answers_429_for_a_full_queue_and_503_for_a_late_answer(predictor: Predictor) -> None:
    holder = HeldPredictor(predictor)
    limits = Limits(seconds=0.5, queue_texts=1)
    service = Service(predictor, limits)
    service.batcher.predictor = holder  # type: ignore[assignment]
    with TestClient(service.app, base_url=LOCAL) as client:
        late = client.post("/predict", json={"text": "好"})  # inside the model, for longer than allowed
        assert late.status_code == 503 and late.headers["retry-after"] and "0.5 s" in late.json()["error"]
        waiting = service.batcher.submit(["坏"], None, time.monotonic() + 60)
        full = client.post("/predict", json={"text": "好"})
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200  # it says so while the model works
        holder.go_on.set()
        assert waiting.result(30)
        assert client.post("/predict", json={"text": "好"}).status_code == 200
    assert client.post("/predict", json={"text": "好"}).status_code == 503  # stopped


def test_a_head_that_reads_features_cannot_explain(client: TestClient) -> None:
    assert client.get("/info").json()["explains"] is False
    refused = client.post("/predict", json={"text": "好", "explain": True})
    assert refused.status_code == 422 and "cannot explain" in refused.json()["error"]
