"""One call of `extract_splits`: look rows up in the cache, encode those that are missing, seal a file."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbone.endpoint.model import AnyModel, EndpointModel, find_any_model, follow_any
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.kinds import no_files
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.record import Provenance
from featcache.cache.shards import parse_shard_size
from featcache.cache.view_names import LEXICAL, join_views
from featcache.data.locate import source_name
from featcache.data.split import Split, describe_source, load_splits, require_same_source
from featcache.errors import CacheError, UsageError
from featcache.extraction.encode_units import LocalUnitEncoder, UnitEncoder
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.endpoint.outlook import with_cost
from featcache.extraction.endpoint.units import EndpointUnits
from featcache.extraction.extracted import Extracted
from featcache.extraction.make_file import EncodedCounts, FileMaker, NewFile
from featcache.extraction.outlook import Announced, announce
from featcache.fingerprint import (
    CacheDocument,
    LabelsPart,
    Request,
    RequestedEncoder,
    RowsPart,
    row_hashes,
)
from featcache.settings import BackboneSettings, Settings
from featcache.system.durable import require_space
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.workers import Worker

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder


class Job:
    """What all splits of one call of `extract_splits` share.

    Args:
        settings: model, data, views and folders.
        on_progress: called with progress.
        force: encode again and replace what is there.
        wait: seconds to wait for another process that writes the same file.
        worker: which of several workers this process is; None: it works alone.
        folder: through which the workers report; by default that of the unfinished file.
        model: the files of the backbone, found by the settings by default.
        source: the description of the data source, likewise.

    Attributes:
        settings: nothing in their features is `auto`.
        asked: of each view as it was asked for, those in these settings that it stands for.
        followed: what of the model's sentence-transformers settings they follow.
    """

    def __init__(
        self,
        settings: Settings,
        on_progress: OnProgress | None = None,
        *,
        force: bool = False,
        wait: float = 0.0,
        worker: Worker | None = None,
        folder: Path | None = None,
        model: AnyModel | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        self.watched = on_progress is not None
        self.on_progress = on_progress or ignore
        self.force, self.wait, self.worker, self.folder = force, wait, worker, folder
        if LEXICAL in settings.features.views:
            raise UsageError(
                "--views lexical: words are in no cache, so nothing is extracted for them",
                hint="leave it out here, and train with: featcache train-head --view depth,lexical",
            )
        self.cache = Cache.open(settings.paths.cache_dir)
        self.any_model = model or find_any_model(settings.backbone)
        followed = follow_any(settings.features, self.any_model)
        self.settings, self.followed = replace(settings, features=followed.features), followed
        self.asked = followed.views
        self.source = describe_source(settings.data, seed=settings.seed) if source is None else source
        self._encoder: Encoder | None = None
        self._endpoint: EndpointUnits | None = None
        self._loading_seconds = 0.0  # until the encoder was there
        self._unit_encoder: UnitEncoder | None = None

    def run(self, splits: Sequence[str]) -> list[Extracted]:
        """See `extract_splits`."""
        known = {} if self.force else {split: self.find_by_request(split) for split in splits}
        missing = [split for split in splits if known.get(split) is None]
        made = self.make(missing) if missing else {}
        return [known.get(split) or made[split] for split in splits]

    def make(self, splits: Sequence[str]) -> dict[str, Extracted]:
        """Extract splits of which no request is recorded."""
        data = self.settings.data
        if self.source is not None and "commit" in self.source:  # the rows that were described
            data = replace(data, dataset_revision=str(self.source["commit"]))
        loaded = load_splits(data, splits, seed=self.settings.seed)
        require_same_source(self.settings.data, self.source or {}, seed=self.settings.seed)
        if self.worker is None:  # each of several workers would speak for itself
            about = Announced(loaded, self.any_model, self.followed, self._row_bytes(), lambda: self._encoder)
            self.on_progress = announce(about, self.on_progress)
        if (endpoint := self.endpoint()) is not None:
            left = [self._to_send(split, endpoint) for split in loaded.values()]
            self.on_progress = with_cost(endpoint.encoder, left, splits[0], self.on_progress)
        return {name: self.extract(split) for name, split in loaded.items()}

    def extract(self, split: Split) -> Extracted:
        """Make sure that the features of one split are in the cache.

        Its rows are hashed and looked up: a file with the same rows under the same settings is the answer.
        Otherwise the rows that no file of the same encoder has are encoded, and a new file is sealed.
        """
        began = time.perf_counter()
        hashes, sizes = self.hash_rows(split)
        found = None if self.force else self._find_by_rows(split, hashes)
        notes = (*split.read_as, *split.notes)
        if found:
            with suppress(CacheError):  # a read-only cache still serves; the rows are only looked up again
                self._record_request(found, split.name)
            return self._served(found, split.name, began, notes)
        self._check_space(split)
        shard_size = parse_shard_size(self.settings.paths.shard_size)  # refused before the model is loaded
        loaded_before = self._loading_seconds
        encoder = self.unit_encoder(split.name)
        loading = self._loading_seconds - loaded_before
        new = self._new_file(split, hashes, sizes, encoder.spec, shard_size)
        if not self.force and (found := self._find_by_name(new)):
            with suppress(CacheError):  # a read-only cache still serves
                self._record_request(found, split.name)
            return self._served(found, split.name, began, notes, loading)
        counts = FileMaker(
            new, encoder, self.on_progress,
            force=self.force, wait=self.wait, worker=self.worker, folder=self.folder,
        ).run()  # fmt: skip
        file, seconds = self.cache.file(new.path), time.perf_counter() - began
        if counts.sealed:
            self._record_making(file, split, seconds, counts, encoder.spec)
            self.cache.push(file.path, replace=self.force)
        else:  # the worker that sealed it may have been killed before it wrote the record
            self._record_request(file, split.name)
        file = self.cache.file(new.path)  # with its record
        return Extracted.of(
            file, split.name, seconds, encoded=counts.texts, notes=notes, loading_seconds=loading
        )

    # -- answers from the cache -------------------------------------------------------------------

    def request(self, split: str) -> Request:
        """What is asked for a split, in content hashes and settings: the key of a repeated call."""
        data = self.settings.data
        unknown = {"dataset": data.dataset, "revision": data.dataset_revision, "commit": None}
        features = self.settings.features
        if isinstance(self.any_model, EndpointModel):
            encoder = self.any_model.requested(features)
        else:
            files = self.any_model.hashes_of(features.views)
            encoder = RequestedEncoder.of(files, self.settings.backbone.dtype, features)
        return Request(split, self.source if self.source is not None else unknown, encoder)

    def lookup(self, split: str) -> CacheFile | None:
        """The file that answered this request before; nothing is loaded."""
        file = self.cache.find(self.request(split), set(self.settings.features.views))
        if file is not None:
            # `self.asked` has the views as they were asked for; the file's record has their stored names.
            file.asked = {asked: file.stored_view(join_views(views)) for asked, views in self.asked.items()}
        return file

    def find_by_request(self, split: str) -> Extracted | None:
        """The answer to a repeated request; None for a new one."""
        began = time.perf_counter()
        found = self.lookup(split)
        return self._served(found, split, began) if found else None

    def what_differs(self, split: str) -> str:
        """`: max_length (cached 512, wanted 256)` against the nearest file; empty without one."""
        near = self.cache.nearest(self.request(split))
        if near is None:
            return ""
        file, found = near
        wanted = set(self.settings.features.views) - set(file.views)
        fields = [str(difference) for difference in found]
        if wanted:
            fields.append(f"views (cached {', '.join(file.views)}, wanted {', '.join(sorted(wanted))})")
        return f": {file.path.name} differs in {'; '.join(fields)}" if fields else ""

    def _find_by_rows(self, split: Split, hashes: np.ndarray) -> CacheFile | None:
        """A file made under the same settings from the same rows, whatever their source was."""
        rows, labels = RowsPart.of(hashes), LabelsPart.of(split.labels, split.label_names)
        asked, views = self.request(split.name).encoder, set(self.settings.features.views)
        for file in self.cache.files(split.name):
            if (file.document.rows, file.document.labels) == (rows, labels):
                for known in file.record.requests:
                    if known.encoder == asked and views <= set(known.views):
                        return file
        return None

    def _find_by_name(self, new: NewFile) -> CacheFile | None:
        """The very file that would be made, where it is there and its record was lost.

        Raises:
            CorruptCache: it is damaged; nothing is encoded.
        """
        if new.path not in self.cache.paths(new.split.name):
            return None
        file = self.cache.file(new.path)
        return file if file.fingerprint == new.document.fingerprint else None

    def _served(
        self,
        file: CacheFile,
        split: str,
        began: float,
        notes: tuple[str, ...] = (),
        loading: float = 0.0,
    ) -> Extracted:
        self.cache.push(file.path)  # what could not be brought to the store when it was made
        seconds = time.perf_counter() - began
        return Extracted.of(file, split, seconds, cached=True, notes=notes, loading_seconds=loading)

    # -- a new file -------------------------------------------------------------------------------

    def hash_rows(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Row hashes uint8 `[N, 32]`, and bytes of each row's text, int64 `[N]`."""
        hashes, sizes, done = [], [], 0
        for texts, pairs in split.batches():
            hashes.append(row_hashes(texts, pairs))
            both = texts if pairs is None else [text + pair for text, pair in zip(texts, pairs, strict=True)]
            sizes.append(np.array([len(text.encode("utf-8", "surrogatepass")) for text in both]))
            done += len(texts)
            self.on_progress(Progress("hash", split.name, done, len(split)))
        return np.concatenate(hashes), np.concatenate(sizes)

    @property
    def model(self) -> ModelFiles:
        """The model, of which the files are needed.

        Raises:
            UsageError: it is behind an endpoint.
        """
        if isinstance(self.any_model, EndpointModel):
            raise no_files(self.any_model.name)
        return self.any_model

    def encoder(self, split: str) -> Encoder:
        """The encoder of a model with files, loaded when the first split needs it."""
        if self._encoder is None:
            files = self.model
            began = time.perf_counter()
            self.on_progress(Progress("load", split, text=self.any_model.name))
            from featcache.backbone.encoder import Encoder

            self._encoder = Encoder.load(self._own_device(), self.settings.features, files)
            self._loading_seconds += time.perf_counter() - began
            self.note_encoder(split, self._encoder.notes)
        return self._encoder

    def unit_encoder(self, split: str) -> UnitEncoder:
        """What encodes the commit units, loaded when the first split needs it."""
        if self._unit_encoder is None and (endpoint := self.endpoint()) is not None:
            self.note_encoder(split, endpoint.spec.notes)
            self._unit_encoder = endpoint
        if self._unit_encoder is None:
            encoder = self.encoder(split)
            spec = EncoderSpec.of(encoder, self.settings.features.views)
            self._unit_encoder = LocalUnitEncoder(spec, encoder, watched=self.watched)
        return self._unit_encoder

    def endpoint(self) -> EndpointUnits | None:
        """What encodes by an endpoint, which is not asked yet; None for a model with files."""
        if self._endpoint is None and isinstance(self.any_model, EndpointModel):
            self._endpoint = EndpointUnits.of(self.any_model, self.settings, self.cache)
        return self._endpoint

    def _to_send(self, split: Split, endpoint: EndpointUnits) -> tuple[np.ndarray, np.ndarray]:
        """Row hashes and bytes of the rows of a split that an endpoint is to encode."""
        hashes, sizes = self.hash_rows(split)
        if not endpoint.knows_width:  # nothing of it is in the cache
            return hashes, sizes
        new = self._new_file(
            split, hashes, sizes, endpoint.spec, parse_shard_size(self.settings.paths.shard_size)
        )
        rows = FileMaker(new, endpoint, ignore, force=self.force).rows_left()
        return hashes[rows], sizes[rows]

    def release(self) -> None:
        """Free the memory of the encoder; it is loaded again when a split needs it."""
        self._encoder = self._unit_encoder = None

    def note_encoder(self, split: str, notes: Sequence[str]) -> None:
        """Tell the user what the settings follow, then the notes of an encoder."""
        for text in filter(None, [self.followed.note, *notes]):
            self.note(split, text)

    def note(self, split: str, text: str) -> None:
        self.on_progress(Progress("note", split, text=text))

    def _own_device(self) -> BackboneSettings:
        """The backbone's settings with the GPU that is this worker's, where there are several workers."""
        import torch

        backbone, count = self.settings.backbone, torch.cuda.device_count()
        if self.worker is None or backbone.device not in ("auto", "cuda") or count == 0:
            return backbone
        return replace(backbone, device=f"cuda:{self.worker.local_rank % count}")

    def _check_space(self, split: Split) -> None:
        """Refuse what can never fit before the model is loaded; `FileMaker` looks again, exactly."""
        needed = len(split) * (self._row_bytes() or 0) + split.labels.nbytes
        require_space(self.cache.folder, needed, f"the cache of {split.name}")

    def _row_bytes(self) -> int | None:
        """Of one row on disk, without its label; None where the width of the model is not known."""
        features = self.settings.features
        width = self.any_model.width_of(features.views)
        return width and width * np.dtype(features.storage).itemsize + 64

    def _new_file(
        self, split: Split, hashes: np.ndarray, sizes: np.ndarray, spec: EncoderSpec, shard_size: int
    ) -> NewFile:
        rows, labels = RowsPart.of(hashes), LabelsPart.of(split.labels, split.label_names)
        document = CacheDocument(spec.document, tuple(spec.stored_views), rows, labels)
        name = source_name(self.settings.data)
        path = self.cache.path(name, self.any_model.name, split.name, document.fingerprint)
        return NewFile(
            split=split,
            hashes=hashes,
            sizes=sizes,
            document=document,
            model=self.any_model.name,
            cache=self.cache,
            path=path,
            shard_size=shard_size,
        )

    def _record_request(self, file: CacheFile, split: str, made: Provenance | None = None) -> None:
        """Record that `file` answers the request for `split`, under every name known of its views."""
        views = {view: view for view in file.views}
        if self._unit_encoder is not None:
            views |= self._unit_encoder.spec.views
        else:
            for known in file.record.requests:
                views |= known.views
        add_request(file, replace(self.request(split), views=views), made)

    def _record_making(
        self, file: CacheFile, split: Split, seconds: float, counts: EncodedCounts, spec: EncoderSpec
    ) -> None:
        """Record the request, and what does not change a feature but is good to know later."""
        if (
            counts.texts == 0 and file.record.made != Provenance()
        ):  # another process made it while this one waited
            self._record_request(file, split.name)
            return
        made = Provenance(
            seconds=seconds,
            pairs=split.has_pairs,
            encoded=counts.texts,
            tokens=counts.tokens,
            unknown_tokens=counts.unknown_tokens,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            dataset=source_name(self.settings.data),
            model=self.settings.backbone.model,
            commit=self.any_model.commit,
            hub=None if self.settings.backbone.hub == BackboneSettings().hub else self.settings.backbone.hub,
            device=spec.device or None,
            dtype=spec.dtype or None,
            packing=spec.packing or None,
            packing_note=spec.packing_note,
            fused=spec.fused,
            host=platform.node(),
            versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        )
        self._record_request(file, split.name, made)
