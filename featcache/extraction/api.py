"""Split + backbone + views -> sealed cache file, once.

A repeated request is answered from the record of earlier ones, without a model or a dataset being
loaded; failing that, by the rows themselves; failing that, the rows that no sealed file has yet are
encoded, in blocks that are committed one by one, and the file is assembled, sealed and published.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbone.files import ModelFiles, find_model
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.record import Provenance
from featcache.cache.shards import parse_shard_size
from featcache.data.split import Split, describe_source, load_splits
from featcache.errors import CacheError, CacheMiss, UsageError
from featcache.extraction.make_file import Elsewhere, Making
from featcache.extraction.worker_group import Gang
from featcache.fingerprint import CacheDocument, LabelsPart, Request, RequestedEncoder, RowsPart, row_hashes
from featcache.settings import BackboneSettings, Settings
from featcache.system.durable import require_space
from featcache.system.progress import OnProgress, Progress

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.throughput import Speedometer


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
    report: OnProgress | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
    workers: int | str = 1,
) -> list[Extracted]:
    """Make sure that the features of `splits` are in the cache.

    Under torchrun, or whatever else sets its environment variables, the processes share the work.

    Args:
        settings: model, data, views and folders.
        splits: of `train`, `validation`, `test`, in the order wanted.
        report: called with progress.
        force: encode again and replace what is there.
        wait: seconds to wait for another process that writes the same file; by default one is told at once.
            Several workers share its work instead, however long it takes.
        workers: processes to be started on this machine, see `local_workers`; `auto`: one a GPU, or one for
             several cores.

    Raises:
        SourceError, BackboneError, CacheError, UsageError: each says what to do. Committed blocks
            are kept, and the same call goes on from them.
    """
    gang = Gang.of_environment()
    if workers != 1:
        from featcache.extraction.local_workers import extract_with_workers

        if gang:
            raise UsageError("--workers under torchrun", hint="torchrun starts the workers: leave it out")
        return extract_with_workers(settings, splits, workers, report, force=force, wait=wait)
    if gang and force and gang.board is None:
        raise UsageError("--force under torchrun", hint="remove the file first: featcache cache rm")
    return Job(settings, report, force, wait, gang).run(splits)


def extracted(
    file: CacheFile, split: str, seconds: float, encoded: int, notes: tuple[str, ...] = ()
) -> Extracted:
    """What to say of a file that was made now, `encoded` of its texts by the backbone."""
    return Extracted(
        split, file.rows, seconds, False, encoded, file.rows - encoded, file.truncated, file.tokens,
        file.fingerprint, file.path, file.views, file.max_length, notes,
    )  # fmt: skip


def find_features(settings: Settings, split: str) -> CacheFile:
    """The sealed file that `extract` made for these settings; encodes nothing.

    Raises:
        CacheMiss: not extracted yet, or with other settings; names the fields that differ.
        CorruptCache: not found, and a file of that split is damaged.
    """
    job = Job(settings)
    found = job.lookup(split)
    if found is None:
        differs, damaged = job.what_differs(split), job.cache.damaged(split)
        if damaged and not differs:
            raise damaged[0]
        also = "".join(f"; {error.what}" for error in damaged)
        raise CacheMiss(
            f"no features of the {split} split for these settings{differs}{also}",
            hint=f"make them with the same flags: featcache extract --split {split}",
        )
    return found


class Job:
    """One call of `extract_splits`: what all its splits share."""

    def __init__(
        self,
        settings: Settings,
        report: OnProgress | None = None,
        force: bool = False,
        wait: float = 0.0,
        gang: Gang | None = None,
    ) -> None:
        self.settings = settings
        self.gang = gang
        self.report: OnProgress = report or (lambda _: None)
        self.watched = report is not None
        self.force = force
        self.wait = wait
        self.cache = Cache.open(settings.paths.cache_dir)
        self.model: ModelFiles = find_model(settings.backbone)
        self.source = describe_source(settings.data, seed=settings.seed)
        self._encoder: Encoder | None = None
        self.elsewhere: Elsewhere | None = None

    def run(self, splits: Sequence[str]) -> list[Extracted]:
        """As `extract_splits`."""
        known = {} if self.force else {split: self.find_by_request(split) for split in splits}
        missing = [split for split in splits if known.get(split) is None]
        data, seed = self.settings.data, self.settings.seed
        loaded = load_splits(data, missing, seed=seed) if missing else {}
        return [known.get(split) or self.extract(loaded[split]) for split in splits]

    @property
    def shard_size(self) -> int:
        """Most bytes of one file.

        Raises:
            UsageError: the setting is not a size, or a size below 20 kB.
        """
        return parse_shard_size(self.settings.paths.shard_size)

    # -- answers from the cache -------------------------------------------------------------------

    def request(self, split: str) -> Request:
        """What was asked for a split, in content hashes and settings: the key of a repeated call."""
        data = self.settings.data
        unknown = {"dataset": data.dataset, "revision": data.dataset_revision, "commit": None}
        encoder = RequestedEncoder.of(self.model.hashes, self.settings.backbone.dtype, self.settings.features)
        return Request(split, self.source if self.source is not None else unknown, encoder)

    def lookup(self, split: str) -> CacheFile | None:
        return self.cache.find(self.request(split), set(self.settings.features.views))

    def find_by_request(self, split: str) -> Extracted | None:
        began = time.perf_counter()
        found = self.lookup(split)
        return self._served(found, split, time.perf_counter() - began) if found else None

    def what_differs(self, split: str) -> str:
        """`: max_length (cached 512, wanted 256)` against the nearest file; empty without one."""
        near = self.cache.nearest(self.request(split))
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
        self.cache.push(file.path)  # what could not be brought to the store when it was made
        return replace(extracted(file, split, seconds, 0, notes), cached=True)

    # -- the work ---------------------------------------------------------------------------------

    def extract(self, split: Split) -> Extracted:
        began = time.perf_counter()
        hashes, sizes = self.hash_rows(split)
        asked = self.request(split.name)
        if not self.force:
            found = self._find_by_rows(split, hashes, asked)
            if found:
                with suppress(CacheError):  # a read-only cache still serves; it is only asked again
                    add_request(found, replace(asked, views=self._asked_views(found)))
                return self._served(found, split.name, time.perf_counter() - began, split.notes)
        self._require_room(split)
        self.shard_size  # noqa: B018  (one that makes no sense is refused before the model is loaded)
        encoder = self.encoder(split.name)
        views = [view.name for view in encoder.views]
        rows, labels = RowsPart.of(hashes), LabelsPart.of(split.labels, split.label_names)
        document = CacheDocument(encoder.document, tuple(sorted(views)), rows, labels)
        name = document.fingerprint
        path = self.cache.path(self.dataset_name(), self.model.name, split.name, name)
        if not self.force and path in self.cache.paths(split.name):
            self.cache.file(path)  # a damaged file is said to be so before anything is encoded
        made = Making(
            split, hashes, sizes, encoder, document, self.model.name, self.cache, path, self.report,
            self.speedometer, self.force, self.wait, self.gang, self.elsewhere,
            shard_size=self.shard_size,
        ).run()  # fmt: skip
        seconds = time.perf_counter() - began
        file = self.cache.file(path)
        if made.sealed:
            # Who only waited while another process made the file leaves that one's record as it is.
            how = None if made.encoded == 0 and file.record.made != Provenance() else Provenance(
                seconds=seconds, pairs=split.has_pairs, encoded=made.encoded, tokens=made.tokens,
                **_circumstances(self, encoder),
            )  # fmt: skip
            add_request(file, replace(asked, views=self._asked_views(file)), how)
            self.cache.push(path, replace=self.force)
        return extracted(file, split.name, seconds, made.encoded, split.notes)

    def encoder(self, split: str) -> Encoder:
        """The encoder, loaded when the first split needs it; its speed depends on torch's import."""
        if self._encoder is None:
            self.report(Progress("load", split, text=self.model.name))
            from featcache.backbone.encoder import Encoder

            self._encoder = Encoder.load(self._own_device(), self.settings.features, self.model)
            for note in self._encoder.notes:
                self.report(Progress("note", split, text=note))
        return self._encoder

    def _own_device(self) -> BackboneSettings:
        """The backbone's settings with the GPU that is this worker's, where there are several workers."""
        import torch

        backbone, count = self.settings.backbone, torch.cuda.device_count()
        if self.gang is None or backbone.device not in ("auto", "cuda") or count == 0:
            return backbone
        return replace(backbone, device=f"cuda:{self.gang.local_rank % count}")

    def _require_room(self, split: Split) -> None:
        """Refuse before the model is loaded what can never fit; `_Work` looks again, exactly."""
        width = self.model.width
        if width is not None:
            row_bytes = (
                len(self.settings.features.views) * width * np.dtype(self.settings.features.storage).itemsize
            )
            needed = len(split) * (row_bytes + 64) + split.labels.nbytes
            require_space(self.cache.folder, needed, f"the cache of {split.name}")

    def speedometer(self, encoder: Encoder, texts: int) -> Speedometer | None:
        """For the encoding of `texts`; None where nobody looks at it."""
        if not self.watched:
            return None
        from featcache.backbone.throughput import Speedometer

        return Speedometer(encoder, texts)

    def hash_rows(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Row hashes uint8 `[N, 32]`, and bytes of each row's text, int64 `[N]`."""
        hashes, sizes, done = [], [], 0
        for texts, pairs in split.batches():
            hashes.append(row_hashes(texts, pairs))
            both = texts if pairs is None else [text + pair for text, pair in zip(texts, pairs, strict=True)]
            sizes.append(np.array([len(text.encode("utf-8", "surrogatepass")) for text in both]))
            done += len(texts)
            self.report(Progress("hash", split.name, done, len(split)))
        return np.concatenate(hashes), np.concatenate(sizes)

    def _find_by_rows(self, split: Split, hashes: np.ndarray, asked: Request) -> CacheFile | None:
        """A file made under the same settings from the same rows, wherever they lay then."""
        rows, labels = RowsPart.of(hashes), LabelsPart.of(split.labels, split.label_names)
        views = set(self.settings.features.views)
        for file in self.cache.files(split.name):
            if (file.document.rows, file.document.labels) == (rows, labels):
                for known in file.record.requests:
                    if known.encoder == asked.encoder and views <= set(known.views):
                        return file
        return None

    def _asked_views(self, file: CacheFile) -> dict[str, str]:
        """Every way the file's views may be asked for that we know of, to their canonical names."""
        names = {view: view for view in file.views}
        if self._encoder is not None:
            from featcache.backbone.pooling import parse_view

            blocks = self._encoder.backbone.num_blocks
            names |= {text: parse_view(text, blocks).name for text in self.settings.features.views}
        else:
            for known in file.record.requests:
                names |= known.views
        return names

    def dataset_name(self) -> str:
        data = self.settings.data
        if data.data_files:
            return Path(next(iter(data.data_files.values()))).resolve().parent.name or "files"
        path = Path(data.dataset)
        return path.resolve().name if path.exists() else data.dataset


def _circumstances(job: Job, encoder: Encoder) -> dict[str, Any]:
    """What does not change a feature but is good to know later."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "dataset": job.dataset_name(),
        "model": job.settings.backbone.model,
        "commit": job.model.commit,
        "device": str(encoder.backbone.device),
        "dtype": encoder.backbone.dtype_name,
        "packing": encoder.backbone.packing,
        "packing_note": encoder.backbone.packing_note,
        "fused": tuple(encoder.backbone.fused),
        "host": platform.node(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }
