"""The states cache: the states of every token at a cut, packed, on disk.

A sealed file like that of features, in the folder `states` beside them: `values` of all tokens end to end,
`offsets` of the texts in them, their `row_hash` and whether they were `truncated`. bfloat16, which HDF5
does not have, is stored as its bytes. The file is named by the fingerprint of encoder document, cut and
rows; labels do not count. One pass makes the files of several cuts. Unfinished work is kept in commit units,
as that of an extraction.
"""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from featcache.backbone.memory_limit import smaller_batches
from featcache.backbone.packing import StateBatch
from featcache.backbone.tokens.unknown_tokens import UnknownTokens
from featcache.cache.catalog import STATES
from featcache.cache.description import FileDescription
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.cache.staging import Staging, unfinished_work
from featcache.data.split import Split
from featcache.errors import BackboneError, CorruptCache
from featcache.extraction.encode_units import Claim, commit_units, tokenize_rows
from featcache.fingerprint import RowsPart, StatesDocument
from featcache.plain_file import read_plain
from featcache.system.documents import read_document
from featcache.system.durable import remove_temporaries, require_space, write_file
from featcache.system.lock import locked
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.units import size_text

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.tokens.tokenization import Tokens

COMMIT_TOKENS = 1 << 15
TOKENIZE_ROWS = 1024
RELEASE_BYTES = 4 << 20  # read before pages are released; the system maps several times as many
YEARS = 1e9  # seconds; no file takes longer
HINT = "remove it; it is then made again"


@dataclass(frozen=True)
class StatesRecord:
    """The record beside a states file: how long it took to make it, and what the vocabulary does not have.

    Attributes:
        unknown_tokens: share of the tokens of all texts; None where it is not known.
    """

    fingerprint: str
    seconds: float
    unknown_tokens: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < YEARS:
            raise ValueError(f"seconds: {self.seconds}")


class StatesFile:
    """A sealed states file, checked and memory-mapped.

    Raises:
        CorruptCache: damaged bytes, or a file that does not hold states.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = SealedFile(path)
        self.fingerprint = self.sealed.description.fingerprint
        try:
            self.storage = StatesDocument.from_json(self.sealed.description.document).storage
            self.offsets = np.asarray(self.sealed.column("offsets"))
            self.row_hash = np.asarray(self.sealed.column("row_hash"))
            self._map = self.sealed.column("values")
        except (KeyError, ValueError) as error:
            raise CorruptCache(f"{path} holds no states: {error}", hint=HINT) from error
        self.lengths: np.ndarray = np.diff(self.offsets)
        if len(self.offsets) != len(self.row_hash) + 1 or self.offsets[-1] != len(self._map):
            raise CorruptCache(f"{path}: its parts do not fit each other", hint=HINT)
        self._values = self._map.view(np.ndarray)  # slices of a `memmap` take longer
        self._read = 0
        self._release()

    @property
    def dtype(self) -> torch.dtype:
        """Of the states."""
        found: torch.dtype = getattr(torch, self.storage)
        return found

    @property
    def rows(self) -> int:
        return len(self.row_hash)

    @cached_property
    def truncated(self) -> int:
        """How many texts were truncated at the longest length."""
        return int(np.asarray(self.sealed.column("truncated")).sum())

    @property
    def nbytes(self) -> int:
        return self.sealed.nbytes

    @cached_property
    def record(self) -> StatesRecord:
        """How the file was made; where its record is lost, in 0 seconds."""
        unknown = StatesRecord(self.fingerprint, 0.0)
        try:
            content = read_plain(self.path.with_suffix(".json"))
            record = read_document(StatesRecord, content, "the record", ValueError)
        except (OSError, ValueError):
            return unknown
        return record if record.fingerprint == self.fingerprint else unknown

    def batch(self, rows: np.ndarray) -> StateBatch:
        """The states of some rows, end to end in that order."""
        width = self._values.shape[1] * self._values.itemsize // self.dtype.itemsize
        states = torch.empty(int(self.lengths[rows].sum()), width, dtype=self.dtype)
        self.read(rows, states)
        return StateBatch(states, self.lengths[rows])

    def read(self, rows: np.ndarray, into: torch.Tensor) -> None:
        """Copy the states of some rows, end to end in that order, into `[T, H]` of `dtype`."""
        into = into.view(torch.uint8) if self.storage == "bfloat16" else into
        begins, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        pieces = [self._values[begin:end] for begin, end in zip(begins, ends, strict=True)]
        np.concatenate(pieces, out=into.numpy())
        self._read += into.nbytes
        if self._read > RELEASE_BYTES:
            self._release()

    def _release(self) -> None:
        """Release the pages of the memory map, so that memory does not grow with the rows that were read."""
        self._read = 0
        base = self._map.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def states_document(encoder: Encoder, cut: int, hashes: np.ndarray) -> StatesDocument:
    """Of the rows with these hashes, uint8 `[N, 32]`, in file order."""
    bfloat16 = encoder.backbone.dtype_name == "bfloat16"
    storage = "bfloat16" if bfloat16 else encoder.storage.name
    return StatesDocument(encoder=encoder.document, cut=cut, storage=storage, rows=RowsPart.of(hashes))


@dataclass(frozen=True)
class StatesPlan:
    """What identifies the commit units of a states file: units of another plan cannot be used.

    Attributes:
        document: fingerprint of the states document; of several cuts all, joined by commas.
        block_tokens: about how many tokens a commit unit has.
        batch: token budget of a batch.
    """

    document: str
    block_tokens: int
    batch: int


def states_path(folder: Path, split: str, document: StatesDocument) -> Path:
    """Where the states of a split are; `folder` has the features of the same data and model."""
    return folder / STATES / f"{split}-cut{document.cut}-{document.fingerprint[:12]}.h5"


def cache_states(
    split: Split,
    hashes: np.ndarray,
    encoder: Encoder,
    cuts: Sequence[int],
    folder: Path,
    on_progress: OnProgress = ignore,
    *,
    wait: float = 0.0,
) -> list[StatesFile]:
    """The states of a split before each of some blocks, from the cache or made now, in one pass.

    Args:
        hashes: row hashes of the split, uint8 `[N, 32]`.
        encoder: one that does not encode long texts in windows.
        cuts: each once, in rising order; the number of blocks stands for the states after the last one.
        folder: with the features of the same data and model.
        wait: seconds to wait for another process that makes the same file.

    Returns:
        A file for each cut, in their order.

    Raises:
        CacheError: the disk cannot hold them (checked before anything is computed), or another process
            makes the same file.
        BackboneError: a text that cannot be encoded; a text that does not fit in memory.
    """
    documents = [states_document(encoder, cut, hashes) for cut in cuts]
    paths = {document.cut: states_path(folder, split.name, document) for document in documents}

    def note(text: str) -> None:
        on_progress(Progress("note", split.name, text=text))

    with ExitStack() as locks:
        for path in paths.values():
            locks.enter_context(locked(path, wait, note))
        if missing := [document for document in documents if not paths[document.cut].exists()]:
            began = time.perf_counter()
            maker = _StatesMaker(split, hashes, encoder, missing, paths=paths, on_progress=on_progress)
            unknown = maker.run()
            seconds = (time.perf_counter() - began) / len(missing)
            for document in missing:
                record = asdict(StatesRecord(document.fingerprint, seconds, unknown))
                beside = paths[document.cut].with_suffix(".json")
                write_file(beside, json.dumps(record, sort_keys=True).encode())
    return [StatesFile(path) for path in paths.values()]


@dataclass
class _StatesMaker:
    """Makes the states files of some cuts: commit units of about COMMIT_TOKENS tokens, then the files."""

    split: Split
    hashes: np.ndarray
    encoder: Encoder
    documents: Sequence[StatesDocument]
    paths: dict[int, Path]
    on_progress: OnProgress

    def __post_init__(self) -> None:
        storage = self.documents[0].storage
        self.raw = storage == "bfloat16"  # which HDF5 does not have: stored as its bytes
        self.dtype: torch.dtype = getattr(torch, storage)
        self.cuts = [document.cut for document in self.documents]
        self.width = self.encoder.backbone.width
        self.budget = self.encoder.batch_tokens

    def run(self) -> float | None:
        """Make the files; returns the share of unknown tokens, None where it is not known."""
        lengths, truncated, unknown = self._lengths()
        units = _commit_units(lengths)
        self._check_space(int(lengths.sum()))

        def on_commit(number: int) -> None:
            self.on_progress(Progress("encode", self.split.name, int(units[number][-1]) + 1, len(self.split)))

        whole = ",".join(document.fingerprint for document in self.documents)
        plan = StatesPlan(whole, COMMIT_TOKENS, self.budget)
        with unfinished_work(self.paths[self.cuts[0]], plan, self._note) as staging:
            done = staging.committed()
            commit_units(
                claims=(Claim(number) for number in range(len(units)) if number not in done),
                prepare=lambda number: tokenize_rows(self.encoder, self.split, units[number], self.hashes),
                compute=lambda _, tokens: self._encode(tokens),
                staging=staging,
                on_commit=on_commit,
            )
            for document in self.documents:
                self._seal(document, staging, len(units), lengths, truncated)
        return unknown

    def _note(self, text: str) -> None:
        self.on_progress(Progress("note", self.split.name, text=text))

    def _lengths(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Tokens of each text, int64 `[N]`, which were truncated, uint8 `[N]`, the share of unknown tokens.

        The ids are not kept.
        """
        lengths, truncated, unknown = [], [], list[UnknownTokens]()
        for start in range(0, len(self.split), TOKENIZE_ROWS):
            rows = np.arange(start, min(start + TOKENIZE_ROWS, len(self.split)))
            tokens = tokenize_rows(self.encoder, self.split, rows, self.hashes)
            lengths.append(tokens.lengths)
            truncated.append(tokens.truncated.astype(np.uint8))
            unknown += [] if tokens.unknown is None else [tokens.unknown]
        share = UnknownTokens.joined(unknown).share if unknown else None
        return np.concatenate(lengths), np.concatenate(truncated), share

    def _check_space(self, tokens: int) -> None:
        """Report the size; refuse what the disk cannot hold: the commit units, then the files beside them."""
        cuts, rows = self.cuts, len(self.split)
        one = tokens * self.width * self.dtype.itemsize + 48 * rows + (1 << 20)
        where = f"before block {cuts[0]}" if len(cuts) == 1 else f"at {len(cuts)} layers"
        what, needed = f"states of {self.split.name} {where}", one * len(cuts)
        require_space(self.paths[cuts[0]].parent, 2 * needed, what)
        self._note(f"{what}: {tokens:,} tokens, {size_text(needed)} on disk (twice that while they are made)")

    def _name(self, cut: int) -> str:
        """Of the array of a cut in a commit unit."""
        return "values" if len(self.cuts) == 1 else f"values-{cut}"

    def _encode(self, tokens: Tokens) -> dict[str, np.ndarray]:
        """The states of texts in their order by `_name`: `[T, H]`, or uint8 `[T, 2H]` for bfloat16."""
        ends = np.cumsum(tokens.lengths)
        made = {cut: torch.empty(int(ends[-1]), self.width, dtype=self.dtype) for cut in self.cuts}

        def encode(batch: np.ndarray) -> None:
            found, _ = self.encoder.backbone.states(tokens.batch(batch), self.cuts)
            for cut, whole in made.items():
                states = found[cut].to("cpu", self.dtype)
                if not bool(torch.isfinite(states).all()):
                    raise BackboneError(
                        f"states of {self.split.name} are NaN, infinite or too large for "
                        f"{self.documents[0].storage}",
                        hint="try --storage float32, or --dtype float32",
                    )
                for row, part in zip(batch, states.split(tokens.lengths[batch].tolist()), strict=True):
                    whole[int(ends[row] - tokens.lengths[row]) : int(ends[row])] = part

        self.budget = smaller_batches(tokens.lengths, self.budget, encode)
        return {
            self._name(cut): (whole.view(torch.uint8) if self.raw else whole).numpy()
            for cut, whole in made.items()
        }

    def _seal(
        self,
        document: StatesDocument,
        staging: Staging,
        units: int,
        lengths: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        shape = (int(lengths.sum()), self.width * 2 if self.raw else self.width)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = (staging.read(number)[self._name(document.cut)] for number in range(units))
        description = FileDescription(
            format="featcache states",
            fingerprint=document.fingerprint,
            split=self.split.name,
            document=document.to_json(),
        )
        columns = [
            Column("values", shape, "uint8" if self.raw else document.storage, values),
            Column("offsets", offsets.shape, "int64", [offsets]),
            Column("row_hash", self.hashes.shape, "uint8", [self.hashes]),
            Column("truncated", truncated.shape, "uint8", [truncated]),
        ]
        path = self.paths[document.cut]
        remove_temporaries(path)  # of a process that was killed while it wrote this very file
        write_sealed(path, description.to_json(), columns)


def _commit_units(lengths: np.ndarray) -> list[np.ndarray]:
    """Neighbouring rows, in units of about COMMIT_TOKENS tokens and at least one row."""
    number = (np.cumsum(lengths) - lengths) // COMMIT_TOKENS
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(number)) + 1) if len(lengths) else []
