"""What the actors of an extraction are told, and what they do with it, on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xxhash

from featcache.cache.staging import Staging, read_plan
from featcache.cluster.block_store import put_blocks
from featcache.cluster.cluster import Actor, Crew, answered, read_answer
from featcache.data.split import Split, load_splits
from featcache.errors import BackboneError, CacheError, SourceError
from featcache.extraction.encode_blocks import Claim, Unclaimed, encode_blocks
from featcache.extraction.make_file import Making
from featcache.extraction.partition import Division
from featcache.fingerprint import EncoderDocument, differences, row_hashes
from featcache.settings import Settings
from featcache.system.stores import opened

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder


@dataclass(frozen=True)
class EncodeOrder:
    """All that an actor is told.

    Attributes:
        settings: with device, compute type and token budget as the first actor resolved them.
        rows: of the split.
        document: the encoder document that the actor's own must equal.
        folder: of the blocks, and `plan`, which must lie there.
        to_encode, starts: see `Division`.
        digests: uint64 `[B]`, over the row hashes of each block.
        threads: of torch.
        store: URL of a folder that blocks are sent to, where `folder` is the driver's alone.
    """

    settings: Settings
    split: str
    rows: int
    document: EncoderDocument
    folder: Path
    plan: Mapping[str, Any]
    to_encode: np.ndarray
    starts: np.ndarray
    digests: np.ndarray
    threads: int
    store: str | None

    @property
    def division(self) -> Division:
        return Division([], np.zeros(0, np.int64), self.to_encode, self.starts)


def order_of(
    settings: Settings, making: Making, staging: Staging, division: Division, threads: int, store: str | None
) -> EncodeOrder:
    encoder = making.encoder
    backbone = replace(
        settings.backbone,
        device=str(encoder.backbone.device).partition(":")[0],
        dtype=encoder.backbone.dtype_name,
        batch_tokens=encoder.batch_tokens,
    )
    return EncodeOrder(
        replace(settings, backbone=backbone),
        making.split.name,
        len(making.split),
        encoder.document,
        staging.folder,
        read_plan(staging.folder) or {},
        division.to_encode,
        division.starts,
        np.array([digest(making.hashes[division.rows(n)]) for n in range(division.blocks)], np.uint64),
        threads,
        store,
    )


def digest(hashes: np.ndarray) -> int:
    """64 bits over the row hashes of some rows, uint8 `[N, 32]`."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(hashes).tobytes())


# -- on the nodes -----------------------------------------------------------------------------------


def described(settings: Settings, crew: Crew) -> SimpleNamespace:
    """The encoder as it is on the cluster, loaded there for as long as that takes."""
    import ray

    @ray.remote(num_cpus=crew.cpus, num_gpus=crew.gpus, max_retries=2)
    def ask() -> bytes:
        return answered(lambda: description(_load_encoder(settings)))

    answer = ask.remote()
    import ray.data  # takes a second, and is needed next

    try:
        return cast(SimpleNamespace, read_answer(ray.get(answer)))
    except ray.exceptions.RayError as error:
        raise BackboneError(
            f"the model cannot be loaded on the Ray cluster: {str(error).splitlines()[0]}",
            hint="was memory short? fewer --workers have more each",
        ) from error


def _load_encoder(settings: Settings) -> Encoder:
    from featcache.backbone.encoder import Encoder

    return Encoder.load(settings.backbone, settings.features)


def description(encoder: Encoder) -> SimpleNamespace:
    """What the making of a file asks of an encoder, as a value that can be sent."""
    backbone = encoder.backbone
    names = ("num_blocks", "dtype_name", "packing", "packing_note", "fused")
    width = int(getattr(backbone.model.config, "hidden_size", 1024))
    return SimpleNamespace(
        backbone=SimpleNamespace(
            **{name: getattr(backbone, name) for name in names},
            device=str(backbone.device),
            model=SimpleNamespace(config=SimpleNamespace(hidden_size=width)),
        ),
        views=encoder.views,
        document=encoder.document,
        notes=encoder.notes,
        batch_tokens=encoder.batch_tokens,
        storage=encoder.storage,
    )


class Encoding(Actor[EncodeOrder]):
    """Encodes blocks; its model and its texts are loaded with the first."""

    loaded: tuple[Encoder, Split, Staging] | None = None
    own: TemporaryDirectory[str] | None = None

    def work(self, numbers: list[int]) -> tuple[int, int]:
        """Texts and tokens of these blocks, which are committed."""
        if self.loaded is None:
            self.loaded = self._load()
        encoder, split, staging = self.loaded
        division, texts, tokens = self.order.division, 0, 0

        def step(more_texts: int, more_tokens: int) -> None:
            nonlocal texts, tokens
            texts, tokens = texts + more_texts, tokens + more_tokens

        for number in numbers:
            self._check_rows(split, division.rows(number), number)
        # Nobody else is given these blocks; a task that was taken for lost commits the same bytes.
        claims = [Claim(number, Unclaimed()) for number in numbers]
        encode_blocks(encoder, split, division, staging, claims, step, None, 1)
        if self.order.store:
            put_blocks(staging, opened(self.order.store))
        return texts, tokens

    def _load(self) -> tuple[Encoder, Split, Staging]:
        import torch

        order = self.order
        torch.set_num_threads(order.threads)
        split = load_splits(order.settings.data, [order.split], seed=order.settings.seed)[order.split]
        encoder = _load_encoder(order.settings)
        found = differences(order.document.to_json(), encoder.document.to_json())
        if found:
            raise BackboneError(
                "the encoder is another one than on the first node: " + "; ".join(map(str, found)),
                hint="every node needs the same model, and machines of one kind",
            )
        encoder.backbone.prepare(order.rows)
        return encoder, split, self._staging()

    def _staging(self) -> Staging:
        """Where blocks are committed: the folder all share, or one of this actor."""
        order = self.order
        if order.store:
            self.own = TemporaryDirectory(prefix="featcache-")
            return Staging(Path(self.own.name), order.plan)
        if read_plan(order.folder) != order.plan:
            raise CacheError(
                f"the unfinished blocks in {order.folder} are not there",
                hint="--cache-dir is a folder that all nodes of the cluster share, or a URL",
            )
        return Staging(order.folder, order.plan, joined=True)

    def _check_rows(self, split: Split, rows: np.ndarray, number: int) -> None:
        """Refuse to encode other texts than those the driver saw."""
        there = len(split) == self.order.rows
        if (
            not there
            or digest(row_hashes(split.texts(rows), split.pairs(rows))) != self.order.digests[number]
        ):
            raise SourceError(
                f"the rows of {self.order.split} are not those that the driver read",
                hint="every node reads the same: files that all share, or the hub at one --dataset-revision",
            )
