"""One process, several workers and a Ray cluster at the same extraction; a plan beside what happened; memory.

Each extraction is a process of its own with an empty cache, timed from its start to its end, so that imports,
the loading of the model and the start of Ray count as they do for a user.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.data.split import load_splits
from featcache.errors import FeatcacheError, UsageError
from featcache.settings import DataSettings, Settings, load_settings, to_toml
from featcache.system.machine import available_cores

PLANNED = (1000, 4000, 9000)  # rows that a plan is checked at, as far as the data has them
LARGE_ROWS, LARGE_WIDTH = 20_000_000, 64
TRIED = 4096  # texts by which it is found how many take the seconds asked for


def bench_scale(
    settings: Settings,
    *,
    seconds: float = 180.0,
    workers: int = 2,
    engines: Sequence[str] = ("workers", "ray"),
    planned: Sequence[int] = PLANNED,
    large_rows: int = LARGE_ROWS,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What several workers gain over one process that has all their cores.

    Args:
        seconds: that one process is to take; its texts are made from halves of those of the train split.
        workers: how many; each has its share of the cores.
        engines: of `workers` and `ray`.
        planned: rows at which a plan is checked, those beyond the train split left out; none: no check.
        large_rows: rows of a sharded cache of width 64 that a head is trained on; 0: none.

    Returns:
        A JSON-able document: `seconds` of each engine, `workers_2_efficiency` (one process over workers),
        `ray_2_efficiency` (workers over Ray), `plan_error` (the largest of `plans`), `rss_mb_20m`, `machine`.

    Raises:
        UsageError: an engine that is none.
        FeatcacheError: an extraction that failed, with what it said.
    """
    if unknown := set(engines) - {"workers", "ray"}:
        raise UsageError(f"no engine {min(unknown)!r} to measure", hint="there are: workers, ray")
    result: dict[str, Any] = {}
    if engines:
        result |= _engines(settings, seconds, workers, engines, report)
    result |= _plans(settings, planned, report)
    if large_rows:
        from featcache.bench.memory import shard_memory

        report(f"a sharded cache of {large_rows:,} rows")
        result["rss_mb_20m"] = round(shard_memory(rows=large_rows, width=LARGE_WIDTH), 1)
        result["large_rows"] = large_rows
    result["machine"] = {
        "cores": len(available_cores()),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", ""),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "ray") if find_spec(name) is not None
        },
    }
    return result


def _engines(
    settings: Settings, seconds: float, workers: int, engines: Sequence[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """The same texts by one process and by each engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("how many texts that takes")
        rate = (
            TRIED / _timed(settings, _made_up(settings, TRIED, folder / "few"), folder / "few", "one", 1)[1]
        )
        rows = max(int(seconds * rate), TRIED)
        data = _made_up(settings, rows, folder)
        took: dict[str, float] = {}
        files: dict[str, bytes] = {}
        for engine, count in [("one", 1), *((engine, workers) for engine in engines)]:
            report(f"{rows:,} texts: {engine}" + (f", {count} of them" if count > 1 else ""))
            took[engine], _, files[engine] = _timed(settings, data, folder / engine, engine, count)
    found: dict[str, Any] = {"rows": rows, "seconds": {key: round(value, 1) for key, value in took.items()}}
    found["texts_a_second"] = {key: round(rows / value, 1) for key, value in took.items()}
    # One process has all cores as its threads, a worker has its share: then the last bits may differ.
    found["same_bytes"] = {f"{a} and {b}": files[a] == files[b] for a, b in itertools.combinations(files, 2)}
    if "workers" in took:
        found[f"workers_{workers}_efficiency"] = round(took["one"] / took["workers"], 4)
        if "ray" in took:
            found[f"ray_{workers}_efficiency"] = round(took["workers"] / took["ray"], 4)
    return found


def _made_up(settings: Settings, rows: int, folder: Path) -> DataSettings:
    """So many texts, each of a half of one text of the train split and a half of another."""
    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    texts = split.texts(slice(None))
    dice = np.random.default_rng(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.jsonl", "w", encoding="utf-8", errors="surrogatepass") as file:
        for number, (a, b) in enumerate(dice.integers(len(texts), size=(rows, 2))):
            text = texts[a][: -(-len(texts[a]) // 2)] + texts[b][len(texts[b]) // 2 :]
            file.write(json.dumps({"text": text, "label": number % 2}, ensure_ascii=False) + "\n")
    return DataSettings(data_files={"train": str(folder / "train.jsonl")}, validation_share=0.001)


def _timed(
    settings: Settings, data: DataSettings, folder: Path, engine: str, count: int
) -> tuple[float, float, bytes]:
    """Seconds of an extraction in a new process, those of them after the model was loaded, and the file."""
    folder.mkdir(exist_ok=True)
    paths = dataclasses.replace(settings.paths, cache_dir=str(folder / "cache"))
    own = dataclasses.replace(settings, data=data, paths=paths)
    (folder / "settings.toml").write_text(to_toml(own), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "featcache.bench.scale",
        str(folder / "settings.toml"),
        engine,
        str(count),
    ]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FeatcacheError(f"the extraction by {engine} failed: {last}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, said["encoding"], Path(said["path"]).read_bytes()


def _plans(settings: Settings, planned: Sequence[int], report: Callable[[str], None]) -> dict[str, Any]:
    """Plans of some sizes beside what extractions of these took."""
    from featcache.bench.plan_check import check_plan

    rows = len(load_splits(settings.data, ["train"], seed=settings.seed)["train"]) if planned else 0
    checked = []
    for size in (size for size in planned if size <= rows):
        report(f"a plan of {size:,} rows, and what it comes to")
        checked.append(check_plan(settings, size))
    if not checked:
        return {}
    plans = [
        {
            "rows": one.rows,
            "planned": round(one.planned, 2),
            "interval": [round(one.low, 2), round(one.high, 2)],
            "measured": round(one.measured, 2),
            "error": round(one.error, 4),
        }
        for one in checked
    ]
    return {"plans": plans, "plan_error": round(max(one.error for one in checked), 4)}


def main(path: str, engine: str, count: str) -> None:
    """One extraction, as a process of its own; stdout says how long encoding took, and what file it made."""
    settings = load_settings(path=path)
    began: list[float] = []

    def report(event: Any) -> None:
        if event.stage == "encode" and not began:
            began.append(time.perf_counter())

    from featcache.extraction.api import extract_splits

    if engine == "ray":
        from featcache.cluster.extract import extract_with_ray

        (made,) = extract_with_ray(settings, ["train"], report, workers=count)
    else:
        (made,) = extract_splits(settings, ["train"], report, workers=1 if count == "1" else count)
    encoding = time.perf_counter() - (began[0] if began else time.perf_counter())
    print(json.dumps({"encoding": encoding, "path": str(made.path.absolute())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
