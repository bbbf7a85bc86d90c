"""A server of `/v1/embeddings` on loopback, with latency, limits, errors and answers that are wrong.

In a thread: `with EndpointServer(Behaviour(latency=0.05)) as server: ... server.model ...`. In a process of
its own: `with server_process(log, latency=0.05) as model`, which writes each text that it answers to `log`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np

NAME = "tiny-embedding"


def vector_of(text: str, width: int = 16, model: str = "a") -> np.ndarray:
    """The vector of a text, float32 `[width]` of length 1; other models give others."""
    return vectors_of([text], width, model)[0]


def vectors_of(texts: Sequence[str], width: int = 16, model: str = "a") -> np.ndarray:
    """The vector of each text, float32 `[N, width]`."""
    drawn = b"".join(hashlib.shake_128(f"{model}\0{text}".encode()).digest(4 * width) for text in texts)
    values = np.frombuffer(drawn, "<u4").reshape(len(texts), width) / 2.0**31 - 1.0
    for number, word in enumerate(("good", "bad", "fine", "poor")):  # so that a head can learn something
        has = np.array([word in text for text in texts])
        values[:, number % 2] += 4.0 * has * (1 if number % 2 == 0 else -1)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Behaviour:
    """What the server does; may be changed while it runs.

    Attributes:
        latency: seconds from a request to its answer.
        errors: share of the requests that get a 500, a 503 or a broken connection.
        most_inside: requests that are answered at a time; others get a 429. 0: no limit.
        rate: requests a second; others get a 429. 0: no limit.
        retry_after: of a 429.
        most_texts: of a request; more of them are a 400. 0: no limit.
        width, model: see `vector_of`.
        form: `right`, `reversed`, `base64`, `html`, `half`, `nothing`, `fewer`, `no index`, `null`, `error`,
            `redirect`, `silent`.
        times: of the answers in that form; then they are right. 0: always.
        status, message: of the form `error`.
        bad_text: texts that contain it are a 400.
        ignore_dimensions: `dimensions` is not followed.
        usage: tokens are counted, as characters.
    """

    latency: float = 0.0
    errors: float = 0.0
    most_inside: int = 0
    rate: float = 0.0
    retry_after: str = "1"
    most_texts: int = 0
    width: int = 16
    model: str = "a"
    form: str = "right"
    times: int = 0
    status: int = 500
    message: str = "out of order"
    bad_text: str = ""
    ignore_dimensions: bool = False
    usage: bool = True
    location: str = ""


@dataclass
class Seen:
    """What the server was asked."""

    requests: int = 0
    answered: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    refused: int = 0
    most_inside: int = 0


class EndpointServer:
    """A server on a free port of 127.0.0.1; a context manager.

    Args:
        log: a file that each answered text is written to, a line of JSON each.
    """

    def __init__(self, behaviour: Behaviour | None = None, log: Path | None = None) -> None:
        self.behaviour, self.seen, self.log = behaviour or Behaviour(), Seen(), log
        self.lock, self.inside, self.tokens, self.filled = threading.Lock(), 0, 0.0, time.monotonic()
        self.draw = random.Random(0)
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Request)
        self.http.daemon_threads = True
        self.http.endpoint = self  # type: ignore[attr-defined]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def model(self) -> str:
        """For `--model`."""
        return f"openai+{self.address}#{NAME}"

    def note(self, texts: Sequence[str]) -> None:
        """These texts are answered."""
        self.seen.answered += texts
        if self.log and texts:
            with self.log.open("a") as log:
                log.write("".join(json.dumps(text) + "\n" for text in texts))

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


class _Reply(NamedTuple):
    status: int
    content: Any  # bytes, or what JSON can hold
    headers: Mapping[str, str] | None = None
    texts: Sequence[str] = ()  # whose vectors these are


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        arrived = time.monotonic()
        server: EndpointServer = self.server.endpoint  # type: ignore[attr-defined]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        now = server.behaviour
        with server.lock:
            server.seen.requests += 1
            server.seen.keys.add(self.headers.get("Authorization"))
            server.seen.bodies.append({name: value for name, value in asked.items() if name != "input"})
            refused = self._is_full(server)
            server.seen.refused += refused
            server.inside += not refused
            server.seen.most_inside = max(server.seen.most_inside, server.inside)
            failed = server.draw.random() < now.errors
            kind = server.draw.choice(("500", "503", "reset")) if failed else now.form
            if kind == now.form and now.times:
                now.times -= 1
                if now.times == 0:
                    now.form = "right"
        if refused:
            self._send(_Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": now.retry_after}))
            return
        reply: _Reply | None = None
        try:
            reply = self._reply(server, asked, kind)
            time.sleep(max(0.0, arrived + now.latency - time.monotonic()))
        finally:
            with server.lock:
                server.inside -= 1
                server.note(reply.texts if reply else ())
        if reply is None:
            self.close_connection = True
        else:
            self._send(reply)

    def _is_full(self, server: EndpointServer) -> bool:
        now = server.behaviour
        if now.rate:
            moment = time.monotonic()
            server.tokens = min(now.rate, server.tokens + (moment - server.filled) * now.rate)
            server.filled = moment
            if server.tokens < 1:
                return True
            server.tokens -= 1
        return bool(now.most_inside) and server.inside >= now.most_inside

    def _reply(self, server: EndpointServer, asked: Mapping[str, Any], kind: str) -> _Reply | None:
        """None: the connection is broken off."""
        now, texts = server.behaviour, asked["input"]
        if kind in ("500", "503"):
            return _Reply(int(kind), {"error": {"message": "for a moment"}})
        if kind in ("reset", "silent"):
            if kind == "silent":
                server.closing.wait(30)
            return None
        if kind == "error":
            return _Reply(now.status, {"error": {"message": now.message}})
        if kind == "redirect":
            return _Reply(307, {}, {"Location": now.location})
        if kind == "html":
            page = b"<html><head><title>Sign in</title></head></html>"
            return _Reply(200, page, {"Content-Type": "text/html"})
        if kind == "nothing":
            return _Reply(200, b"")
        if now.most_texts and len(texts) > now.most_texts:
            message = f"batch size must not be larger than {now.most_texts}"
            return _Reply(400, {"error": {"message": message}})
        if now.bad_text and any(now.bad_text in text for text in texts):
            return _Reply(400, {"error": {"message": "the text is too long"}})
        width = now.width if now.ignore_dimensions else asked.get("dimensions") or now.width
        return _Reply(200, self._vectors(now, texts, kind, width), texts=texts)

    def _vectors(self, now: Behaviour, texts: list[str], kind: str, width: int) -> bytes:
        rows = vectors_of(texts, width, now.model)
        shown: list[Any] = rows.astype(float).round(6).tolist()
        if kind == "base64":
            shown = [base64.b64encode(row.tobytes()).decode() for row in rows]
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": number, "embedding": values}
            for number, values in enumerate(shown)
        ]
        if kind == "reversed":
            data.reverse()
        elif kind == "fewer":
            data.pop()
        elif kind == "no index":
            data = [{name: value for name, value in one.items() if name != "index"} for one in data]
        elif kind == "null":
            data[0]["embedding"] = [None] * width
        answer: dict[str, Any] = {"object": "list", "data": data, "model": NAME}
        if now.usage:
            answer["usage"] = {"total_tokens": sum(map(len, texts)), "prompt_tokens": sum(map(len, texts))}
        body = msgspec.json.encode(answer)
        return body[: len(body) // 2] if kind == "half" else body

    def _send(self, reply: _Reply) -> None:
        content = reply.content
        body = content if isinstance(content, bytes) else msgspec.json.encode(content)
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **(reply.headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]  # one write
        self.flush_headers()


@contextmanager
def server_process(log: Path | None = None, **behaviour: Any) -> Iterator[str]:
    """The `--model` of a server in a process of its own."""
    words = [sys.executable, "-m", "tests.support.endpoint_server"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in behaviour.items()]
    words += [f"--log={log}"] if log else []
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _main() -> None:
    parser = argparse.ArgumentParser()
    for each in fields(Behaviour):
        if not isinstance(each.default, bool):
            parser.add_argument(
                "--" + each.name.replace("_", "-"), type=type(each.default), default=each.default
            )
    parser.add_argument("--log", type=Path)
    given = vars(parser.parse_args())
    log = given.pop("log")
    with EndpointServer(Behaviour(**given), log) as server:
        print(server.model, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _main()
