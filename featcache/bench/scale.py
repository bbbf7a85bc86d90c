"""One process, several workers and a Ray cluster at the same extraction; a plan beside what happened; memory.

Each extraction is a process of its own with an empty cache, timed from its start to its end, so that imports,
the loading of the model and the start of Ray count as they do for a user.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.bench.memory import measure
from featcache.bench.plan_check import PlanCheck, check_plan, write_rows
from featcache.bench.timing import DIGITS, Machine, run_module, this_machine, timed
from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.settings import DataSettings, Settings, load_settings
from featcache.settings_file import to_toml
from featcache.system.documents import json_document, tidied
from featcache.system.progress import OnProgress, Progress, ignore

PLANNED = (1000, 4000, 9000)  # rows at which a plan is checked, as far as the data has them
LARGE_ROWS, LARGE_WIDTH = 20_000_000, 64
TRIED = 4096  # texts from whose time the number of texts for the asked seconds is estimated


@dataclass(frozen=True)
class EngineTimes:
    """The same texts by one process and by each engine.

    Attributes:
        seconds, texts_a_second: by engine; `one` is the one process.
        same_bytes: for two engines, whether their sealed files are equal. One process uses all cores as
            threads and a worker its share of them, so that the last bits may differ.
    """

    rows: int
    workers: int
    seconds: dict[str, float]
    texts_a_second: dict[str, float]
    same_bytes: dict[str, bool]


@dataclass(frozen=True)
class ScaleBenchmark:
    """What `bench_scale` returns; None or empty for what was not measured.

    Attributes:
        rss_mb: the peak memory for a sharded cache of `large_rows` rows, see `ShardMemory`.
    """

    engines: EngineTimes | None
    plans: list[PlanCheck]
    rss_mb: float | None
    large_rows: int
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """The document of `featcache bench scale --json`; without what was not measured.

        `workers_2_efficiency` is the time of one process over that of 2 workers, `ray_2_efficiency` that of
        the workers over that of Ray, `plan_error` the largest error of `plans`.
        """
        found: dict[str, Any] = {}
        if self.engines:
            found = json_document(self.engines)
            count, seconds = found.pop("workers"), self.engines.seconds
            for engine, base in (("workers", "one"), ("ray", "workers")):
                if engine in seconds and base in seconds:
                    found[f"{engine}_{count}_efficiency"] = seconds[base] / seconds[engine]
        if self.plans:
            found["plans"] = json_document(self.plans)
            found["plan_error"] = max(one.error for one in self.plans)
        if self.rss_mb is not None:
            found |= {"rss_mb_20m": self.rss_mb, "large_rows": self.large_rows}
        return found | {"machine": json_document(self.machine)}


def bench_scale(
    settings: Settings,
    *,
    seconds: float = 180.0,
    workers: int = 2,
    engines: Sequence[str] = ("workers", "ray"),
    planned: Sequence[int] = PLANNED,
    large_rows: int = LARGE_ROWS,
    on_progress: OnProgress = ignore,
) -> ScaleBenchmark:
    """What several workers gain over one process with the same cores.

    Args:
        seconds: how long one process should take; its texts are made from halves of train texts.
        workers: how many; each has its share of the cores.
        engines: of `workers` and `ray`.
        planned: rows at which a plan is checked, as far as the train split has them; empty for no check.
        large_rows: rows of a sharded cache of width 64 that a head is trained on; 0 for none.
        on_progress: receives what is measured next as a stage.

    Raises:
        UsageError: an unknown engine.
        FeatcacheError: an extraction failed.
    """
    if unknown := set(engines) - {"workers", "ray"}:
        raise UsageError(f"no engine {min(unknown)!r} to measure", hint="there are: workers, ray")
    times = _engines(settings, seconds, workers, engines, on_progress) if engines else None
    rows = len(load_splits(settings.data, ["train"], seed=settings.seed)["train"]) if planned else 0
    plans = []
    for size in (size for size in planned if size <= rows):
        on_progress(Progress(f"a plan of {size:,} rows, and the extraction of these rows"))
        plans.append(check_plan(settings, size))
    rss_mb = None
    if large_rows:
        on_progress(Progress(f"a sharded cache of {large_rows:,} rows"))
        rss_mb = measure(large_rows, LARGE_WIDTH).rss_mb
    machine = this_machine("transformers", "ray")
    return tidied(ScaleBenchmark(times, plans, rss_mb, large_rows, machine), digits=DIGITS)


def _engines(
    settings: Settings, seconds: float, workers: int, engines: Sequence[str], on_progress: OnProgress
) -> EngineTimes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        on_progress(Progress("how many texts that takes"))
        few = _made_up(settings, TRIED, folder / "few")
        rows = max(int(seconds * TRIED / _extract(settings, few, folder / "few", "one", 1).encoding), TRIED)
        data = _made_up(settings, rows, folder)
        made = {}
        for engine, count in [("one", 1), *((engine, workers) for engine in engines)]:
            on_progress(Progress(f"{rows:,} texts: {engine}" + (f", {count} of them" if count > 1 else "")))
            made[engine] = _extract(settings, data, folder / engine, engine, count)
    return EngineTimes(
        rows=rows,
        workers=workers,
        seconds={engine: one.seconds for engine, one in made.items()},
        texts_a_second={engine: rows / one.seconds for engine, one in made.items()},
        same_bytes={
            f"{a} and {b}": made[a].content == made[b].content for a, b in itertools.combinations(made, 2)
        },
    )


def _made_up(settings: Settings, rows: int, folder: Path) -> DataSettings:
    """`rows` texts, each made of a half of one text of the train split and a half of another."""
    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    texts = split.texts(slice(None))
    halves = np.random.default_rng(settings.seed).integers(len(texts), size=(rows, 2))
    made = (texts[a][: -(-len(texts[a]) // 2)] + texts[b][len(texts[b]) // 2 :] for a, b in halves)
    return write_rows(folder, list(made))


@dataclass(frozen=True)
class _TimedExtraction:
    """An extraction in a process of its own: all seconds, those after the model was loaded, and the file."""

    seconds: float
    encoding: float
    content: bytes


def _extract(
    settings: Settings, data: DataSettings, folder: Path, engine: str, count: int
) -> _TimedExtraction:
    folder.mkdir(exist_ok=True)
    paths = dataclasses.replace(settings.paths, cache_dir=str(folder / "cache"))
    own = dataclasses.replace(settings, data=data, paths=paths)
    file = folder / "settings.toml"
    file.write_text(to_toml(own), encoding="utf-8")
    found, seconds = timed(lambda: run_module("featcache.bench.scale", file, engine, count))
    return _TimedExtraction(seconds, found["encoding"], Path(found["path"]).read_bytes())


def main(path: str, engine: str, count: str) -> None:
    """One extraction, as a process of its own; prints how long encoding took, and which file it made."""
    from featcache.extraction.api import extract_splits

    settings = load_settings(path=path)
    began: list[float] = []

    def note_start(event: Progress) -> None:
        if event.stage == "encode" and not began:
            began.append(time.perf_counter())

    if engine == "ray":
        from featcache.cluster.extract import extract_with_ray

        (made,) = extract_with_ray(settings, ["train"], note_start, workers=count)
    else:
        (made,) = extract_splits(settings, ["train"], note_start, workers=1 if count == "1" else count)
    encoding = time.perf_counter() - (began[0] if began else time.perf_counter())
    print(json.dumps({"encoding": encoding, "path": str(made.path.absolute())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
