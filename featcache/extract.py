"""Split + backbone + views -> sealed cache file, once.

A repeated request is answered from the record of earlier ones, without a model or a dataset being
loaded; failing that, by the rows themselves; failing that, the rows that no sealed file has yet are
encoded, in blocks that are committed one by one, and the file is assembled, sealed and published.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache import store
from featcache.config import Settings
from featcache.errors import BackboneError, BadRow, CacheError, CacheMiss
from featcache.files import remove_temporaries, require_space
from featcache.fingerprint import cache_document, fingerprint, later_settings, row_hashes
from featcache.hub import ModelFiles, find_model
from featcache.locks import locked
from featcache.sealed import Column, write_sealed
from featcache.sources import Split, describe_source, load_splits
from featcache.staging import Staging
from featcache.store import CacheFile, cache_path

if TYPE_CHECKING:
    from featcache.encode import Encoder, Tokens
    from featcache.speed import Speedometer

BLOCK_ROWS = 1024
ASSEMBLE_ROWS = 8192


@dataclass(frozen=True)
class Progress:
    """One step of an extraction, for whoever draws it.

    Attributes:
        stage: `hash`, `load`, `encode`, `seal`, or `note` with something to say in `text`.
        done, total: texts.
        tokens: tokens encoded so far.
        share: of the machine's GEMM peak that encoding has reached, 0 to 1; None while it is not known.
    """

    stage: str
    split: str
    done: int = 0
    total: int = 0
    tokens: int = 0
    text: str = ""
    share: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Extracted:
    """What `extract` says of one split.

    Attributes:
        cached: the features were there; no forward pass was run.
        encoded: texts that went through the backbone.
        reused: rows taken from earlier cache files or equal rows.
        truncated: texts longer than `max_length` tokens, which were cut.
        tokens: tokens of all rows, however they came about.
    """

    split: str
    rows: int
    seconds: float
    cached: bool
    encoded: int
    reused: int
    truncated: int
    tokens: int
    fingerprint: str
    path: Path
    views: tuple[str, ...]
    max_length: int
    notes: tuple[str, ...] = ()


def extract_splits(
    settings: Settings,
    splits: Sequence[str],
    report: Report | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
) -> list[Extracted]:
    """Make sure that the features of `splits` are in the cache.

    Args:
        settings: model, data, views and folders.
        splits: of `train`, `validation`, `test`, in the order wanted.
        report: called with progress.
        force: encode again and replace what is there.
        wait: seconds to wait for another process that writes the same file; by default one is told at once.

    Raises:
        SourceError, BackboneError, CacheError, UsageError: each says what to do. Committed blocks
            are kept, and the same call goes on from them.
    """
    job = _Job(settings, report, force, wait)
    known = {} if force else {split: job.find_by_request(split) for split in splits}
    missing = [split for split in splits if known.get(split) is None]
    loaded = load_splits(settings.data, missing, seed=settings.seed) if missing else {}
    return [known.get(split) or job.extract(loaded[split]) for split in splits]


def find_features(settings: Settings, split: str) -> CacheFile:
    """The sealed file that `extract` made for these settings; encodes nothing.

    Raises:
        CacheMiss: not extracted yet, or with other settings; names the fields that differ.
        CorruptCache: not found, and a file of that split is damaged.
    """
    job = _Job(settings)
    found = job.lookup(split)
    if found is None:
        differs, damaged = job.what_differs(split), store.damaged(job.cache_dir, split)
        if damaged and not differs:
            raise damaged[0]
        also = "".join(f"; {error.what}" for error in damaged)
        raise CacheMiss(
            f"no features of the {split} split for these settings{differs}{also}",
            hint=f"make them with the same flags: featcache extract --split {split}",
        )
    return found


class _Job:
    """One call of `extract_splits`: what all its splits share."""

    def __init__(
        self, settings: Settings, report: Report | None = None, force: bool = False, wait: float = 0.0
    ) -> None:
        self.settings = settings
        self.report: Report = report or (lambda _: None)
        self.watched = report is not None
        self.force = force
        self.wait = wait
        self.cache_dir = Path(settings.paths.cache_dir)
        self.model: ModelFiles = find_model(settings.backbone)
        self.source = describe_source(settings.data, seed=settings.seed)
        self._encoder: Encoder | None = None

    # -- answers from the cache -------------------------------------------------------------------

    def request(self, split: str) -> dict[str, Any]:
        """What was asked for a split, in content hashes and settings: the key of a repeated call."""
        backbone, features, data = (
            self.settings.backbone, self.settings.features, self.settings.data,
        )  # fmt: skip
        unknown = {"dataset": data.dataset, "revision": data.dataset_revision, "commit": None}
        return {
            "split": split,
            "source": self.source if self.source is not None else unknown,
            "encoder": {
                "files": self.model.hashes,
                "prompt": features.prompt,
                "max_length": features.max_length,
                "dtype": backbone.dtype,
                "storage": features.storage,
                **later_settings(features),
            },
        }

    def lookup(self, split: str) -> CacheFile | None:
        files = store.cache_files(self.cache_dir, split)
        return store.find_request(files, self.request(split), set(self.settings.features.views))

    def find_by_request(self, split: str) -> Extracted | None:
        began = time.perf_counter()
        found = self.lookup(split)
        return self._served(found, split, time.perf_counter() - began) if found else None

    def what_differs(self, split: str) -> str:
        """`: max_length (cached 512, wanted 256)` against the nearest file; empty without one."""
        near = store.nearest(store.cache_files(self.cache_dir, split), self.request(split))
        if near is None:
            return ""
        file, found = near
        wanted = set(self.settings.features.views) - set(file.views)
        fields = [str(difference) for difference in found]
        fields += (
            [f"views (cached {', '.join(file.views)}, wanted {', '.join(sorted(wanted))})"] if wanted else []
        )
        return f": {file.path.name} differs in {'; '.join(fields)}" if fields else ""

    def _served(self, file: CacheFile, split: str, seconds: float, notes: tuple[str, ...] = ()) -> Extracted:
        return Extracted(
            split, file.rows, seconds, True, 0, file.rows, file.truncated, file.tokens,
            file.fingerprint, file.path, file.views, file.max_length, notes,
        )  # fmt: skip

    # -- the work ---------------------------------------------------------------------------------

    def extract(self, split: Split) -> Extracted:
        began = time.perf_counter()
        hashes = self._hash(split)
        asked = self.request(split.name)
        if not self.force:
            found = self._find_by_rows(split, hashes, asked)
            if found:
                with suppress(CacheError):  # a read-only cache still serves; it is only asked again
                    store.add_request(found, {**asked, "views": self._asked_views(found)})
                return self._served(found, split.name, time.perf_counter() - began, split.notes)
        self._require_room(split)
        encoder = self.encoder(split.name)
        document = cache_document(
            encoder.document,
            [view.name for view in encoder.views],
            hashes,
            split.labels,
            split.label_names,
        )
        path = cache_path(
            self.cache_dir, self._dataset_name(), self.model.name, split.name, fingerprint(document)
        )
        if path.exists() and not self.force:
            CacheFile(path)  # a damaged file is said to be so before anything is encoded
        with locked(path, self.wait, lambda text: self.report(Progress("note", split.name, text=text))):
            work = _Work(self, split, hashes, encoder, document, path)
            made = work.run()
        seconds = time.perf_counter() - began
        file = CacheFile(path)
        request = {**asked, "views": self._asked_views(file)}
        # Who only waited while another process made the file leaves that one's record as it is.
        again = made["encoded"] == 0 and bool(file.record.get("made"))
        how = (
            None
            if again
            else {"seconds": seconds, "pairs": split.has_pairs, **made, **_circumstances(self, encoder)}
        )
        store.add_request(file, request, how)
        return Extracted(
            split.name, len(split), seconds, False, made["encoded"], len(split) - made["encoded"],
            file.truncated, file.tokens, file.fingerprint, path, file.views, file.max_length, split.notes,
        )  # fmt: skip

    def encoder(self, split: str) -> Encoder:
        """The encoder, loaded when the first split needs it; its speed depends on torch's import."""
        if self._encoder is None:
            self.report(Progress("load", split, text=self.model.name))
            from featcache.backbone import load_backbone
            from featcache.encode import Encoder

            backbone = load_backbone(self.settings.backbone, self.model)
            self._encoder = Encoder(backbone, self.settings.features, self.settings.backbone.batch_tokens)
            for note in self._encoder.notes:
                self.report(Progress("note", split, text=note))
        return self._encoder

    def _require_room(self, split: Split) -> None:
        """Refuse before the model is loaded what can never fit; `_Work` looks again, exactly."""
        width = self.model.width
        if width is not None:
            row_bytes = (
                len(self.settings.features.views) * width * np.dtype(self.settings.features.storage).itemsize
            )
            needed = len(split) * (row_bytes + 64) + split.labels.nbytes
            require_space(self.cache_dir, needed, f"the cache of {split.name}")

    def speedometer(self, encoder: Encoder, texts: int) -> Speedometer | None:
        """For the encoding of `texts`; None where nobody looks at it."""
        if not self.watched:
            return None
        from featcache.speed import Speedometer

        return Speedometer(encoder, texts)

    def _hash(self, split: Split) -> np.ndarray:
        parts, done = [], 0
        for texts, pairs in split.batches():
            parts.append(row_hashes(texts, pairs))
            done += len(texts)
            self.report(Progress("hash", split.name, done, len(split)))
        return np.concatenate(parts)

    def _find_by_rows(self, split: Split, hashes: np.ndarray, asked: Mapping[str, Any]) -> CacheFile | None:
        """A file made under the same settings from the same rows, wherever they lay then."""
        want = cache_document({}, [], hashes, split.labels, split.label_names)
        views = set(self.settings.features.views)
        for file in store.cache_files(self.cache_dir, split.name):
            if all(file.document[part] == want[part] for part in ("rows", "labels")):
                for known in file.record.get("requests", []):
                    if known["encoder"] == asked["encoder"] and views <= set(known["views"]):
                        return file
        return None

    def _asked_views(self, file: CacheFile) -> dict[str, str]:
        """Every way the file's views may be asked for that we know of, to their canonical names."""
        names = {view: view for view in file.views}
        if self._encoder is not None:
            from featcache.pooling import parse_view

            blocks = self._encoder.backbone.num_blocks
            names |= {text: parse_view(text, blocks).name for text in self.settings.features.views}
        else:
            for known in file.record.get("requests", []):
                names |= known["views"]
        return names

    def _dataset_name(self) -> str:
        data = self.settings.data
        if data.data_files:
            return Path(next(iter(data.data_files.values()))).resolve().parent.name or "files"
        path = Path(data.dataset)
        return path.resolve().name if path.exists() else data.dataset


@dataclass
class _Work:
    """The making of one cache file."""

    job: _Job
    split: Split
    hashes: np.ndarray
    encoder: Encoder
    document: dict[str, Any]
    path: Path
    tokens: int = 0
    done: int = 0
    donors: list[CacheFile] = field(default_factory=list)
    speed: Speedometer | None = None

    def run(self) -> dict[str, int]:
        """Encode what is missing, assemble, publish; how many texts and tokens were encoded."""
        self.donors = [] if self.job.force else self._donors()
        origin = self._origin()
        donated = sum(file.rows for file in self.donors)
        to_encode = np.unique(origin[origin >= donated]) - donated
        self._check_space(len(to_encode))
        remove_temporaries(self.path)  # of a process that was killed while it wrote this very file
        staging = Staging(self.path.with_suffix(".partial"), self._plan(to_encode))
        encoded = self._encode_missing(staging, to_encode)
        self.job.report(Progress("seal", self.split.name, len(self.split), len(self.split)))
        columns = self._columns(staging, to_encode, origin, donated)
        write_sealed(self.path, self._meta(), columns, replace=self.job.force)
        staging.discard()
        return {"encoded": encoded, "tokens": self.tokens}

    def _donors(self) -> list[CacheFile]:
        """Sealed files made by the very same encoder, with all views wanted here."""
        wanted = set(self.document["views"])
        return [
            file
            for file in store.cache_files(self.job.cache_dir)
            if file.document["encoder"] == self.document["encoder"] and wanted <= set(file.views)
        ]

    def _origin(self) -> np.ndarray:
        """Where each row's features come from, int64 `[N]`: a place in donors + this split's rows."""
        stacked = [np.asarray(file.sealed.column("row_hash")) for file in self.donors]
        first = first_occurrence(np.concatenate([*stacked, self.hashes]))
        return first[len(first) - len(self.hashes) :]

    def _check_space(self, rows: int) -> None:
        hidden = int(getattr(self.encoder.backbone.model.config, "hidden_size", 1024))
        row_bytes = len(self.encoder.views) * hidden * self.encoder.storage.itemsize + 64
        needed = row_bytes * (rows + len(self.split)) + self.split.labels.nbytes + (1 << 20)
        require_space(self.job.cache_dir, needed, f"the cache of {self.split.name}")

    def _plan(self, to_encode: np.ndarray) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint(self.document),
            "block_rows": BLOCK_ROWS,
            "batch_tokens": self.encoder.batch_tokens,
            "rows": fingerprint(to_encode.tolist()),
        }

    def _encode_missing(self, staging: Staging, to_encode: np.ndarray) -> int:
        """Encode and commit every block that is not there yet; how many texts that took."""
        blocks = [to_encode[i : i + BLOCK_ROWS] for i in range(0, len(to_encode), BLOCK_ROWS)]
        committed = staging.committed()
        missing = [number for number in range(len(blocks)) if number not in committed]
        self.done = len(self.split) - sum(len(blocks[number]) for number in missing)
        if committed:
            text = f"{self.split.name}: going on from {len(committed)} of {len(blocks)} blocks"
            self.job.report(Progress("note", self.split.name, text=text))
        self.encoder.backbone.prepare(len(self.split))  # by the whole, so that a resumed run decides alike
        self.speed = self.job.speedometer(self.encoder, len(self.split) - self.done)
        self._step(0, 0)
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for number, tokens in self._tokenized(blocks, missing):
                arrays = self._encode_block(tokens, blocks[number])
                if writing:
                    writing.result()  # at most one block waits to be written; its error ends the work
                writing = writer.submit(staging.commit, number, arrays)
            if writing:
                writing.result()
        return sum(len(blocks[number]) for number in missing)

    def _tokenized(
        self, blocks: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Tokens]]:
        """Tokens of each block, made in a thread that stays two blocks ahead of the model."""

        def tokenize(number: int) -> Tokens:
            rows = blocks[number]
            with self._naming_rows(rows):
                return self.encoder.tokenize(self.split.texts(rows), self.split.pairs(rows))

        with ThreadPoolExecutor(1) as pool:
            ahead: deque[tuple[int, Future[Tokens]]] = deque()
            try:
                for number in numbers:
                    ahead.append((number, pool.submit(tokenize, number)))
                    if len(ahead) > 2:
                        first, future = ahead.popleft()
                        yield first, future.result()
                for first, future in ahead:
                    yield first, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()

    def _encode_block(self, tokens: Tokens, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self.speed:
            self.speed.expect(tokens.lengths)
        with self._naming_rows(rows):
            encoded = self.encoder.encode(tokens, self._step)
        return {
            **encoded.views,
            "n_tokens": encoded.n_tokens,
            "truncated": encoded.truncated.astype(np.uint8),
        }

    @contextmanager
    def _naming_rows(self, rows: np.ndarray) -> Iterator[None]:
        """Let an error of one of these rows say which row of the source it is."""
        try:
            yield
        except BadRow as error:
            row = int(self.split.row_numbers[rows[error.row]]) + 1
            raise BackboneError(f"row {row} of {self.split.name}: {error.what}", hint=error.hint) from None

    def _step(self, texts: int, tokens: int) -> None:
        self.done += texts
        self.tokens += tokens
        share = self.speed.step(texts, tokens) if self.speed else None
        rows = len(self.split)
        self.job.report(Progress("encode", self.split.name, self.done, rows, self.tokens, share=share))

    def _meta(self) -> dict[str, Any]:
        return {
            "format": "featcache",
            "fingerprint": fingerprint(self.document),
            "split": self.split.name,
            "model": self.job.model.name,
            "document": self.document,
        }

    def _columns(
        self, staging: Staging, to_encode: np.ndarray, origin: np.ndarray, donated: int
    ) -> list[Column]:
        count = len(self.split)
        gather = _Gather(self.donors, staging, to_encode, origin, donated)
        width = {view.name: gather.width(view.name) for view in self.encoder.views}
        storage = self.encoder.storage.name
        columns = [
            Column(store.view_column(name), (count, size), storage, gather.chunks(name))
            for name, size in width.items()
        ]
        return [
            *columns,
            self._labels(),
            Column("row_hash", (count, 32), "uint8", [self.hashes]),
            Column("n_tokens", (count,), "int32", gather.chunks("n_tokens")),
            Column("truncated", (count,), "uint8", gather.chunks("truncated")),
        ]

    def _labels(self) -> Column:
        labels = self.split.labels
        starts = range(0, len(labels), ASSEMBLE_ROWS)
        chunks = (labels[start : start + ASSEMBLE_ROWS] for start in starts)
        return Column("labels", labels.shape, labels.dtype.name, chunks)


class _Gather:
    """Rows of the file to be, in order, from donors and committed blocks, a few at a time."""

    def __init__(
        self,
        donors: Sequence[CacheFile],
        staging: Staging,
        to_encode: np.ndarray,
        origin: np.ndarray,
        donated: int,
    ) -> None:
        self.donors = donors
        self.starts = np.cumsum([0, *(file.rows for file in donors)])
        self.origin = origin
        self.donated = donated
        self.to_encode = to_encode
        self.block = lru_cache(maxsize=16)(staging.read)

    def width(self, view: str) -> int:
        if self.donors:
            return int(self.donors[0].sealed.column(store.view_column(view)).shape[1])
        return int(self.block(0)[view].shape[1])

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        for start in range(0, len(self.origin), ASSEMBLE_ROWS):
            yield self._rows(name, self.origin[start : start + ASSEMBLE_ROWS])

    def _rows(self, name: str, origin: np.ndarray) -> np.ndarray:
        rows: np.ndarray | None = None
        for part, picked in self._parts(name, origin):
            if rows is None:
                rows = np.empty((len(origin), *part.shape[1:]), part.dtype)
            rows[picked] = part
        assert rows is not None
        return rows

    def _parts(self, name: str, origin: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Values and the places they go to, donor by donor and block by block."""
        for number, file in enumerate(self.donors):
            low, high = self.starts[number], self.starts[number + 1]
            picked = np.flatnonzero((origin >= low) & (origin < high))
            if len(picked):
                column = name if name in file.sealed.names else store.view_column(name)
                yield file.sealed.column(column)[origin[picked] - low], picked
        fresh = np.flatnonzero(origin >= self.donated)
        places = np.searchsorted(self.to_encode, origin[fresh] - self.donated)
        for number in np.unique(places // BLOCK_ROWS):
            inside = places // BLOCK_ROWS == number
            yield self.block(int(number))[name][places[inside] - number * BLOCK_ROWS], fresh[inside]


def first_occurrence(hashes: np.ndarray) -> np.ndarray:
    """For each row, the number of the first row with the same hash.

    Args:
        hashes: uint8 `[N, 32]`.

    Returns:
        int64 `[N]`; equal to `arange(N)` where all rows differ.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)  # [N, 4]
    order = np.lexsort(words.T)  # stable: equal rows stay in order, the first one first
    ordered = words[order]
    new = np.ones(len(words), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    first = np.empty(len(words), dtype=np.int64)
    first[order] = order[starts[np.cumsum(new) - 1]]
    return first


def _circumstances(job: _Job, encoder: Encoder) -> dict[str, Any]:
    """What does not change a feature but is good to know later."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "dataset": job._dataset_name(),
        "model": job.settings.backbone.model,
        "commit": job.model.commit,
        "device": str(encoder.backbone.device),
        "dtype": encoder.backbone.dtype_name,
        "packing": encoder.backbone.packing,
        "packing_note": encoder.backbone.packing_note,
        "fused": list(encoder.backbone.fused),
        "host": platform.node(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }
