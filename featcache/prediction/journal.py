"""What is done of an unfinished output: the folder `OUTPUT.partial/`, from which the same call goes on."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Self

from featcache.data.formats.open import QuoteRule, RowBatch
from featcache.data.formats.write import RowPredictions, Writer
from featcache.errors import CacheError, SourceError
from featcache.plain_file import read_plain
from featcache.system.documents import read_document
from featcache.system.durable import TEMPORARY, disk, is_plain, remove_own_folder, write_file
from featcache.system.output import Target

FORMAT = 1  # of what lies in OUTPUT.partial
ROWS, BAD_LOG = "rows", "bad.jsonl"
STATE = "state.json"
_OURS = re.compile(
    rf"{ROWS}(\.lock|\.holder)?|{re.escape(BAD_LOG)}|{re.escape(STATE)}|{re.escape(TEMPORARY)}.+"
)
COMMIT_EVERY = 1.0  # seconds between two durable states, at the least
FIRST_BAD = 5  # rows of `Journal.first_bad`


@dataclass(frozen=True)
class UnlabelledRow:
    """A row without a prediction; a line of `OUTPUT.bad.jsonl`.

    Attributes:
        row, line: counted from 1.
        problem: why it has no prediction.
    """

    row: int
    line: int
    problem: str


@dataclass(frozen=True)
class JournalState:
    """What is durable so far, as `state.json` has it.

    Attributes:
        key: fingerprint of all that decides the output, except for the rows.
        chunks: batches that are done.
        digest: SHA-256 of the rows of these batches; see `RowBatch.digest`.
        bytes, bad_bytes: lengths of the two files beside the state.
        counts: rows by predicted label.
        quotes: see `RowFile.quotes`; None for other files, and in states of earlier versions.
        raw_cells: see `OutputForm.raw_cells`; an output goes on as it began. Earlier versions wrote them.
        mostly_unknown, abstained: see `LabelledFile`.
    """

    key: str
    chunks: int = 0
    rows: int = 0
    bad: int = 0
    truncated: int = 0
    digest: str = ""
    bytes: int = 0
    bad_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    quotes: QuoteRule | None = None
    raw_cells: bool = True
    mostly_unknown: int = 0
    abstained: int = 0

    def __post_init__(self) -> None:
        if min(self.chunks, self.rows, self.bad, self.truncated, self.bytes, self.bad_bytes) < 0:
            raise ValueError("a negative number")


def partial_folder(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def read_state(folder: Path) -> JournalState | None:
    """The state of an unfinished call; None where there is none that can be gone on from."""
    try:
        content = read_plain(folder / STATE)
        state = read_document(JournalState, content, str(folder / STATE), SourceError)
        logs = folder / ROWS, folder / BAD_LOG
        whole = all(map(is_plain, logs)) and state.bytes <= logs[0].stat().st_size
        whole = whole and state.bad_bytes <= logs[1].stat().st_size
    except (OSError, SourceError):
        return None  # only work is lost, and done again
    return state if whole else None


def remembered_quotes(target: Path | str) -> QuoteRule | None:
    """What an unfinished call that writes `target` found about the quotes of its input."""
    state = read_state(partial_folder(Target.of(target).path))
    return None if state is None else state.quotes


class Journal:
    """Appends batches in a thread of its own and makes them durable now and then; at most one waits.

    Args:
        folder: of one output.
        state: what is done.
        writer: makes the bytes of the output.
        commit_every: seconds between two durable states, at the least.
    """

    def __init__(
        self, folder: Path, state: JournalState, writer: Writer, commit_every: float = COMMIT_EVERY
    ) -> None:
        self.folder, self.state, self.writer, self.commit_every = folder, state, writer, commit_every
        self.log, self.bad_log = folder / ROWS, folder / BAD_LOG
        self.first_bad: list[UnlabelledRow] = []
        self.consumed = (0, 0)  # rows appended, and the bytes of the input that were read for them

    def __enter__(self) -> Self:
        if not self.state.chunks:
            head = self.writer.head()
            for path, content in ((self.log, head), (self.bad_log, b"")):
                path.unlink(missing_ok=True)  # what is there may be a link to a file of somebody
                with path.open("xb") as file:
                    file.write(content)
            self.state = replace(self.state, bytes=len(head))
        else:
            os.truncate(self.log, self.state.bytes)
            os.truncate(self.bad_log, self.state.bad_bytes)
        self._files: tuple[BinaryIO, BinaryIO] = (self.log.open("ab"), self.bad_log.open("ab"))
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._last = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is appended is kept, also after an error; a folder with nothing in it is removed."""
        try:
            if self._writing:
                self._writing.result()
        finally:
            self._pool.shutdown()
            try:
                self._commit()
            finally:
                for file in self._files:
                    file.close()
                if kind is not None and not self.state.chunks:
                    self.discard()

    def discard(self) -> None:
        """Remove the folder, as far as that is possible; what featcache did not make stays."""
        with suppress(OSError, CacheError):
            remove_own_folder(self.folder, _OURS)

    def add(self, batch: RowBatch, predictions: RowPredictions) -> None:
        """Append a batch; waits until the one before is written."""
        if self._writing:
            self._writing.result()
        self._writing = self._pool.submit(self._append, batch, predictions)

    def _append(self, batch: RowBatch, predictions: RowPredictions) -> None:
        """Write a batch and count it; the state changes only when both files have it."""
        log, bad_log = self._files
        found = [
            UnlabelledRow(row.number, row.line, row.problem) for row in batch.rows if row.problem is not None
        ]
        bad = b"".join(
            json.dumps(asdict(one), ensure_ascii=False).encode("utf-8", "replace") + b"\n" for one in found
        )
        written, bad_written = log.write(self.writer.batch(batch, predictions)), bad_log.write(bad)
        counts, held = dict(self.state.counts), predictions.abstentions
        labels = predictions.labels if predictions.numbers is None else []
        for label in itertools.chain.from_iterable(labels):
            counts[label] = counts.get(label, 0) + 1
        self.state = replace(
            self.state,
            chunks=self.state.chunks + 1,
            rows=self.state.rows + len(batch.rows),
            bad=self.state.bad + len(found),
            truncated=self.state.truncated + int(predictions.truncated.sum()),
            mostly_unknown=self.state.mostly_unknown + predictions.mostly_unknown,
            abstained=self.state.abstained + (int(held.abstained.sum()) if held else 0),
            digest=batch.digest,
            bytes=self.state.bytes + written,
            bad_bytes=self.state.bad_bytes + bad_written,
            counts=counts,
        )
        self.first_bad += found[: FIRST_BAD - len(self.first_bad)]
        self.consumed = (self.state.rows, batch.consumed)
        if time.monotonic() - self._last >= self.commit_every:
            self._commit()

    def _commit(self) -> None:
        for file in self._files:
            disk.fsync(file)
        write_file(self.folder / STATE, json.dumps(asdict(self.state), ensure_ascii=False).encode())
        self._last = time.monotonic()
