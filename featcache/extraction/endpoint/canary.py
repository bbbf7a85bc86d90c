"""Sixteen fixed texts that show whether an endpoint still gives the vectors that are in the cache.

A server may change the model behind a name without a word. So these texts are encoded in each session, and
compared with their vectors in the cache: a sealed file as any other, `endpoint/MODEL/canary-FINGERPRINT.h5`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from featcache.backbone.endpoint.encoder import EndpointEncoder
from featcache.backbone.endpoint.model import VECTOR
from featcache.backbone.tokens.encoded import Encoded
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, view_column
from featcache.cache.description import FileDescription
from featcache.cache.sealed_writer import Column
from featcache.cache.shards import parse_shard_size
from featcache.errors import BackboneError, BadRow
from featcache.extraction.drift import compare
from featcache.fingerprint import CacheDocument, EncoderDocument, LabelsPart, RowsPart, row_hashes
from featcache.settings import PathSettings
from featcache.system.lock import locked

TEXTS = (
    "酒店的位置很好，离地铁站只有五分钟的路。",
    "房间太小，隔音也差，晚上根本睡不着。",
    "这本书我读了三遍，每一遍都有新的收获。",
    "快递很慢，包装破了，客服也不回复。",
    "今天北京多云转晴，最高气温二十三度。",
    "公司发布了第三季度财报，净利润同比增长百分之十二。",
    "The screen is sharp, but the battery does not last a day.",
    "I would not buy this again, and I would not give it away either.",
    "The committee will meet on Thursday to vote on the new budget.",
    "A simple recipe: flour, water, salt, and a little patience.",
    "How do I reset my password if I no longer have my phone?",
    "Scientists measured the temperature of the lake for forty years.",
    "iPhone 15 的 camera 很不错，就是 price 有点高。",
    "def add(a, b): return a + b",
    "2024-05-17 08:31:02 ERROR disk /dev/sda1 is full (98.7 %)",
    "好",
)
CANARY = "canary"  # the split of its file
FOLDER = "endpoint"  # in the place of the name of a dataset
LEAST_COSINE = 0.999  # servers that batch do not give the same bits twice


@dataclass(frozen=True)
class Canary:
    """The canary of one endpoint in one cache."""

    cache: Cache
    encoder: EndpointEncoder

    def stored(self) -> CacheFile | None:
        """The vectors of earlier sessions; None where there was none."""
        asked = self.encoder.model.document(self.encoder.features, 0)
        for file in self.cache.files(CANARY):
            if _without_width(file.document.encoder) == asked and file.document.rows == RowsPart.of(
                self._hashes
            ):
                return file
        return None

    def check(self, stored: CacheFile | None) -> None:
        """Encode the canary, and compare it with `stored`; kept for the next session where there is none.

        Raises:
            BackboneError: the endpoint gives other vectors than those in the cache, or none.
        """
        fresh = self._encode()
        if stored is None:
            self._store(fresh)
            return
        (view,) = stored.views
        require_same(self.encoder.name, stored.sealed.column(view_column(view)), fresh.views[view])

    @property
    def view(self) -> str:
        """The view of what the server sends, which the other views are made of."""
        asked = self.encoder.views[0].dimensions
        return VECTOR if asked is None else f"{VECTOR}-dimensions{asked}"

    @property
    def _hashes(self) -> np.ndarray:
        return row_hashes(TEXTS)

    def _encode(self) -> Encoded:
        encoder = self.encoder
        try:
            return encoder.with_view(self.view)(TEXTS)
        except BadRow as error:
            raise BackboneError(
                f"{encoder.model.address} refuses the text {TEXTS[error.row]!r}: {error.what}",
                hint=f"does the server have {encoder.name}, and is it a model for embeddings?",
            ) from None

    def _store(self, fresh: Encoded) -> None:
        """Seal the canary, unless another process did so meanwhile."""
        labels, hashes = np.full(len(TEXTS), -1, np.int64), self._hashes
        encoder = self.encoder.document
        document = CacheDocument(encoder, (self.view,), RowsPart.of(hashes), LabelsPart.of(labels, ()))
        path = self.cache.path(FOLDER, self.encoder.name, CANARY, document.fingerprint)
        arrays = {
            view_column(self.view): fresh.views[self.view],
            "labels": labels,
            "row_hash": hashes,
            "n_tokens": fresh.n_tokens,
            "truncated": fresh.truncated.astype(np.uint8),
        }

        def columns(rows: slice) -> list[Column]:
            parts = {name: values[rows] for name, values in arrays.items()}
            return [Column(name, part.shape, part.dtype.name, [part]) for name, part in parts.items()]

        description = FileDescription(
            format="featcache", fingerprint=document.fingerprint, split=CANARY,
            model=self.encoder.name, document=document.to_json(),
        )  # fmt: skip
        with locked(path, 60.0):
            if not path.exists():
                size = parse_shard_size(PathSettings().shard_size)
                self.cache.write(path, description, len(TEXTS), columns, size)
        self.cache.push(path)


def require_same(name: str, cached: np.ndarray, fresh: np.ndarray) -> None:
    """Refuse an endpoint whose canary is not the one of the cache.

    Raises:
        BackboneError: says how far the vectors are apart.
    """
    found = compare(VECTOR, cached, fresh)
    if not found.cosine >= LEAST_COSINE:  # NaN is not
        raise BackboneError(
            f"{name} no longer gives the vectors that are in the cache: of {len(TEXTS)} fixed texts the most "
            f"different one has a cosine of {found.cosine:.4f} with its vector of before ({LEAST_COSINE} is "
            f"needed; the largest difference of a number is {found.absolute:.2g}); nothing is added to them",
            hint="if another model is meant, declare it: --revision NAME begins features of its own; "
            "otherwise let the server have the model that it had",
        )


def _without_width(document: EncoderDocument) -> EncoderDocument:
    part = document.endpoint
    return document if part is None else replace(document, endpoint=replace(part, width=0))
