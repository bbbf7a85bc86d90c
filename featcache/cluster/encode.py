"""Encode commit units on the nodes of a Ray cluster: the order for the actors, and the actors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from featcache.cache.staging import Staging, read_plan, unit_number
from featcache.cluster.cluster import Actor, ActorPool, answered, read_answer
from featcache.data.split import Split, load_splits
from featcache.errors import BackboneError, CacheError, SourceError
from featcache.extraction.encode_units import Claim, LocalUnitEncoder, UnitWork
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.partition import Partition, PartitionPlan
from featcache.fingerprint import EncoderDocument, differences, row_hashes
from featcache.settings import Settings
from featcache.system.durable import disk
from featcache.system.stores import Remote, opened

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder


@dataclass(frozen=True)
class EncodeOrder:
    """Everything that an actor needs.

    Attributes:
        settings: with device, compute type and token budget as the first actor resolved them.
        rows: the number of rows of the split.
        document: the encoder document; that of the actor must be equal.
        folder: the folder of the commit units, which has the plan `plan`.
        to_encode, starts: see `Partition`.
        digests: uint64 `[U]`, of the row hashes of each unit.
        threads: threads of torch.
        store: URL of the folder that units are sent to if only the driver has `folder`, else None.
    """

    settings: Settings
    split: str
    rows: int
    document: EncoderDocument
    folder: Path
    plan: PartitionPlan | None
    to_encode: np.ndarray
    starts: np.ndarray
    digests: np.ndarray
    threads: int
    store: str | None

    @classmethod
    def of(
        cls, settings: Settings, spec: EncoderSpec, work: UnitWork, threads: int, store: str | None
    ) -> EncodeOrder:
        backbone = replace(
            settings.backbone,
            device=spec.device.partition(":")[0],
            dtype=spec.dtype,
            batch_tokens=spec.batch_tokens,
        )
        partition = work.partition
        digests = [digest(work.hashes[partition.rows(number)]) for number in range(partition.units)]
        return cls(
            settings=replace(settings, backbone=backbone),
            split=work.split.name,
            rows=len(work.split),
            document=spec.document,
            folder=work.staging.folder,
            plan=read_plan(work.staging.folder, PartitionPlan),
            to_encode=partition.to_encode,
            starts=partition.starts,
            digests=np.array(digests, np.uint64),
            threads=threads,
            store=store,
        )

    @property
    def partition(self) -> Partition:
        return Partition([], np.zeros(0, np.int64), self.to_encode, self.starts)


def digest(hashes: np.ndarray) -> int:
    """A hash of 64 bits of the row hashes uint8 `[N, 32]`."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(hashes).tobytes())


# -- commit units in a store ------------------------------------------------------------------------


def put_units(staging: Staging, store: Remote) -> None:
    """Move the committed units of this machine to the folder `store`.

    Raises:
        CacheError: the store refuses or cannot be reached; units that were not sent stay.
    """
    for path in sorted(staging.folder.glob("block-*.safetensors")):
        store.child(path.name).put(path, replace=True)
        disk.unlink(path)


def take_units(store: Remote, staging: Staging) -> None:
    """Move the commit units in the folder `store` into that of this machine; damaged units are dropped.

    Raises:
        CacheError: the store cannot be reached, or the disk is full.
    """
    for name in sorted(store.listing()):
        if unit_number(name) is not None:
            staging.take(name, store.child(name).read())
            store.child(name).remove()


# -- on the nodes -----------------------------------------------------------------------------------


def encoder_spec_on(pool: ActorPool, settings: Settings) -> EncoderSpec:
    """The description of the encoder on the cluster, where it is loaded for that.

    Raises:
        BackboneError: the model cannot be loaded there.
    """
    import ray

    @ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=2)
    def ask() -> bytes:
        return answered(lambda: EncoderSpec.of(_load_encoder(settings), settings.features.views))

    answer = ask.remote()
    import ray.data  # takes a second; meanwhile the model is loaded

    try:
        spec: EncoderSpec = read_answer(ray.get(answer))
        return spec
    except ray.exceptions.RayError as error:
        raise BackboneError(
            f"the model cannot be loaded on the Ray cluster: {str(error).splitlines()[0]}",
            hint="was memory short? with fewer --workers each has more",
        ) from error


def encoder_spec_here(settings: Settings) -> EncoderSpec | None:
    """The description of the encoder, which is loaded here for that; None if it would take a GPU.

    Raises:
        BackboneError: the model cannot be loaded.
    """
    from featcache.backbone.load import resolve_device

    if resolve_device(settings.backbone.device).type != "cpu":
        return None
    return EncoderSpec.of(_load_encoder(settings), settings.features.views)


def _load_encoder(settings: Settings) -> Encoder:
    from featcache.backbone.encoder import Encoder

    return Encoder.load(settings.backbone, settings.features)


class EncodingActor(Actor[EncodeOrder]):
    """Encodes commit units; its model and its texts are loaded with the first."""

    loaded: tuple[LocalUnitEncoder, Split, Staging] | None = None
    own: TemporaryDirectory[str] | None = None

    def work(self, numbers: list[int]) -> tuple[int, int]:
        """Encode and commit these units; returns the number of their texts and tokens."""
        if self.loaded is None:
            self.loaded = self._load()
        encoder, split, staging = self.loaded
        texts = tokens = 0

        def on_batch(more_texts: int, more_tokens: int, _: float | None) -> None:
            nonlocal texts, tokens
            texts, tokens = texts + more_texts, tokens + more_tokens

        partition, hashes = self.order.partition, np.zeros((len(split), 32), np.uint8)
        for number in numbers:
            rows = partition.rows(number)
            hashes[rows] = self._hash_rows(split, rows, number)
        encoder.encode(
            UnitWork(
                split=split,
                hashes=hashes,
                partition=partition,
                staging=staging,
                units=numbers,
                # No other actor has these units; an actor wrongly taken for lost commits the same bytes.
                claims=map(Claim, numbers),
                ahead=1,
                on_batch=on_batch,
            )
        )
        if self.order.store:
            put_units(staging, opened(self.order.store))
        return texts, tokens

    def _load(self) -> tuple[LocalUnitEncoder, Split, Staging]:
        import torch

        order, settings = self.order, self.order.settings
        torch.set_num_threads(order.threads)
        split = load_splits(settings.data, [order.split], seed=settings.seed)[order.split]
        encoder = _load_encoder(settings)
        found = differences(order.document.to_json(), encoder.document.to_json())
        if found:
            raise BackboneError(
                "the encoder differs from that on the first node: " + "; ".join(map(str, found)),
                hint="every node needs the same model, and machines of one kind",
            )
        spec = EncoderSpec.of(encoder, settings.features.views)
        return LocalUnitEncoder(spec, encoder), split, self._staging()

    def _staging(self) -> Staging:
        """The folder where units are committed: the shared one, or one of this actor."""
        order = self.order
        if order.store:
            self.own = TemporaryDirectory(prefix="featcache-")
            return Staging(Path(self.own.name), order.plan)
        if order.plan is None or read_plan(order.folder, PartitionPlan) != order.plan:
            raise CacheError(
                f"this node does not see the unfinished units in {order.folder}",
                hint="--cache-dir is a folder that all nodes of the cluster share, or a URL",
            )
        return Staging(order.folder, order.plan, joined=True)

    def _hash_rows(self, split: Split, rows: np.ndarray, number: int) -> np.ndarray:
        """The hashes of some rows; SourceError if the texts differ from those that the driver read."""
        if len(split) == self.order.rows:
            found = row_hashes(split.texts(rows), split.pairs(rows))
            if digest(found) == self.order.digests[number]:
                return found
        raise SourceError(
            f"the rows of {self.order.split} are not those that the driver read",
            hint="every node must read the same data: shared files, or the hub at one --dataset-revision",
        )
