"""`--engine ray`: the blocks of an extraction encoded by actors of a Ray cluster.

The driver, that is the process of the user, divides the work, holds the lock and seals the file, as it does
alone; actors (`ray_encode`) encode the blocks and commit them in the folder of the cache, which all nodes
share, or send them through the store that the cache is in. The driver needs neither a GPU nor room for the
model: what the encoder is, an actor tells it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from featcache.cache.staging import Staging
from featcache.cluster.block_store import take_blocks
from featcache.cluster.cluster import Crew, connected, crew_of, deal, require_ray
from featcache.cluster.encode import Encoding, described, order_of
from featcache.errors import UsageError
from featcache.extraction.api import Extracted, Job
from featcache.extraction.make_file import Making
from featcache.extraction.partition import Division
from featcache.extraction.worker_group import Gang
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress
from featcache.system.stores import Remote, is_remote, opened

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.throughput import Speedometer

SETTLED = 90.0  # seconds in which a network file system shows every node the files of the others


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
    """As `extract_splits`, the blocks encoded by the actors of a Ray cluster.

    The file is the one that a single machine makes, byte for byte where devices are of one kind and threads
    of one number. Every node reads the data and the model itself, under the same names; the cache is a folder
    that all share, or a URL. A lost actor costs the blocks it was at.

    Args:
        workers: actors; `auto`: one a GPU, or one for several cores.
        address: of the cluster, as `ray.init` takes it; None: the one this process is connected to
            already, or this machine alone.

    Raises:
        UsageError: Ray is not installed, no cluster at `address`, or it has no room for so many actors.
        FeatcacheError: what an actor raised; committed blocks are kept.
    """
    if Gang.of_environment():
        raise UsageError("--engine ray under torchrun", hint="Ray starts the workers: leave torchrun out")
    require_ray()
    with ExitStack() as stack:
        connect = lambda: stack.enter_context(connected(address))  # noqa: E731
        return _RayJob(absolute(settings), workers, connect, report, force, wait).run(splits)


def absolute(settings: Settings) -> Settings:
    """With the paths that are relative to this process's folder made absolute, for those of other nodes."""
    backbone, data, paths = settings.backbone, settings.data, settings.paths
    cache_dir = paths.cache_dir if is_remote(paths.cache_dir) else str(Path(paths.cache_dir).absolute())
    files = data.data_files and {split: _absolute(path) for split, path in data.data_files.items()}
    return replace(
        settings,
        backbone=replace(backbone, model=_absolute(backbone.model)),
        data=replace(data, dataset=_absolute(data.dataset), data_files=files),
        paths=replace(paths, cache_dir=cache_dir),
    )


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


class _RayJob(Job):
    """A `Job` whose encoder is on other machines; `connect` is called when it is needed."""

    def __init__(
        self,
        settings: Settings,
        workers: int | str,
        connect: Callable[[], None],
        report: OnProgress | None,
        force: bool,
        wait: float,
    ) -> None:
        super().__init__(settings, report, force, wait)
        self.workers, self.connect = workers, connect
        self.elsewhere = self._deal

    def encoder(self, split: str) -> Encoder:
        """What an actor says of the encoder; as much of one as the making of a file asks for."""
        if self._encoder is None:
            self.report(Progress("load", split, text="Ray"))
            self.connect()
            crew = self._crew()
            self.report(Progress("load", split, text=f"{self.model.name} on {crew}"))
            self._encoder = cast("Encoder", described(self.settings, crew))
            for note in self._encoder.notes:
                self.report(Progress("note", split, text=note))
        return self._encoder

    def speedometer(self, encoder: Encoder, texts: int) -> Speedometer | None:
        """None: the share of this machine's peak says nothing of others."""
        return None

    def _store(self, staging: Staging) -> Remote | None:
        """Where blocks go if the cache is in a store: the folder they would lie in there."""
        cache = self.settings.paths.cache_dir
        name = staging.folder.relative_to(self.cache.folder).as_posix()
        return opened(cache).child(name) if is_remote(cache) else None

    def _crew(self) -> Crew:
        return crew_of(self.workers, self.settings.backbone.device)

    def _deal(
        self,
        making: Making,
        staging: Staging,
        division: Division,
        missing: list[int],
        step: Callable[[int, int], None],
    ) -> None:
        """See `making.Elsewhere`."""
        told: set[int] = set()
        note = lambda text: self.report(Progress("note", making.split.name, text=text))  # noqa: E731
        crew = self._crew()
        store = self._store(staging)
        order = order_of(self.settings, making, staging, division, crew.threads, store.url if store else None)
        if store:
            take_blocks(store, staging)  # of an earlier call

        def left() -> list[int]:
            there = staging.named() | (told if store is None else set())
            return [number for number in missing if number not in there]

        for done in deal(Encoding, order, left, crew, note):
            if store:
                take_blocks(store, staging)
            told |= set(done.numbers)
            step(*done.said)
        _settle(staging, missing)
        for number in sorted(set(missing) - told):  # committed by an actor that was lost before it said so
            counts = staging.read(number)["n_tokens"]
            step(len(counts), int(counts.sum()))


def _settle(staging: Staging, numbers: Sequence[int]) -> None:
    """Wait until this machine sees what others have committed."""
    ends = time.monotonic() + SETTLED
    while not staging.named() >= set(numbers) and time.monotonic() < ends:
        time.sleep(0.2)
