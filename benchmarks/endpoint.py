"""How near extraction by an endpoint comes to what the server can answer.

    PYTHONPATH=. python benchmarks/endpoint.py [--json] [--seconds 20]

The server is a process of this machine with 50 ms latency, 2 % of errors and 8 requests at a time. Its limit
is 8 requests of 32 texts in 50 ms, less what the errors take. Time counts from the first to the last text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from featcache.extraction.api import extract_splits
from featcache.settings import load_settings
from featcache.system.progress import Progress
from tests.support.endpoint_server import server_process

LATENCY, ERRORS, INSIDE, TEXTS = 0.05, 0.02, 8, 32


def measure(seconds: float, folder: Path, *, busy: bool) -> dict[str, float | str]:
    """One extraction of about so many seconds; `busy`: more than 8 requests are sent, and get a 429."""
    limit = (1 - ERRORS) * INSIDE * TEXTS / LATENCY
    rows = int(limit * seconds)
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "train.csv").write_text(
        "text,label\n" + "".join(f"text number {n},{n % 2}\n" for n in range(rows))
    )
    steps: list[tuple[float, int]] = []

    def note(event: Progress) -> None:
        if event.stage == "encode":
            steps.append((time.perf_counter(), event.done))

    behaviour = {"latency": LATENCY, "errors": ERRORS, "most_inside": INSIDE if busy else 0, "width": 32}
    with server_process(**behaviour) as model:
        own = {"model": model, "dataset": str(data), "cache_dir": str(folder / "cache")}
        settings = load_settings({**own, "connections": 16 if busy else INSIDE}, path="/dev/null")
        (made,) = extract_splits(settings, ["train"], note)
    rows = made.encoded  # without those that are held out for validation
    reached = rows / (steps[-1][0] - steps[0][0])
    name = "16 connections, 429 above 8" if busy else "8 connections"
    return {
        "server": name,
        "rows": rows,
        "texts_a_second": round(reached),
        "ratio": round(reached / limit, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(args.seconds, Path(folder, str(busy)), busy=busy) for busy in (False, True)]
    if args.json:
        print(json.dumps({"rows": found}))
        return
    for row in found:
        speed = f"{row['texts_a_second']:>6} texts/s"
        print(f"{row['server']:<32} {speed}  {row['ratio']:.3f} of the server's limit")


if __name__ == "__main__":
    main()
