"""Encode a few rows of a cache file again: do fresh features agree with the cached ones?

Checksums show that the bytes are those that were written. They do not show whether this machine, with these
versions of packages, makes the same features; a predictor relies on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbone.model_files.find import find_model
from featcache.cache.catalog import CacheFile, view_column
from featcache.data.split import SPLITS, Split, load_splits
from featcache.errors import CacheError
from featcache.fingerprint import EncoderDocument, canonical, differences, row_hashes
from featcache.settings import BackboneSettings, Settings
from featcache.system.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

LEAST_COSINE = 0.999
CANDIDATES = 1024  # rows looked for beyond those wanted, should some not be in the source


@dataclass(frozen=True)
class Drift:
    """How far fresh features of a view are from the cached ones; of all rows the worst one.

    Attributes:
        absolute: largest difference of a number.
        relative: largest length of a row's difference, over the length of the cached row.
        cosine: lowest cosine between a cached row and the fresh one.
    """

    view: str
    rows: int
    absolute: float
    relative: float
    cosine: float

    @property
    def ok(self) -> bool:
        return self.cosine >= LEAST_COSINE  # NaN is not


@dataclass
class Reencoder:
    """Encodes sampled rows of cache files again; files of one encoder share the loaded backbone.

    Args:
        settings: where the texts are, and on which device to run; what changes a feature is taken from
            the file.
        model: where the backbone lies now, if not where the file's record says.
        trust_any: the settings trust the code of whatever model a record names; otherwise that of their own
            model alone.
    """

    settings: Settings
    model: str | None = None
    trust_any: bool = False
    _encoders: dict[bytes, Encoder] = field(default_factory=dict)
    _splits: dict[str, Split] = field(default_factory=dict)

    def drift(self, file: CacheFile, count: int, on_progress: OnProgress = ignore) -> list[Drift]:
        """Encode `count` rows of `file` again, drawn by the seed of the settings.

        Returns:
            One for each view; of fewer rows than `count` where the file or the source has no more of them.

        Raises:
            CacheError: the backbone is not the one the file was made with (names what differs), or none
                of the rows is in the data source.
            BackboneError, SourceError: the model or the texts cannot be loaded.
        """
        if file.document.encoder.vectors is not None:
            raise CacheError(
                f"{file.path.name} has imported vectors, which nothing here can make again",
                hint="without --reencode every byte of it is checked",
            )
        split = self._split(file)
        draw = np.random.default_rng(self.settings.seed)
        order = draw.permutation(file.rows)
        rows, texts, pairs = _texts(file, split, order, count, on_progress)
        encoder = self._encoder(file)
        done = 0

        def step(texts: int, _: int) -> None:
            nonlocal done
            done += texts
            on_progress(Progress("encode", done=done, total=len(rows)))

        fresh = encoder.encode(encoder.tokenize(texts, pairs), step).views
        return [
            compare(view, np.asarray(file.sealed.column(view_column(view))[rows]), fresh[view])
            for view in file.views
        ]

    def _split(self, file: CacheFile) -> Split:
        if file.split not in SPLITS:
            raise CacheError(
                f"the texts of {file.path.name} came from memory; there is nowhere to read them again",
                hint="only features of train, validation and test can be encoded again",
            )
        if file.split not in self._splits:
            loaded = load_splits(self.settings.data, [file.split], seed=self.settings.seed)
            self._splits |= loaded
        return self._splits[file.split]

    def _encoder(self, file: CacheFile) -> Encoder:
        """The encoder of `file`, checked by its document."""
        document = file.document.encoder
        key = canonical([document.to_json(), sorted(file.views)])
        if key not in self._encoders:
            self._encoders.clear()  # one backbone at a time
            self._encoders[key] = self._load(file, document)
        return self._encoders[key]

    def _load(self, file: CacheFile, document: EncoderDocument) -> Encoder:
        from featcache.backbone.encoder import Encoder, document_settings

        if document.endpoint is not None:
            raise CacheError(
                f"{file.path.name} was made by {document.endpoint.address}, which is not asked here",
                hint="featcache extract compares its canary in each session before it adds a row",
            )
        settings = self._backbone(file, document)
        code = [name for name in document.files if name.endswith(".py")]
        if code and not settings.trust_remote_code:
            raise CacheError(
                f"{file.path.name} was made with code of its model {settings.model} ({', '.join(code)}), "
                "which only you can let run, whatever the record says",
                hint="if you trust whoever wrote that code: --trust-remote-code",
            )
        settings = replace(settings, trust_remote_code=bool(code))
        files = find_model(settings)
        _check_same(file, files.name, {"files": document.files}, {"files": files.hashes_of(file.views)})
        encoder = Encoder.load(settings, document_settings(document, file.views), files)
        _check_same(file, files.name, document.to_json(), encoder.document.to_json())
        return encoder

    def _backbone(self, file: CacheFile, document: EncoderDocument) -> BackboneSettings:
        """The backbone as the record names it, else as the settings do; its dtype is the file's.

        Settings that trust the code of the model which they name do so at the revision which they name.
        """
        asked, made = self.settings.backbone, file.record.made
        asked = replace(asked, dtype=document.dtype.compute)
        if self.model is not None:
            return replace(asked, model=self.model)
        trusts_own = asked.trust_remote_code and not self.trust_any
        if made.model is None or (trusts_own and made.model == asked.model):
            return asked
        hub = made.hub or BackboneSettings().hub
        trust = asked.trust_remote_code and self.trust_any
        return replace(asked, model=made.model, revision=made.commit, hub=hub, trust_remote_code=trust)


def compare(view: str, cached: np.ndarray, fresh: np.ndarray) -> Drift:
    """The drift between cached and fresh features, both `[n, D]` of any float dtype.

    Two rows of zeros agree (cosine 1); a row of zeros and another do not (cosine 0).
    """
    a, b = cached.astype(np.float64), fresh.astype(np.float64)
    lengths_a, lengths_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    apart = np.linalg.norm(a - b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(apart == 0, 0.0, apart / lengths_a)
        cosine = np.einsum("nd,nd->n", a, b) / (lengths_a * lengths_b)
    nothing = (lengths_a == 0) | (lengths_b == 0)
    cosine = np.where(nothing, np.where(apart == 0, 1.0, 0.0), cosine)
    return Drift(view, len(a), float(np.abs(a - b).max()), float(relative.max()), float(cosine.min()))


def _texts(
    file: CacheFile, split: Split, order: np.ndarray, count: int, on_progress: OnProgress
) -> tuple[np.ndarray, list[str], list[str] | None]:
    """The first `count` rows of `order` that the source has: int64 `[n]`, with their texts and pairs."""
    hashes = np.asarray(file.sealed.column("row_hash"))
    candidates = order[: CANDIDATES + 8 * count]
    places = {hashes[row].tobytes(): -1 for row in candidates}
    done = 0
    for texts, pairs in split.batches():
        for number, one in enumerate(row_hashes(texts, pairs)):
            if one.tobytes() in places:
                places[one.tobytes()] = done + number
        done += len(texts)
        on_progress(Progress("find rows", done=done, total=len(split)))
    rows = [int(row) for row in candidates if places[hashes[row].tobytes()] >= 0][:count]
    if not rows:
        raise CacheError(
            f"no row of {file.path.name} is in the {split.name} split of the data source",
            hint="name the data the file was made from: --dataset NAME or --data-files train=F,...",
        )
    found = np.array([places[hashes[row].tobytes()] for row in rows], dtype=np.int64)
    return np.array(rows, dtype=np.int64), split.texts(found), split.pairs(found)


def _check_same(file: CacheFile, name: str, cached: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found: Sequence[object] = differences(cached, now)
    if found:
        raise CacheError(
            f"{file.path.name} was not made as {name} would make it now: " + "; ".join(map(str, found)),
            hint="give the backbone it was made with: --model FOLDER [--revision COMMIT]",
        )
