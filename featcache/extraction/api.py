"""Extract the features of splits into the cache, and find them there."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.backbone.model_files.kinds import ENDPOINT, VECTORS, kind_of
from featcache.cache.catalog import CacheFile
from featcache.errors import CacheMiss, UsageError
from featcache.extraction.extracted import Extracted
from featcache.extraction.job import Job
from featcache.extraction.named_backbones import settings_by_name
from featcache.importing.find import find_imported
from featcache.settings import Settings
from featcache.system.progress import OnProgress
from featcache.system.workers import Worker


def extract_splits(
    settings: Settings,
    splits: Sequence[str],
    report: OnProgress | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
    workers: int | str = 1,
) -> list[Extracted]:
    """Make sure that the features of `splits` are in the cache.

    A repeated request is answered from the record of earlier ones, without a model or a dataset being loaded;
    failing that, by the rows themselves. Rows that no sealed file has yet are encoded, in units that are
    committed one by one, and the file is assembled, sealed and published.

    Under torchrun, or whatever else sets its environment variables, the processes share the work.

    Args:
        settings: model, data, views and folders.
        splits: of `train`, `validation`, `test`, in the order wanted.
        report: called with progress.
        force: encode again and replace what is there.
        wait: seconds to wait for another process that writes the same file; by default `LockHeld` is raised
            at once. Several workers share its work instead, however long it takes.
        workers: processes to be started on this machine, see `local_workers`; `auto`: one a GPU, or one for
             several cores.

    Returns:
        A result for each split, in the order of `splits`; of each backbone that views name.

    Raises:
        SourceError, BackboneError, CacheError, UsageError: each says what to do. Committed units
            are kept, and the same call goes on from them.
    """
    if [*(named := settings_by_name(settings))] != [""]:
        found = []
        for own in named.values():
            found += extract_splits(own, splits, report, force=force, wait=wait, workers=workers)
        return found
    if kind_of(settings.backbone.model) == VECTORS:  # all that there can be is there
        return [Extracted.of(find_imported(settings, split), split, 0.0, cached=True) for split in splits]
    worker = Worker.from_environment()
    _check_workers(settings, worker, workers, force=force)
    if workers != 1:
        from featcache.extraction.local_workers import LocalWorkersJob, worker_count

        count = worker_count(workers, settings.backbone.device)
        if count > 1:
            return LocalWorkersJob(settings, report, force=force, wait=wait, count=count).run(splits)
    return Job(settings, report, force=force, wait=wait, worker=worker).run(splits)


def _check_workers(settings: Settings, worker: Worker | None, workers: int | str, *, force: bool) -> None:
    """Refuse a device that there is not, and workers that cannot share this job, also where all is cached.

    Raises:
        UsageError
    """
    if kind_of(settings.backbone.model) == ENDPOINT:
        if worker or workers != 1:
            raise UsageError(
                "several workers and an endpoint: one process sends all texts to the server",
                hint="leave --workers and torchrun out; --connections says how many requests are sent",
            )
    elif settings.backbone.device not in ("auto", "cpu"):
        from featcache.backbone.load import resolve_device

        resolve_device(settings.backbone.device)
    if worker and workers != 1:
        raise UsageError("--workers under torchrun", hint="torchrun starts the workers: leave it out")
    if worker and force:
        raise UsageError("--force under torchrun", hint="remove the file first: featcache cache rm")


def find_features(settings: Settings, split: str) -> CacheFile:
    """The sealed file that `extract_splits` made for these settings, or imported vectors; encodes nothing.

    Raises:
        CacheMiss: not extracted yet, or with other settings; names the fields that differ.
        CorruptCache: not found, and a file of that split is damaged.
    """
    if kind_of(settings.backbone.model) == VECTORS:
        return find_imported(settings, split)
    job = Job(settings)
    found = job.lookup(split)
    if found is None:
        differs, damaged = job.what_differs(split), job.cache.damaged(split)
        if damaged and not differs:
            raise damaged[0]
        also = "".join(f"; {error.what}" for error in damaged)
        raise CacheMiss(
            f"no features of the {split} split for these settings{differs}{also}",
            hint=f"make them with the same flags: featcache extract --split {split}"
            + ("; the cached labels are of another --task" if "source.task (" in differs else ""),
        )
    return found
