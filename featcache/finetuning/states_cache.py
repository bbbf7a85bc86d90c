"""The states cache: what the blocks below the cut make of every token, packed, on disk.

A sealed file like that of features, in the folder `states` beside them: `values` of all tokens end to end,
`offsets` of the texts in them, their `row_hash` and whether they were `truncated`. bfloat16, which HDF5
does not have, is stored as its bytes. The file is named by the fingerprint of encoder document, cut and
rows; labels are no part of it. Unfinished work lies in committed blocks, as that of an extraction.
"""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featcache.backbone.memory_limit import smaller_batches
from featcache.cache.catalog import STATES
from featcache.cache.sealed_file import Column, SealedFile, write_sealed
from featcache.cache.staging import Staging
from featcache.data.split import Split
from featcache.errors import BackboneError, CorruptCache, UsageError
from featcache.extraction.encode_blocks import naming_rows
from featcache.finetuning.suffix import StateBatch
from featcache.fingerprint import fingerprint, row_chain
from featcache.system.durable import remove_temporaries, require_space, write_file
from featcache.system.lock import locked
from featcache.system.units import size_text

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

BLOCK_TOKENS = 1 << 15
TOKENIZE_ROWS = 1024
RELEASE_BYTES = 4 << 20  # read before pages are given back; the system maps several times as many
HINT = "remove it; it is then made again"


@dataclass(frozen=True)
class Step:
    """How far the states of a split are; `text`: something to say instead."""

    split: str
    done: int = 0
    total: int = 0
    text: str = ""


class StatesFile:
    """A sealed states file, checked and memory-mapped.

    Raises:
        CorruptCache: damaged bytes, or a file that does not hold states.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = SealedFile(path)
        try:
            document = self.sealed.meta["document"]
            self.cut, self.storage = int(document["cut"]), str(document["storage"])
            self.offsets = np.asarray(self.sealed.column("offsets"))
            self.row_hash = np.asarray(self.sealed.column("row_hash"))
            self._values = self.sealed.column("values")
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCache(f"{path} holds no states", hint=HINT) from error
        self.lengths: np.ndarray = np.diff(self.offsets)
        if len(self.offsets) != len(self.row_hash) + 1 or self.offsets[-1] != len(self._values):
            raise CorruptCache(f"{path}: its parts do not fit each other", hint=HINT)
        self._read = 0
        self._release()

    @property
    def fingerprint(self) -> str:
        return str(self.sealed.meta["fingerprint"])

    @property
    def rows(self) -> int:
        return len(self.row_hash)

    @cached_property
    def truncated(self) -> int:
        """How many texts were cut at the longest length."""
        return int(np.asarray(self.sealed.column("truncated")).sum())

    @property
    def nbytes(self) -> int:
        return self.sealed.nbytes

    @property
    def seconds(self) -> float:
        """That making it took; 0 where its record is lost."""
        try:
            record = json.loads(self.path.with_suffix(".json").read_bytes())
            return float(record["seconds"]) if record["fingerprint"] == self.fingerprint else 0.0
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def batch(self, rows: np.ndarray) -> StateBatch:
        """The states of some rows, end to end in that order."""
        pieces = [self._values[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        values = np.concatenate(pieces)
        self._read += values.nbytes
        if self._read > RELEASE_BYTES:
            self._release()
        states = torch.from_numpy(values)
        states = states.view(torch.bfloat16) if self.storage == "bfloat16" else states
        return StateBatch(states, self.lengths[rows])

    def _release(self) -> None:
        """Give the pages of the map back, so that memory does not grow with the rows that were read."""
        self._read = 0
        base = self._values.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def states_path(folder: Path, split: str, document: dict[str, Any]) -> Path:
    """Where the states of a split lie; `folder`: that of the features of the same data and model."""
    return folder / STATES / f"{split}-cut{document['cut']}-{fingerprint(document)[:12]}.h5"


def states_document(encoder: Encoder, cut: int, hashes: np.ndarray) -> dict[str, Any]:
    """All that the states of some rows depend on.

    Args:
        hashes: row hashes uint8 `[N, 32]`, in file order.
    """
    compute = encoder.backbone.dtype_name
    return {
        "kind": "states",
        "encoder": encoder.document.to_json(),
        "cut": cut,
        "storage": "bfloat16" if compute == "bfloat16" else encoder.storage.name,
        "rows": {"count": len(hashes), "chain": row_chain(hashes)},
    }


def cache_states(
    split: Split,
    hashes: np.ndarray,
    encoder: Encoder,
    cut: int,
    folder: Path,
    report: Callable[[Step], None] = lambda _: None,
    *,
    wait: float = 0.0,
) -> StatesFile:
    """The states of a split before block `cut`, from the cache or made now.

    Args:
        hashes: row hashes of the split, uint8 `[N, 32]`.
        folder: of the features of the same data and model.
        wait: seconds to wait for another process that makes the same file.

    Raises:
        CacheError: the disk cannot hold them (said before anything is computed), or another process
            makes the same file.
        BackboneError: a text that cannot be encoded; a text that does not fit in memory.
        UsageError: `--long-text chunks`.
    """
    if encoder.long_text == "chunks":
        raise UsageError(
            "blocks cannot be trained on windows of long texts",
            hint="use --long-text truncate or head-tail, or --train head",
        )
    document = states_document(encoder, cut, hashes)
    path = states_path(folder, split.name, document)
    with locked(path, wait, lambda text: report(Step(split.name, text=text))):
        if not path.exists():
            began = time.perf_counter()
            _Making(split, hashes, encoder, document, path, report).run()
            note = {"fingerprint": fingerprint(document), "seconds": time.perf_counter() - began}
            write_file(path.with_suffix(".json"), json.dumps(note, sort_keys=True).encode())
    return StatesFile(path)


class _Making:
    """The making of one states file."""

    def __init__(
        self,
        split: Split,
        hashes: np.ndarray,
        encoder: Encoder,
        document: dict[str, Any],
        path: Path,
        report: Callable[[Step], None],
    ) -> None:
        self.split, self.hashes, self.encoder = split, hashes, encoder
        self.document, self.path, self.report = document, path, report
        self.storage = document["storage"]
        self.width = int(encoder.backbone.model.config.hidden_size)
        self.itemsize = 2 if self.storage == "bfloat16" else np.dtype(self.storage).itemsize
        self.budget = encoder.batch_tokens

    def run(self) -> None:
        lengths, truncated = self._lengths()
        blocks = _blocks(lengths)
        self._check_space(int(lengths.sum()))
        remove_temporaries(self.path)
        plan = {"document": fingerprint(self.document), "block_tokens": BLOCK_TOKENS, "batch": self.budget}
        staging = Staging(self.path.with_suffix(".partial"), plan)
        done = staging.committed()
        total = len(lengths)
        for number, rows in enumerate(blocks):
            if number not in done:
                staging.commit(number, {"values": self._encode(rows)})
            self.report(Step(self.split.name, int(rows[-1]) + 1, total))
        self._seal(staging, len(blocks), lengths, truncated)
        staging.discard()

    def _lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each text, int64 `[N]`, and which were cut, uint8 `[N]`; the ids are not kept."""
        lengths, truncated = [], []
        for start in range(0, len(self.split), TOKENIZE_ROWS):
            rows = np.arange(start, min(start + TOKENIZE_ROWS, len(self.split)))
            with naming_rows(self.split, rows):
                tokens = self.encoder.tokenize(self.split.texts(rows), self.split.pairs(rows))
            lengths.append(tokens.lengths)
            truncated.append(tokens.truncated.astype(np.uint8))
        return np.concatenate(lengths), np.concatenate(truncated)

    def _check_space(self, tokens: int) -> None:
        """Say what they take; refuse what the disk cannot hold: the blocks, then the file beside them."""
        needed = tokens * self.width * self.itemsize + 48 * len(self.split) + (1 << 20)
        what = f"states of {self.split.name} before block {self.document['cut']}"
        require_space(self.path.parent, 2 * needed, what)
        text = f"{what}: {tokens:,} tokens, {size_text(needed)} on disk (twice that while they are made)"
        self.report(Step(self.split.name, text=text))

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        """The states of neighbouring rows in their order: `[T, H]`, or uint8 `[T, 2H]` for bfloat16."""
        cut, backbone = self.document["cut"], self.encoder.backbone
        with naming_rows(self.split, rows):
            tokens = self.encoder.tokenize(self.split.texts(rows), self.split.pairs(rows))
        ends = np.cumsum(tokens.lengths)
        dtype = getattr(torch, self.storage)
        made = torch.empty(int(ends[-1]), self.width, dtype=dtype)

        def encode(batch: np.ndarray) -> None:
            states = backbone.states(tokens.batch(batch), [cut])[0][cut].to("cpu", dtype)
            if not bool(torch.isfinite(states).all()):
                raise BackboneError(
                    f"states of {self.split.name} are NaN, infinite or too large for {self.storage}",
                    hint="try --storage float32, or --dtype float32",
                )
            parts = states.split(tokens.lengths[batch].tolist())
            for row, part in zip(batch, parts, strict=True):
                made[int(ends[row] - tokens.lengths[row]) : int(ends[row])] = part

        self.budget = smaller_batches(tokens.lengths, self.budget, encode)
        return (made.view(torch.uint8) if self.storage == "bfloat16" else made).numpy()

    def _seal(self, staging: Staging, blocks: int, lengths: np.ndarray, truncated: np.ndarray) -> None:
        raw = self.storage == "bfloat16"
        shape = (int(lengths.sum()), self.width * 2 if raw else self.width)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = (staging.read(number)["values"] for number in range(blocks))
        meta = {
            "format": "featcache states",
            "fingerprint": fingerprint(self.document),
            "split": self.split.name,
            "document": self.document,
        }
        columns = [
            Column("values", shape, "uint8" if raw else self.storage, values),
            Column("offsets", offsets.shape, "int64", [offsets]),
            Column("row_hash", self.hashes.shape, "uint8", [self.hashes]),
            Column("truncated", truncated.shape, "uint8", [truncated]),
        ]
        write_sealed(self.path, meta, columns)


def _blocks(lengths: np.ndarray) -> list[np.ndarray]:
    """Neighbouring rows in blocks of about BLOCK_TOKENS tokens, at least a row each."""
    number = (np.cumsum(lengths) - lengths) // BLOCK_TOKENS
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(number)) + 1) if len(lengths) else []
