"""How near extraction by an endpoint comes to what the server can answer.

    PYTHONPATH=. python benchmarks/endpoint.py [--json] [--seconds 20]

The server is a process of this machine with 50 ms latency, 2 % of errors and 8 requests at a time. Its limit
is 8 requests of 32 texts in 50 ms, less what the errors take. A bare client, 8 connections that send the same
requests and throw the answers away, says how much of that the server gives on this machine. Time counts from
the first to the last text.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from featcache.extraction.api import extract_splits
from featcache.settings import load_settings
from featcache.system.progress import Progress
from tests.support.endpoint_server import NAME, server_process

LATENCY, ERRORS, INSIDE, TEXTS = 0.05, 0.02, 8, 32
TRIES = 50  # of one request of the bare client
LIMIT = (1 - ERRORS) * INSIDE * TEXTS / LATENCY  # texts a second
BEHAVIOUR = {"latency": LATENCY, "errors": ERRORS, "width": 32}


def measure(seconds: float, folder: Path, *, busy: bool) -> dict[str, float | str]:
    """One extraction of about so many seconds; `busy`: more than 8 requests are sent, and get a 429."""
    rows = int(LIMIT * seconds)
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "train.csv").write_text("text,label\n" + "".join(f"{text(n)},{n % 2}\n" for n in range(rows)))
    steps: list[tuple[float, int]] = []

    def note(event: Progress) -> None:
        if event.stage == "encode":
            steps.append((time.perf_counter(), event.done))

    with server_process(**BEHAVIOUR, most_inside=INSIDE if busy else 0) as model:
        own = {"model": model, "dataset": str(data), "cache_dir": str(folder / "cache")}
        settings = load_settings({**own, "connections": 16 if busy else INSIDE}, path="/dev/null")
        (made,) = extract_splits(settings, ["train"], note)
    reached = made.encoded / (steps[-1][0] - steps[0][0])  # without the rows held out for validation
    return _row("16 connections, 429 above 8" if busy else "8 connections", made.encoded, reached)


def measure_bare(seconds: float) -> dict[str, float | str]:
    """A client that does nothing with the answers."""
    texts, lock, answered = iter(range(int(LIMIT * seconds))), threading.Lock(), []
    with server_process(**BEHAVIOUR) as model:
        address = urlsplit(model.partition("+")[2].partition("#")[0])

        def work() -> None:
            connection = http.client.HTTPConnection(address.netloc)
            while True:
                with lock:
                    some = [text(n) for n in itertools.islice(texts, TEXTS)]
                if not some:
                    return
                answered.append(_ask(connection, address.path, some))

        threads = [threading.Thread(target=work) for _ in range(INSIDE)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reached = sum(answered) / (time.perf_counter() - began)
    return _row("bare client", sum(answered), reached)


def text(number: int) -> str:
    return f"text number {number}"


def _ask(connection: http.client.HTTPConnection, path: str, some: list[str]) -> int:
    """Send texts until they are answered, at most `TRIES` times; their number."""
    body = json.dumps({"model": NAME, "input": some})
    for _ in range(TRIES):
        try:
            connection.request("POST", f"{path}/embeddings", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                return len(some)
        except (http.client.HTTPException, OSError):
            connection.close()
    raise RuntimeError(f"{path} does not answer")


def _row(server: str, rows: int, reached: float) -> dict[str, float | str]:
    ratio = round(reached / LIMIT, 3)
    return {"server": server, "rows": rows, "texts_a_second": round(reached), "ratio": ratio}


def _measured(seconds: float) -> Iterator[dict[str, float | str]]:
    bare = measure_bare(seconds)
    yield bare
    with tempfile.TemporaryDirectory() as folder:
        for busy in (False, True):
            found = measure(seconds, Path(folder, str(busy)), busy=busy)
            found["ratio_to_bare"] = round(found["texts_a_second"] / bare["texts_a_second"], 3)  # type: ignore[operator]
            yield found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = list(_measured(args.seconds))
    if args.json:
        print(json.dumps({"rows": found}))
        return
    for row in found:
        beside = f", {row['ratio_to_bare']:.3f} of the bare client" if "ratio_to_bare" in row else ""
        print(
            f"{row['server']:<32} {row['texts_a_second']:>6} texts/s  {row['ratio']:.3f} of the limit{beside}"
        )


if __name__ == "__main__":
    main()
