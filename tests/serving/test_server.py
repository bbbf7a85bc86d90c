"""The server: what it answers, what it refuses, and that it stays up whatever it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.stock import one_thread, sentence
from tests.support.tiny_predictor import NAMES, tiny_predictor

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from featcache.errors import BadRow, UsageError
from featcache.prediction.predictor import Prediction, Predictor
from featcache.serving import server as serving
from featcache.serving.app import Limits, RunInfo, Service
from featcache.serving.batcher import Batcher, DeadlinePassed, QueueFull, QueueStopping

LOCAL = "http://127.0.0.1"
LIMITS = Limits(body_bytes=2000, texts=4, characters=300, seconds=20, queue_texts=8)


@pytest.fixture(scope="module")
def predictor(tiny: Callable[[str], Path]) -> Iterator[Predictor]:
    with one_thread():
        yield tiny_predictor(tiny("bert"))


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


# ---------------------------------------------------------------- what it answers


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
    assert set(asked["properties"]) == {"text", "texts", "pair", "pairs", "top_k"}
    for path in ("/docs", "/redoc"):  # pages that would load scripts from elsewhere
        assert client.get(path).status_code == 404


def test_metrics_count_requests_and_texts(predictor: Predictor) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with client_of(predictor) as client:
        client.post("/predict", json={"texts": ["好", "坏"]})
        client.post("/predict", json={"text": ""})
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


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    import re

    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["/page.css", "/page.js", "data:,"]
    for path, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript")):
        part = client.get(path)
        assert part.status_code == 200 and part.headers["content-type"].startswith(kind)
        assert "http" not in part.text and "innerHTML" not in part.text
    assert "<script>" not in page.text and "onclick" not in page.text  # the policy would stop them


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff\xfe{}", 400, "JSON"),
        (b'{"text": "\xff"}', 400, "JSON"),
        (b'{"text": "\\ud800"}', 400, "JSON"),
        (b"[" * 1500, 400, "recursion"),
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


def test_batcher_gives_the_error_of_a_text_only_to_its_request(predictor: Predictor) -> None:
    """One batch, one bad text: alone it gets the error."""
    predict = predictor.predict

    class Picky:
        def predict(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
            if "bad" in texts:
                raise BadRow("its features are NaN", texts.index("bad"))
            return predict(texts, pairs)

    batcher = Batcher(held := Held(Picky()), 100)  # type: ignore[arg-type]
    first = batcher.submit(["first"], None, time.monotonic() + 60)
    assert held.inside.wait(30)
    jobs = [batcher.submit([text], None, time.monotonic() + 60) for text in ("好", "bad", "坏")]
    held.go_on.set()
    assert first.result(30) and jobs[0].result(30)[0].text == "好" and jobs[2].result(30)[0].text == "坏"
    with pytest.raises(BadRow):
        jobs[1].result(30)
    batcher.stop()


# ---------------------------------------------------------------- the queue


class Held:
    """A predictor that waits for `go_on` and notes the texts of each call."""

    def __init__(self, predictor: Any) -> None:
        self.predictor, self.calls = predictor, []
        self.inside, self.go_on = threading.Event(), threading.Event()

    def predict(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
        self.inside.set()
        assert self.go_on.wait(60)
        self.calls.append((len(texts), pairs is not None))
        found: list[Prediction] = self.predictor.predict(texts, pairs)
        return found


@pytest.fixture
def held(predictor: Predictor) -> Iterator[tuple[Held, Batcher]]:
    """With one request inside the model already."""
    holder = Held(predictor)
    batcher = Batcher(holder, 10)  # type: ignore[arg-type]
    batcher.submit(["first"], None, time.monotonic() + 60)
    assert holder.inside.wait(30)
    yield holder, batcher
    holder.go_on.set()
    batcher.stop()


def ask(batcher: Batcher, *texts: str, pairs: Any = None, seconds: float = 60) -> Future[list[Prediction]]:
    return batcher.submit(list(texts), pairs, time.monotonic() + seconds)


def test_batcher_answers_waiting_requests_together(held: tuple[Held, Batcher], predictor: Predictor) -> None:
    holder, batcher = held
    jobs = [ask(batcher, f"好 {n}") for n in range(5)] + [ask(batcher, "坏", "差")]
    holder.go_on.set()
    found = [one for job in jobs for one in job.result(30)]
    assert holder.calls == [(1, False), (7, False)]
    expected = predictor.predict([one.text for one in found])
    assert [one.text for one in found] == [*(f"好 {n}" for n in range(5)), "坏", "差"]
    assert [one.label for one in found] == [one.label for one in expected]


def test_batcher_does_not_mix_pairs_and_single_texts(held: tuple[Held, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a"), ask(batcher, "b"), ask(batcher, "c", pairs=["d"]), ask(batcher, "e")]
    holder.go_on.set()
    assert [job.result(30)[0].text for job in jobs] == ["a", "b", "c", "e"]
    assert holder.calls == [(1, False), (2, False), (1, True), (1, False)]


def test_batcher_refuses_requests_when_the_queue_is_full(held: tuple[Held, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a") for _ in range(10)]
    with pytest.raises(QueueFull) as caught:
        ask(batcher, "b")
    assert caught.value.retry_after >= 1 and batcher.waiting == 10
    holder.go_on.set()
    assert all(job.result(30) for job in jobs)
    assert ask(batcher, *["c"] * 11).result(30)  # alone, a request may be larger than the queue


def test_batcher_skips_late_and_cancelled_requests(held: tuple[Held, Batcher]) -> None:
    holder, batcher = held
    late, gone, fine = ask(batcher, "late", seconds=-1), ask(batcher, "gone"), ask(batcher, "fine")
    assert gone.cancel()
    holder.go_on.set()
    assert fine.result(30)
    with pytest.raises(DeadlinePassed):
        late.result(30)
    assert holder.calls == [(1, False), (1, False)] and batcher.waiting == 0


def test_batcher_stop_answers_queued_requests(held: tuple[Held, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a") for _ in range(5)]
    stopper = threading.Thread(target=batcher.stop)
    stopper.start()
    with pytest.raises(QueueStopping):
        for _ in range(1000):
            ask(batcher, "late")
            time.sleep(0.001)
    holder.go_on.set()
    stopper.join(30)
    assert not stopper.is_alive() and all(job.done() and job.result() for job in jobs)


def test_batcher_continues_after_an_error_of_the_model(predictor: Predictor) -> None:
    class Broken:
        def predict(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
            if texts == ["break"]:
                raise ZeroDivisionError
            return predictor.predict(texts, pairs)

    batcher = Batcher(Broken(), 10)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        ask(batcher, "break").result(30)
    assert ask(batcher, "好").result(30)
    batcher.stop()


def test_predict_answers_429_for_a_full_queue_and_503_for_a_late_answer(predictor: Predictor) -> None:
    holder = Held(predictor)
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


# ---------------------------------------------------------------- a real server

SERVER = """
import json
import sys
from pathlib import Path
from featcache.serving import server as serve
from featcache.serving.app import Limits, Service
from tests.support.stock import one_thread
from tests.support.tiny_predictor import tiny_predictor
serve.HEADER_SECONDS = 0.5
with one_thread():
    listening = serve.bind("127.0.0.1", 0)
    service = Service(tiny_predictor(Path(sys.argv[1])), Limits(seconds=2))
    print(listening.getsockname()[1], flush=True)
    serve.serve(service, listening)
counts = {
    one.labels["status"]: one.value for one in service.requests.collect()[0].samples if "total" in one.name
}
print(json.dumps(counts), flush=True)
"""


@contextlib.contextmanager
def server(model: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(model)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()


def raw(port: int, content: bytes, seconds: float = 10) -> bytes:
    """What comes back for these bytes, until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(content)
        found = b""
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                found += part
        return found


def request(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def hammer(port: int, stop: asyncio.Event, sent: list[int]) -> list[str]:
    """Requests one after the other on kept connections; the answers that were no 200, or cut short."""
    lost: list[str] = []
    body = request(json.dumps({"text": "好 房间 干净"}).encode())
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            break  # the door is closed: nothing was accepted
        try:
            while not stop.is_set():
                writer.write(body)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                if not head.startswith(b"HTTP/1.1 200"):
                    lost.append(head.decode())
                sent[0] += 1
                if b"connection: close" in head.lower():
                    break
        except asyncio.IncompleteReadError as error:
            lost += [repr(error)] * bool(error.partial)
        except OSError:
            pass  # closed between two requests
        finally:
            writer.close()
    return lost


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_serve_answers_slow_broken_and_stopped_clients(tiny: Callable[[str], Path]) -> None:
    """Hostile clients first, then many friendly ones, and SIGTERM in their midst: nothing is lost."""
    with server(tiny("bert")) as (port, process):
        fine = request('{"text": "好"}'.encode(), "Connection: close")
        assert raw(port, fine).startswith(b"HTTP/1.1 200")
        for hostile in (
            b"\x00" * 100,
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            request(b"{}", "Content-Length: 3", "Connection: close"),
        ):
            assert raw(port, hostile).startswith(b"HTTP/1.1 4"), hostile[:40]
        began = time.monotonic()
        assert raw(port, b"POST /pre") == b""  # a head that never ends
        assert raw(port, request(b"{", length=100)).startswith(b"HTTP/1.1 408")  # a body that never comes
        assert time.monotonic() - began < 9
        assert raw(port, fine).startswith(b"HTTP/1.1 200")
        sent = [0]
        assert asyncio.run(under_load(port, process.pid, sent)) == []
        assert process.wait(30) == 0 and process.stdout
        counts = json.loads(process.stdout.read())
        assert counts == {"200": sent[0] + 2, "408": 1} and sent[0] > 100  # all it took, their clients have


async def under_load(port: int, pid: int, sent: list[int]) -> list[str]:
    stop = asyncio.Event()
    clients = [asyncio.create_task(hammer(port, stop, sent)) for _ in range(16)]
    while sent[0] < 100:
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    done, late = await asyncio.wait(clients, timeout=20)
    stop.set()
    assert not late
    return [line for client in done for line in client.result()]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_bind_refuses_a_port_that_is_taken() -> None:
    with serving.bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1 port {port}[\s\S]*--port 0"):
            serving.bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="70000"):
        serving.bind("127.0.0.1", 70000)


@pytest.mark.enable_socket
def test_bind_disables_the_delay_of_answers() -> None:
    """asyncio switches Nagle's algorithm off on sockets that name their protocol, and on no others."""
    import asyncio

    from featcache.serving.server import bind

    async def ask() -> int:
        seen: list[int] = []

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            seen.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(answer, sock=listening)
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        await reader.read()
        writer.close()
        server.close()
        return seen[0]

    with bind("127.0.0.1", 0) as listening:
        assert asyncio.run(ask()) != 0
