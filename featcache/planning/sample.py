"""A short measured sample of an extraction: lengths of texts, and seconds to encode and to store them.

The texts are a random sample. All of them are tokenised, which is cheap and gives the work of a text; some
are encoded, which gives the seconds for a unit of work (two-phase sampling, Cochran, Sampling Techniques,
1977, chapter 12). A timed part is every k-th batch, in order of length, of a commit unit of the planned size:
batches of smaller units would be packed worse.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.sentence_transformers import follow
from featcache.cache.cache import Cache
from featcache.data.split import Split
from featcache.errors import BackboneError, CacheError
from featcache.extraction.partition import UNIT_BATCHES, UNIT_ROWS
from featcache.planning.texts import Drawn, Lengths, MadeUp, Texts, made_up_lengths, repeated_share
from featcache.settings import Settings
from featcache.system.machine import peak_memory

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

TOKENIZING = 0.25  # largest share of the seconds for drawing texts and tokenising them
MIN_PARTS = 8  # timed parts, ...
LATE, MIN_LATE_PARTS = 3, 3  # ... or 3, if they take more than 3 times the seconds that were asked for
STORED_UNITS, STORED_BYTES = 4, 8 << 20


@dataclass(frozen=True)
class Timing:
    """The timed parts.

    Attributes:
        per_work: float64 `[parts]`, seconds for a unit of `Lengths.work`; tokenising runs in parallel.
        texts, tokens: in all parts.
        warm_up: additional seconds of the first part, which is not counted.
    """

    per_work: np.ndarray
    texts: int
    tokens: int
    warm_up: float


@dataclass(frozen=True)
class Storing:
    """Seconds before and after the encoding; 0 where they could not be measured.

    Attributes:
        hash_row: seconds to hash a row.
        seal: seconds to seal an empty file.
        seal_byte: seconds to read a byte of committed units and to write it into a sealed file.
    """

    hash_row: float
    seal: float
    seal_byte: float


@dataclass(frozen=True)
class Sample:
    """Everything measured.

    Attributes:
        width, views: numbers in a vector (the mean of several), and vectors of a text.
        timing: None where nothing was encoded.
        start_up: seconds until the first batch runs: import, loading, checks; None where nothing was loaded.
        memory: peak resident bytes of this process; None where nothing was loaded or the system has no count.
        gpu_memory: peak bytes taken on the GPU; None without one.
        device: `cpu`, `cuda:0`; empty where nothing was loaded.
        threads: threads of one process.
        max_length: tokens of the longest text that the model takes.
        batch_tokens: token budget, lowered where memory ran out; `asked_tokens` is the budget before.
        made_up: the texts are random token ids.
        repeated: share of the planned rows that equal another one; None where not all rows are known.
        load: the system's load average of one minute before the sample; 0 where it has none.
        notes: notes of the encoder.
    """

    width: int
    lengths: Lengths
    storing: Storing
    views: int = 1
    timing: Timing | None = None
    start_up: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None
    device: str = ""
    threads: int = 1
    max_length: int = 512
    batch_tokens: int = 4096
    asked_tokens: int = 4096
    made_up: bool = False
    repeated: float | None = None
    load: float = 0.0
    notes: tuple[str, ...] = ()


def take_sample(
    settings: Settings,
    splits: Sequence[Split],
    *,
    seconds: float,
    mean_tokens: float | None = None,
    rows: int = 0,
    encode: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> Sample:
    """Load the encoder, draw texts, tokenise them, encode some, store a few made-up units.

    Args:
        settings: model, features, folders and seed.
        splits: the source of the texts; not used with `mean_tokens`.
        seconds: seconds of encoding; more where 8 parts of one batch each take more.
        mean_tokens: mean length of made-up texts: random token ids of log-normal lengths.
        rows: rows of the planned extraction; decides whether parts of the model are compiled (CUDA), and
            among how many rows of the source equal ones are counted.
        encode: False where the rate is given: nothing is timed.

    Raises:
        SourceError, BackboneError, UsageError: as extraction would.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    encoder, start_up = _load_encoder(settings, rows if encode else 0, report)
    asked = encoder.batch_tokens
    draw = np.random.default_rng(settings.seed % 2**64)
    report("tokenising a sample")
    made_up = mean_tokens is not None
    texts: Texts = (
        Drawn(encoder, splits, draw, TOKENIZING * seconds)
        if mean_tokens is None
        else MadeUp(encoder, mean_tokens, draw)
    )
    timing = _time(encoder, texts, seconds, draw, report) if encode else None
    vectors = encoder.encode(texts.tokenize(np.arange(1))).views.values()
    width = -(-sum(each.shape[1] for each in vectors) // len(vectors))
    return Sample(
        width=width,
        lengths=texts.lengths,
        storing=_storing(Cache.open(settings.paths.cache_dir).folder, texts, width, encoder.storage.name),
        views=len(encoder.views),
        timing=timing,
        start_up=start_up + (timing.warm_up if timing else 0.0),
        memory=peak_memory(),
        gpu_memory=_gpu_memory(encoder),
        device=str(encoder.backbone.device),
        threads=_threads(),
        max_length=encoder.max_length,
        batch_tokens=encoder.batch_tokens,
        asked_tokens=asked,
        made_up=made_up,
        repeated=None if made_up else repeated_share(splits, rows, draw),
        load=load,
        notes=tuple(encoder.notes),
    )


def _load_encoder(settings: Settings, rows: int, report: Callable[[str], None]) -> tuple[Encoder, float]:
    """The encoder, compiled where that pays for this number of rows, and the seconds of both."""
    files = find_model(settings.backbone)
    report(f"loading {files.name}")
    began = time.perf_counter()
    from featcache.backbone.encoder import Encoder

    encoder = Encoder.load(settings.backbone, settings.features, files)
    if rows:
        encoder.backbone.prepare(rows)
    return encoder, time.perf_counter() - began


def sample_without_model(settings: Settings, mean_tokens: float) -> Sample:
    """Made-up lengths alone, for a given rate; neither weights nor torch are loaded.

    Raises:
        BackboneError: no such model, or its config.json has no width.
    """
    files = find_model(settings.backbone)
    features = follow(settings.features, files).features
    width = files.width_of(features.views)
    if width is None:
        raise BackboneError(
            f"{files.name}: config.json does not give the width of the states",
            hint="without --tokens the model is loaded and texts are read",
        )
    longest = features.longest
    tokens, truncated = made_up_lengths(mean_tokens, 3, longest, np.random.default_rng(settings.seed % 2**64))
    lengths = Lengths(tokens, tokens.astype(np.float64), truncated, None)
    views, storing = len(set(features.views)), Storing(0.0, 0.0, 0.0)
    return Sample(-(-width // views), lengths, storing, views, max_length=longest, made_up=True)


def _time(
    encoder: Encoder, texts: Texts, seconds: float, draw: np.random.Generator, report: Callable[[str], None]
) -> Timing:
    """Encode parts of commit units for about `seconds`, after a first part that warms up."""
    tokens, work = texts.lengths.tokens, texts.lengths.work
    budget = encoder.batch_tokens
    size = int(np.clip(UNIT_BATCHES * budget / tokens.mean(), 1, min(len(tokens), UNIT_ROWS)))
    order = draw.permutation(len(tokens))
    units = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    first = _part(units[0], tokens, budget, UNIT_BATCHES, 0)
    ((_, warm),) = _timed(encoder, texts, iter([first]))
    unit_seconds = warm * work[units[0]].sum() / work[first].sum()
    share = next((k for k in (1, 2, 4) if MIN_PARTS * unit_seconds <= k * seconds), UNIT_BATCHES)
    starts = draw.integers(UNIT_BATCHES, size=len(units)).tolist()
    turns = (divmod(turn, len(units)) for turn in itertools.count())
    parts = (_part(units[i], tokens, budget, share, starts[i] + again) for again, i in turns)
    report(f"encoding for about {seconds:g} s")
    rates: list[float] = []
    counted, spent = np.zeros(2, dtype=np.int64), 0.0
    with contextlib.closing(_timed(encoder, texts, parts)) as timed:
        for part, taken in timed:
            spent += taken
            rates.append(taken / float(work[part].sum()))
            counted += len(part), int(tokens[part].sum())
            late = spent >= LATE * seconds and len(rates) >= MIN_LATE_PARTS
            if late or (spent >= seconds and len(rates) >= MIN_PARTS):
                break
    warm_up = max(0.0, warm - float(np.median(rates)) * float(work[first].sum()))
    return Timing(np.array(rates), int(counted[0]), int(counted[1]), warm_up)


def _part(unit: np.ndarray, tokens: np.ndarray, budget: int, share: int, offset: int) -> np.ndarray:
    """Every `share`-th batch of a commit unit, from batch `offset` on; at least one."""
    from featcache.backbone.packing import plan_batches

    batches = plan_batches(tokens[unit], budget)
    share = min(share, len(batches))
    return np.concatenate([unit[batch] for batch in batches[offset % share :: share]])


def _timed(
    encoder: Encoder, texts: Texts, parts: Iterator[np.ndarray]
) -> Generator[tuple[np.ndarray, float], None, None]:
    """Encode each part and yield it with its seconds; a thread tokenises the next one, as in extraction."""
    with ThreadPoolExecutor(1) as pool:
        coming = deque((new, pool.submit(texts.tokenize, new)) for new in itertools.islice(parts, 1))
        began = time.perf_counter()
        while coming:
            part, tokens = coming.popleft()
            ready = tokens.result()
            coming.extend((new, pool.submit(texts.tokenize, new)) for new in itertools.islice(parts, 1))
            encoder.encode(ready)
            yield part, time.perf_counter() - began
            began = time.perf_counter()


def _storing(cache_dir: Path, texts: Texts, width: int, storage: str) -> Storing:
    """Time the hashing of the texts, and the sealing of an empty file and of one of a few commit units."""
    from featcache.cache.sealed_writer import Column, write_sealed
    from featcache.cache.staging import Staging

    hash_row = texts.hash_seconds()
    usable = cache_dir.is_dir() and os.access(cache_dir, os.W_OK)
    rows = max(STORED_BYTES // (width * np.dtype(storage).itemsize), 1)
    unit = np.random.default_rng(0).normal(size=(rows, width)).astype(storage)
    shape = (STORED_UNITS * rows, width)
    try:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=cache_dir if usable else None) as name:
            folder = Path(name)
            staging = Staging(folder / "units.partial", {})
            for number in range(STORED_UNITS):
                staging.commit(number, {"x": unit})
            began = time.perf_counter()
            write_sealed(folder / "empty.h5", {}, [Column("x", (0, width), storage, [])])
            empty = time.perf_counter() - began
            chunks = (staging.read(number)["x"] for number in range(STORED_UNITS))
            write_sealed(folder / "full.h5", {}, [Column("x", shape, storage, chunks)])
            full = time.perf_counter() - began - empty
            return Storing(hash_row, empty, full / (STORED_UNITS * unit.nbytes))
    except (CacheError, OSError):
        return Storing(hash_row, 0.0, 0.0)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _gpu_memory(encoder: Encoder) -> int | None:
    import torch

    device = encoder.backbone.device
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else None
