"""How fast the server answers, beside a server as tutorials write it, in one run.

Both serve the same model and the same head on the same texts, each in a process of its own, one after the
other. The clients are a third process: one text a request, the next one after the answer.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from featcache.bench.timing import DIGITS
from featcache.errors import FeatcacheError
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

CLIENTS = (1, 32)
WARM_UP = 3.0  # seconds of requests that do not count
START = 300.0  # seconds in which a server must start


@dataclass(frozen=True, kw_only=True)
class ClientFigures:
    """What some clients measured; memory in MB (2^20 bytes), NaN if the system does not report it."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    requests: int
    rss_mb: float
    grown_mb: float


@dataclass(frozen=True, kw_only=True)
class ServeBenchmark:
    """What `bench_serve` returns.

    Attributes:
        ratio_1, ratio_32: requests a second over those of the naive server, by number of clients.
        p99_ms_32, errors: of this server.
        servers: figures by server and number of clients.
        agree: share of texts for which both servers answer the same label.
    """

    ratio_1: float
    ratio_32: float
    p99_ms_32: float
    errors: int
    servers: dict[str, dict[str, ClientFigures]]
    agree: float
    texts: int
    mean_characters: float
    seconds: float


def bench_serve(
    run: Path, texts: Sequence[str], *, seconds: float = 20.0, on_progress: OnProgress = ignore
) -> ServeBenchmark:
    """Requests a second and latencies at 1 and 32 clients, of this server and of a naive one.

    Args:
        run: folder of a trained run.
        texts: the texts of the requests, one each, again and again.
        seconds: how long each of the four measurements takes.
        on_progress: receives what is measured next as a stage.

    Raises:
        FeatcacheError: a server did not start.
    """
    measured: dict[str, dict[str, ClientFigures]] = {}
    labels: dict[str, list[str]] = {}
    for name, start in (("featcache", _serve), ("naive", _serve_naive)):
        on_progress(Progress(f"{name}: loading"))
        with _server(start, run) as (port, pid):
            labels[name] = asyncio.run(_ask_each(port, list(texts)[:64]))
            asyncio.run(_measure(port, pid, texts, max(CLIENTS), WARM_UP))
            measured[name] = {}
            for clients in CLIENTS:
                on_progress(Progress(f"{name}: {clients} clients"))
                figures = asyncio.run(_measure(port, pid, texts, clients, seconds))
                measured[name][str(clients)] = figures
    ours, naive = measured["featcache"], measured["naive"]
    agree = [a == b for a, b in zip(labels["featcache"], labels["naive"], strict=True)]
    result = ServeBenchmark(
        ratio_1=ours["1"].requests_per_s / naive["1"].requests_per_s,
        ratio_32=ours["32"].requests_per_s / naive["32"].requests_per_s,
        p99_ms_32=ours["32"].p99_ms,
        errors=sum(figures.errors for figures in ours.values()),
        servers=measured,
        agree=statistics.mean(agree),
        texts=len(texts),
        mean_characters=statistics.mean(map(len, texts)),
        seconds=seconds,
    )
    return tidied(result, digits=DIGITS)


# --- the servers --------------------------------------------------------------------------------


def _serve(run: Path, listening: socket.socket, ready: Connection) -> None:
    from featcache.prediction.predictor import Predictor
    from featcache.serving.app import Service
    from featcache.serving.server import keep_few_kernels, serve

    keep_few_kernels()
    service = Service(Predictor.from_run(run))
    ready.send(True)
    serve(service, listening)


def _serve_naive(run: Path, listening: socket.socket, ready: Connection) -> None:
    import uvicorn

    app = naive_app(run)
    ready.send(True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])


def naive_app(run: Path) -> Any:
    """FastAPI around a `transformers` pipeline and the same head, as in tutorials: one text at a time.

    No classification model of transformers has a head on mean-pooled features, so the pipeline is the one for
    features, in its default float32; pooling and head are two lines of numpy.
    """
    from fastapi import Body, FastAPI
    from transformers import pipeline

    from featcache.runs.run import load_run

    found = load_run(Path("reports"), str(run))
    head = found.head()
    layer, pooling = head.view.split("/")
    if layer != "last" or pooling not in ("mean", "cls"):
        raise FeatcacheError(
            f"the naive server has no features {head.view}", hint="choose a run of last/mean or last/cls"
        )
    model = found.record.backbone.model
    encode = pipeline("feature-extraction", model=model, tokenizer=model, device="cpu")
    prompt, length = head.encoder.prompt, head.encoder.max_length
    cut = {"truncation": True, "max_length": length}
    app = FastAPI()

    @app.post("/predict")
    def predict(text: str = Body(embed=True)) -> dict[str, Any]:
        states = np.asarray(encode(prompt + text, tokenize_kwargs=cut)[0], dtype=np.float32)
        vector = states.mean(0) if pooling == "mean" else states[0]
        shares = head.predict_proba(vector[None])[0]
        best = int(shares.argmax())
        return {"label": head.label_names[best], "probability": float(shares[best])}

    return app


@contextmanager
def _server(start: Callable[[Path, socket.socket, Connection], None], run: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and its process id."""
    from featcache.serving.server import bind

    context = multiprocessing.get_context("spawn")
    with bind("127.0.0.1", 0) as listening:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=start, args=(run, listening, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            try:
                there = ours.poll(START) and ours.recv()
            except EOFError:
                there = False
            if not there:
                raise FeatcacheError("the server did not start", hint="see the message above")
            yield listening.getsockname()[1], process.pid or 0
        finally:
            process.terminate()
            process.join(30)
            if process.is_alive():
                process.kill()
                process.join()


# --- the clients --------------------------------------------------------------------------------


async def _measure(port: int, pid: int, texts: Sequence[str], clients: int, seconds: float) -> ClientFigures:
    """Clients that send one text after the other on a persistent connection until the time is over."""
    before = _resident_mb(pid)
    began = time.perf_counter()
    end = began + seconds
    found = await asyncio.gather(*(_client(port, texts, n, end) for n in range(clients)))
    elapsed = time.perf_counter() - began
    times = np.sort([one for times, _ in found for one in times]) * 1000
    errors = sum(count for _, count in found)
    if not len(times):
        raise FeatcacheError("the server answered no request", hint="see the message above")
    after = _resident_mb(pid)
    p50, p99 = np.percentile(times, [50, 99])
    return ClientFigures(
        requests_per_s=len(times) / elapsed,
        p50_ms=float(p50),
        p99_ms=float(p99),
        errors=errors,
        requests=len(times),
        rss_mb=after,
        grown_mb=after - before,
    )


async def _client(port: int, texts: Sequence[str], place: int, end: float) -> tuple[list[float], int]:
    """Seconds of each answer, and how many requests failed."""
    times: list[float] = []
    errors = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while (began := time.perf_counter()) < end:
            status, _ = await _ask(reader, writer, texts[place % len(texts)])
            place += 7919  # a prime: every client sends the texts in another order
            if status == 200:
                times.append(time.perf_counter() - began)
            else:
                errors += 1
    except (OSError, asyncio.IncompleteReadError):
        errors += 1
    finally:
        writer.close()
    return times, errors


async def _ask_each(port: int, texts: Sequence[str]) -> list[str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return [(await _ask(reader, writer, text))[1].get("label", "") for text in texts]
    finally:
        writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str
) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(answer[9:12]), json.loads(await reader.readexactly(length))


def _resident_mb(pid: int) -> float:
    """Resident memory of a process; NaN if the system does not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return float("nan")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
