"""Estimates of an extraction before it starts: time, disk, memory, shards and cost.

The rate is measured by a short sample on this machine, or given; a rate of a processor says nothing about a
GPU. Every number has its origin: measured, given, assumed, or computed from those.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.seal import CHUNK
from featcache.data.split import Split, load_splits
from featcache.errors import UsageError
from featcache.evaluation.bootstrap import CONFIDENCE
from featcache.extraction.partition import UNIT_BATCHES, UNIT_ROWS
from featcache.planning.answer import (
    ASSUMED,
    GIVEN,
    GPUS_A_NODE,
    MEASURED,
    PUBLISHED_SHARES,
    STAGES,
    Ask,
    CorpusPlan,
    Estimate,
    WorkerCounts,
    check,
    command_of,
    facts_of,
    notes_of,
    published_share,
    warnings_of,
)
from featcache.planning.sample import Sample, sample_without_model, take_sample
from featcache.settings import Settings

STRUCTURE = 16 << 10  # bytes of a sealed file beside its rows: seal, description, what HDF5 needs
UNIT_HEAD = 512  # bytes of a committed unit before its rows
ROW_INDEX = 8 + 32 + 4 + 1  # bytes of a row without its views: label, hash, tokens, truncated
ROW_MEMORY = 200  # most bytes of memory for a row while an extraction looks for equal rows


def plan(
    settings: Settings,
    splits: Sequence[str] = ("train",),
    ask: Ask | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> CorpusPlan:
    """Measure a short sample and estimate the whole extraction; nothing is left in the cache folder.

    Args:
        settings: as for `extract`.
        splits: the splits to extract; the sample is drawn from all of them.
        report: called with the name of each stage.

    Raises:
        UsageError: numbers that make no sense; GPUs without a rate on a machine that has none.
        SourceError, BackboneError: as in extraction; with `ask.tokens` no source is read.
    """
    ask = ask or Ask()
    check(ask)
    _require_gpu(settings, ask)
    loaded: list[Split] = []
    if ask.tokens is None:
        report("reading the source")
        loaded = list(load_splits(settings.data, splits, seed=settings.seed).values())
        if not sum(len(split) for split in loaded):
            raise UsageError(
                "the source has no rows to sample", hint="--tokens MEAN --rows N plans without data"
            )
    rows = ask.rows if ask.rows is not None else sum(len(split) for split in loaded)
    ask = replace(ask, rows=rows)
    if ask.tokens is not None and ask.rates and ask.tflops is None:
        sample = sample_without_model(settings, ask.tokens)
    else:
        sample = take_sample(
            settings, loaded, seconds=ask.sample_seconds, mean_tokens=ask.tokens, rows=rows,
            encode=not ask.rates, report=report,
        )  # fmt: skip
    labels = sum(split.labels.nbytes for split in loaded) / max(sum(len(split) for split in loaded), 1)
    return forecast(settings, splits, ask, sample, label_bytes=math.ceil(labels) or 8)


def _require_gpu(settings: Settings, ask: Ask) -> None:
    if ask.gpus is None or ask.rates:
        return
    from featcache.backbone.load import resolve_device

    device = resolve_device(settings.backbone.device)
    if device.type != "cuda":
        raise UsageError(
            f"--gpus {ask.gpus}, but a rate measured on {device} says nothing of a GPU",
            hint="give the speed of one GPU: --rate TEXTS_A_SECOND, --tokens-rate TOKENS_A_SECOND, or\n"
            "--tflops PEAK [--share SHARE, which featcache bench extract shows]; or plan on a machine with"
            " such a GPU",
        )


def forecast(
    settings: Settings, splits: Sequence[str], ask: Ask, sample: Sample, *, label_bytes: int = 8
) -> CorpusPlan:
    """The plan that follows from a sample.

    Workers tokenise while they encode, so the slower of the two sets the time. The processors beside each GPU
    are taken to tokenise as fast as this machine.

    The 95 % interval of the time has two sources: the spread of the seconds for a unit of work between the
    timed parts (Student's t about the median, whose standard error is 1.2533 times that of the mean), and the
    spread of the work between texts (none where all were tokenised). It does not cover a machine that becomes
    slower, or texts unlike those of the sample.
    """
    rows = ask.rows or 0
    counts = _worker_counts(ask, sample)
    encoding = _rate(ask, sample)
    tokenizing = _tokenizing_rate(sample)
    waiting = ASSUMED if tokenizing < encoding.value else None
    rate = encoding.map(lambda value: min(value, tokenizing), waiting)
    parallel = counts.parallel * (ask.efficiency if counts.parallel > 1 else 1.0)
    storage = np.dtype(settings.features.storage).itemsize
    row_bytes = sample.views * sample.width * storage
    start_up = (sample.start_up or 0.0) + sample.storing.seal
    serial = rows * (sample.storing.hash_row + sample.storing.seal_byte * (row_bytes + ROW_INDEX))
    uneven = _uneven(rows, sample, counts.parallel)
    fresh = rows * (1 - (sample.repeated or 0.0))  # equal texts are encoded once
    each = uneven * fresh / parallel  # texts of the worker that has most of them
    seconds = rate.map(lambda value: start_up + serial + each / value)
    seconds = replace(seconds, how=ASSUMED if ASSUMED in (rate.how, counts.how) else rate.how)
    spread = _relative_error(sample.lengths.tokens, rows)
    cache = sealed_bytes(rows, sample.views, sample.width, storage, label_bytes)
    shards = max(1, math.ceil(cache / ask.shard_bytes))
    cache += (shards - 1) * STRUCTURE
    priced = (ask.price or 0.0) * (ask.gpus or counts.nodes)
    made = CorpusPlan(
        rows=rows,
        workers=counts.workers,
        gpus=ask.gpus,
        nodes=counts.nodes,
        seconds=seconds,
        texts_per_second=rate.map(lambda value: value * parallel / uneven, seconds.how),
        tokens=Estimate.around(
            rows * float(sample.lengths.tokens.mean()), spread, ASSUMED if sample.made_up else MEASURED
        ),
        cache_bytes=cache,
        staging_bytes=rows * (row_bytes + 5) + _units(rows, sample) * UNIT_HEAD,
        free_bytes=_free(Cache.open(settings.paths.cache_dir).folder),
        shards=shards,
        rows_a_shard=math.ceil(rows / shards),
        memory=sample.memory,
        row_memory=rows * ROW_MEMORY,
        gpu_memory=sample.gpu_memory,
        cost=seconds.map(lambda value: priced * value / 3600) if ask.price else None,
        facts=facts_of(ask, sample, counts, encoding, serial),
        warnings=(),
        notes=notes_of(ask, sample),
        command=command_of(settings, splits, ask, sample, counts.workers, counts.nodes, shards),
        stages=dict(zip(STAGES, (start_up, each / encoding.value, each / tokenizing, serial), strict=True)),
    )
    return replace(made, warnings=tuple(warnings_of(made, sample, counts, encoding)))


def _worker_counts(ask: Ask, sample: Sample) -> WorkerCounts:
    from featcache.system.machine import available_cores

    cores = len(available_cores())
    nodes = ask.nodes or (math.ceil(ask.gpus / GPUS_A_NODE) if ask.gpus else 1)
    workers = ask.gpus or ask.workers or nodes
    parallel = workers
    if ask.gpus is None and sample.timing is not None and sample.device == "cpu":
        parallel = min(workers, nodes * max(1, cores // sample.threads))  # others would share the cores
    return WorkerCounts(workers, nodes, parallel, cores, ASSUMED if parallel > 1 else MEASURED)


def _rate(ask: Ask, sample: Sample) -> Estimate:
    """Texts a second of one worker."""
    lengths, rows = sample.lengths, ask.rows or 0
    if ask.rate is not None:
        return Estimate(ask.rate, ask.rate, ask.rate, GIVEN)
    if ask.tokens_rate is not None:
        value = ask.tokens_rate / float(lengths.tokens.mean())
        return Estimate.around(value, _relative_error(lengths.tokens, rows), GIVEN)
    spread = _relative_error(lengths.work, rows)
    if ask.tflops is not None:
        each = ask.tflops * 1e12 / float(lengths.work.mean())
        if ask.share is not None:
            return Estimate.around(each * ask.share, spread, ASSUMED)
        least, most = min(PUBLISHED_SHARES.values()), max(PUBLISHED_SHARES.values())
        value = each * published_share(float(lengths.tokens.mean()))
        return Estimate(value, each * least / (1 + spread), each * most * (1 + spread), ASSUMED)
    assert sample.timing is not None
    per_work = sample.timing.per_work
    value = 1 / (float(np.median(per_work)) * float(lengths.work.mean()))
    half = math.hypot(_median_error(per_work), spread)
    return Estimate.around(value, half, ASSUMED if sample.made_up else MEASURED)


def _tokenizing_rate(sample: Sample) -> float:
    """Texts a second that a worker reads and tokenises; infinite where it is in the rate, or not known."""
    taken = sample.lengths.seconds if sample.timing is None else None
    return 1 / taken if taken else math.inf


def _median_error(values: np.ndarray) -> float:
    """Half of the 95 % interval of the median, relative to it."""
    from scipy.stats import t

    count = len(values)
    error = math.sqrt(math.pi / 2) * float(values.std(ddof=1)) / math.sqrt(count)
    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error / float(np.median(values))


def _relative_error(values: np.ndarray, rows: int) -> float:
    """Half of the 95 % interval of the mean of `rows` texts of which `values` were seen, relative to it."""
    if len(values) < 2 or len(values) >= rows:
        return 0.0
    error = float(values.std(ddof=1)) * math.sqrt((1 - len(values) / rows) / len(values))
    return statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error / float(values.mean())


def _units(rows: int, sample: Sample) -> int:
    tokens = rows * float(sample.lengths.tokens.mean())
    return max(math.ceil(rows / UNIT_ROWS), round(tokens / (UNIT_BATCHES * sample.batch_tokens)), 1)


def _uneven(rows: int, sample: Sample, parallel: int) -> float:
    """How much longer it takes because the workers do not get equally many units."""
    each = _units(rows, sample) / parallel
    return math.ceil(each) / each


def sealed_bytes(rows: int, views: int, width: int, itemsize: int, label_bytes: int = 8) -> int:
    """Length of a sealed file, to within `STRUCTURE`: all columns with a checksum of 16 bytes a MiB.

    Args:
        itemsize: bytes of a number in a view.
        label_bytes: of one row's label; 8, or one a class where there are several labels a row.
    """
    columns = [*[width * itemsize] * views, label_bytes, 32, 4, 1]
    return STRUCTURE + sum(rows * size + 16 * -(-rows * size // CHUNK) for size in columns)


def _free(folder: Path) -> int:
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free
