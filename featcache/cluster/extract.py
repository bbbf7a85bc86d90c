"""`extract --engine ray`: actors of a Ray cluster encode the commit units of an extraction.

The driver, which is the process of the user, partitions the rows, holds the lock and seals the file, as it
does without Ray. Actors (see `encode`) encode the units and commit them in the folder of the cache, which all
nodes share, or send them through the store of the cache. The driver needs neither a GPU nor memory for
the model: an actor describes the encoder to it. Where the cluster is this machine alone, and has no GPU, the
driver loads the model to describe it while Ray starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from featcache.cache.staging import Staging
from featcache.cluster.cluster import ActorPool, Engine, connected, deal, require_ray, starts_ray
from featcache.cluster.encode import (
    EncodeOrder,
    EncodingActor,
    encoder_spec_here,
    encoder_spec_on,
    take_units,
)
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits
from featcache.extraction.encode_units import UnitEncoder, UnitWork
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.extracted import Extracted
from featcache.extraction.job import Job
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress
from featcache.system.stores import Remote, is_remote, opened
from featcache.system.workers import Worker

SETTLED = 90.0  # seconds in which a network file system shows every node the files of the others


def extract_by(
    engine: Engine,
    settings: Settings,
    splits: Sequence[str],
    on_progress: OnProgress | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
) -> list[Extracted]:
    """Like `extract_splits`, on this machine or on a Ray cluster."""
    if engine.name == "ray":
        return extract_with_ray(
            settings, splits, on_progress,
            force=force, wait=wait, workers=engine.workers or "auto", address=engine.ray_address,
        )  # fmt: skip
    workers = 1 if engine.workers in (None, "1") else engine.workers
    return extract_splits(settings, splits, on_progress, force=force, wait=wait, workers=workers or 1)


def extract_with_ray(
    settings: Settings,
    splits: Sequence[str],
    report: OnProgress | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
    workers: int | str = "auto",
    address: str | None = None,
) -> list[Extracted]:
    """Like `extract_splits`, with the commit units encoded by the actors of a Ray cluster.

    The file is the one that a single machine makes, byte for byte on devices of one kind with the same number
    of threads. Every node reads the data and the model itself, under the same names; the cache is a
    shared folder or a URL. Units of a lost actor are encoded again.

    Args:
        workers: actors; `auto`: one a GPU, or one for several cores.
        address: see `Engine`.

    Raises:
        UsageError: Ray is not installed, no cluster at `address`, or it has no room for so many actors.
        FeatcacheError: the error that an actor raised; committed units are kept.
    """
    if Worker.from_environment():
        raise UsageError(
            "--engine ray under torchrun", hint="Ray starts the workers: run it without torchrun"
        )
    require_ray()
    with ExitStack() as stack:
        connect = lambda: stack.enter_context(connected(address))  # noqa: E731
        job = _RayJob(
            absolute(settings), report,
            force=force, wait=wait, workers=workers, connect=connect, starts_ray=starts_ray(address),
        )  # fmt: skip
        return job.run(splits)


def absolute(settings: Settings) -> Settings:
    """`settings` with absolute paths, for processes on other nodes."""
    backbone, data, paths = settings.backbone, settings.data, settings.paths
    cache_dir = paths.cache_dir if is_remote(paths.cache_dir) else str(Path(paths.cache_dir).absolute())
    files = data.data_files and {split: _absolute(path) for split, path in data.data_files.items()}
    adapter = backbone.adapter and _absolute(backbone.adapter)
    return replace(
        settings,
        backbone=replace(backbone, model=_absolute(backbone.model), adapter=adapter),
        data=replace(data, dataset=_absolute(data.dataset), data_files=files),
        paths=replace(paths, cache_dir=cache_dir),
    )


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


class _RayJob(Job):
    """A `Job` whose encoder is on other machines; calls `connect` when the encoder is needed.

    Args:
        starts_ray: whether `connect` starts a cluster that is this machine alone.
    """

    def __init__(
        self,
        settings: Settings,
        on_progress: OnProgress | None,
        *,
        force: bool,
        wait: float,
        workers: int | str,
        connect: Callable[[], None],
        starts_ray: bool,
    ) -> None:
        super().__init__(settings, on_progress, force=force, wait=wait)
        self.workers, self.connect, self.starts_ray = workers, connect, starts_ray

    def unit_encoder(self, split: str) -> UnitEncoder:
        """The actors of the cluster, and the encoder as one of them describes it."""
        if self._unit_encoder is None:
            self.on_progress(Progress("load", split, text="Ray"))
            with ThreadPoolExecutor(1) as thread:
                here = thread.submit(encoder_spec_here, self.settings) if self.starts_ray else None
                self.connect()
                pool = ActorPool.of(self.workers, self.settings.backbone.device)
                self.on_progress(Progress("load", split, text=f"{self.model.name} on {pool}"))
                spec = (here.result() if here else None) or encoder_spec_on(pool, self.settings)
            self._unit_encoder = _RayUnitEncoder(spec, self)
            self.note_encoder(split, spec.notes)
        return self._unit_encoder


class _RayUnitEncoder:
    """Encodes commit units with the actors of a cluster."""

    def __init__(self, spec: EncoderSpec, job: _RayJob) -> None:
        self.spec, self.job = spec, job

    def encode(self, work: UnitWork) -> None:
        """See `UnitEncoder.encode`."""
        staging, store = work.staging, self._store(work.staging)
        pool = ActorPool.of(self.job.workers, self.job.settings.backbone.device)
        order = EncodeOrder.of(self.job.settings, self.spec, work, pool.threads, store.url if store else None)
        reported: set[int] = set()
        if store:
            take_units(store, staging)  # from an earlier call

        def left() -> list[int]:
            there = staging.named() | (reported if store is None else set())
            return [number for number in work.units if number not in there]

        note = partial(self.job.note, work.split.name)
        for done in deal(EncodingActor, order, left, pool, note):
            if store:
                take_units(store, staging)
            reported |= set(done.numbers)
            texts, tokens = done.answer
            work.on_batch(texts, tokens, None)
        _settle(staging, work.units)
        for number in sorted(set(work.units) - reported):  # committed by an actor that was lost afterwards
            counts = staging.read(number)["n_tokens"]
            work.on_batch(len(counts), int(counts.sum()), None)

    def _store(self, staging: Staging) -> Remote | None:
        """The folder in the store that units are sent through; None if the cache is not in a store."""
        cache = self.job.settings.paths.cache_dir
        name = staging.folder.relative_to(self.job.cache.folder).as_posix()
        return opened(cache).child(name) if is_remote(cache) else None


def _settle(staging: Staging, numbers: Sequence[int]) -> None:
    """Wait until this machine sees all committed units."""
    ends = time.monotonic() + SETTLED
    while not staging.named() >= set(numbers) and time.monotonic() < ends:
        time.sleep(0.2)
