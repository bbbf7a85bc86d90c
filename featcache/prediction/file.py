"""A file of texts to the same file with labels, in bounded memory, at the speed of an extraction.

Rows are read and tokenised in one thread, two chunks ahead of the model; what the model says is written by
another. Chunks of an unfinished file are kept in `OUTPUT.partial/`; the same call goes on from the last one
that is durable, and the file it ends with is byte for byte the one of a run without an interruption.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from featcache.data.formats.row_lines import Chunk, RowFile
from featcache.data.formats.write import Answers, Writer
from featcache.errors import BadRow, CacheError, SourceError, UsageError
from featcache.fingerprint import fingerprint
from featcache.system.durable import disk, temporary_beside, write_file
from featcache.system.lock import locked
from featcache.system.output import Target

if TYPE_CHECKING:
    from featcache.backbone.encoder import Tokens
    from featcache.prediction.predictor import Predictor

FORMAT = 1  # of what lies in OUTPUT.partial
AHEAD = 2  # chunks tokenised before the model is free for them
STATE = "state.json"
BAD_ROWS = ".bad.jsonl"  # after the output's name
COMMIT_EVERY = 1.0  # seconds between two durable states, at the least
FIRST_BAD = 5  # rows of `Labelled.first_bad`
BAD_A_CHUNK = 16  # rows of a chunk that the model may refuse; more, and it is the model that is broken


@dataclass(frozen=True)
class Step:
    """How far a file is.

    Attributes:
        rows: done so far.
        total: rows in all: as the file says, or guessed from the bytes read; None for a stream.
        tokens: encoded in this call.
        resumed: rows that an earlier call had done.
    """

    rows: int
    total: int | None
    tokens: int
    resumed: int


@dataclass(frozen=True)
class Labelled:
    """What `predict_file` made.

    Attributes:
        path: a URL where that was asked for, and then `bad_path` too.
        rows: read; `bad` of them have no label.
        truncated: texts that were longer than the longest length and were cut.
        counts: rows by label said; a row of a multi-label head counts for each.
        bad_path: JSON lines, one a bad row: its number, line and what is wrong; None where all are fine.
        first_bad: the first few of those.
    """

    path: Path | str
    rows: int
    bad: int
    truncated: int
    resumed: int
    seconds: float
    tokens: int
    counts: dict[str, int]
    bad_path: Path | str | None
    first_bad: tuple[dict[str, Any], ...]


def predict_file(
    predictor: Predictor,
    rows: RowFile,
    target: Path | str,
    kind: str,
    *,
    prefix: str = "",
    force: bool = False,
    report: Callable[[Step], None] = lambda _: None,
) -> Labelled:
    """Label every row of `rows` and write them, with all their columns and in their order, to `target`.

    Added are `prediction` (of a multi-label head a list), `probability` of it, `probability:NAME` for each
    label and `truncated`. A row whose text cannot be used stays in the file without them; one that cannot
    be read at all is in the list of bad rows alone.

    Args:
        rows: just opened.
        target: a path or a URL. What goes to a URL is made on this machine and uploaded when it is whole.
        kind: the form of `target`, one of `row_files.KINDS`; txt holds the labels alone.
        prefix: put before the names of the added columns.
        force: replace `target`, and begin anew where an unfinished one is of other rows or another head.
        report: called after each batch.

    Raises:
        UsageError: `target` is there, or an added column is.
        SourceError: no row of the first chunk can be used; an unfinished `target` is of other rows or
            another head; the disk is full, the store out of reach (finished chunks are kept).
    """
    place = Target.of(target)
    refuse_target(place, force=force)
    writer = Writer(kind, rows, predictor.label_names, several=predictor.head.multi_label, prefix=prefix)
    key = fingerprint(
        {
            "format": FORMAT,
            "head": _head_hash(predictor),
            "batch_tokens": predictor.encoder.batch_tokens,
            "columns": [rows.columns, rows.text, rows.pair, writer.added],
            "kinds": [rows.kind, kind],
        }
    )
    folder = partial_folder(place.path)
    with _written(place.path), locked(folder / "rows"):
        refuse_target(place, force=force)  # who held the lock may have made it
        work = _Work(predictor, rows, writer, folder, key, force, report)
        return work.run(place, force)


def refuse_target(target: Target | Path | str, *, force: bool) -> None:
    """Before anything is loaded: an output that is there already, or that no file can become.

    Raises:
        UsageError
        SourceError: the store of the output cannot be asked.
    """
    place = target if isinstance(target, Target) else Target.of(target)
    if place.is_folder():
        raise UsageError(f"{place} is a folder")
    unfinished = (partial_folder(place.path) / STATE).is_file()  # killed between the two, it has the one
    for one in (place,) if unfinished else (place, place.beside(BAD_ROWS)):
        if not force and one.exists():
            raise UsageError(f"{one} is there already", hint="another --output, or --force to replace it")


def partial_folder(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def bad_path(target: Path) -> Path:
    return target.with_name(target.name + BAD_ROWS)


@dataclass(frozen=True)
class _State:
    """What is durable so far; `state.json`."""

    key: str
    chunks: int = 0
    rows: int = 0
    bad: int = 0
    truncated: int = 0
    digest: str = ""
    bytes: int = 0
    bad_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ready:
    """A chunk with the tokens of its usable rows, `places` int64 `[M]`."""

    chunk: Chunk
    places: np.ndarray
    tokens: Tokens | None


class _Work:
    """One call of `predict_file`."""

    def __init__(
        self,
        predictor: Predictor,
        rows: RowFile,
        writer: Writer,
        folder: Path,
        key: str,
        force: bool,
        report: Callable[[Step], None],
    ) -> None:
        self.predictor, self.rows, self.writer, self.report = predictor, rows, writer, report
        self.folder = folder
        self.log, self.bad_log, self.state_file = folder / "rows", folder / "bad.jsonl", folder / STATE
        self.chunks = iter(rows.chunks)
        self.state = self._resumed(key, force) or _State(key, counts=dict.fromkeys(predictor.label_names, 0))
        self.resumed, self.done, self.tokens = self.state.rows, self.state.rows, 0
        self.total = rows.total
        self.first_bad: list[dict[str, Any]] = []

    def run(self, target: Target, force: bool) -> Labelled:
        began = time.perf_counter()
        self.predictor.encoder.backbone.prepare(self.total or 0)
        if not self.state.chunks:
            self.log.write_bytes(b"")
            self.bad_log.write_bytes(b"")
        else:
            os.truncate(self.log, self.state.bytes)
            os.truncate(self.bad_log, self.state.bad_bytes)
        try:
            self._label()
        except BaseException:
            if not self.state.chunks:  # nothing to go on from
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finished = self.writer.finish(self.log, temporary_beside(target.path))
        state, bad_rows = self.state, target.beside(BAD_ROWS)
        if state.bad:
            copy = temporary_beside(bad_rows.path)
            shutil.copyfile(self.bad_log, copy)
            bad_rows.publish(copy, replace=True)
        elif force:
            bad_rows.remove()
        if not target.publish(finished, replace=force):
            raise UsageError(f"{target} was made by someone else meanwhile", hint="--force replaces it")
        shutil.rmtree(self.folder, ignore_errors=True)
        return Labelled(
            target.place, state.rows, state.bad, state.truncated, self.resumed, time.perf_counter() - began,
            self.tokens, state.counts, bad_rows.place if state.bad else None, tuple(self.first_bad),
        )  # fmt: skip

    # -- going on ---------------------------------------------------------------------------------

    def _resumed(self, key: str, force: bool) -> _State | None:
        """The state of an unfinished call, the rows it had done read past; None to begin with the first."""
        if not self.state_file.is_file():
            return None
        try:
            state = _State(**json.loads(self.state_file.read_bytes()))
            whole = state.bytes <= self.log.stat().st_size and state.bad_bytes <= self.bad_log.stat().st_size
        except (OSError, ValueError, TypeError):
            return None  # unreadable: only work is lost, and done again
        if not whole:
            return None
        if state.key != key and force:
            return None
        if state.key != key:
            raise SourceError(
                f"{self.folder} is of an unfinished call with another head, or columns",
                hint="--force begins anew; or give another --output",
            )
        if not self._skip(state):
            raise SourceError(
                f"{self.folder} is of an unfinished call with other rows",
                hint=f"to begin anew, remove it: rm -r {self.folder}",
            )
        return state

    def _skip(self, state: _State) -> bool:
        """Read the chunks of `state` again; whether they are what they were."""
        digest = ""
        for _ in range(state.chunks):
            chunk = next(self.chunks, None)
            if chunk is None:
                return False
            digest = chunk.digest
        return digest == state.digest

    # -- the work ---------------------------------------------------------------------------------

    def _label(self) -> None:
        begun = self.state.rows
        with ThreadPoolExecutor(1) as pool, _Commits(self) as commits:
            for number, ready in enumerate(self._ahead(pool), self.state.chunks):
                if number == 0 and not self.rows.first and not len(ready.places):
                    self._refuse_all(ready.chunk)
                answers = self._answers(ready)
                self.done = begun = begun + len(ready.chunk.rows)
                commits.add(ready.chunk, answers)

    def _ahead(self, pool: ThreadPoolExecutor) -> Iterator[_Ready]:
        """Chunks read and tokenised in a thread of their own."""
        futures: deque[Future[_Ready | None]] = deque()
        try:
            while True:
                while len(futures) <= AHEAD:
                    futures.append(pool.submit(self._next))
                ready = futures.popleft().result()
                if ready is None:
                    return
                yield ready
        finally:
            for future in futures:
                future.cancel()

    def _next(self) -> _Ready | None:
        chunk = next(self.chunks, None)
        return None if chunk is None else self._tokenized(chunk)

    def _tokenized(self, chunk: Chunk) -> _Ready:
        while True:
            usable = [row for row in chunk.rows if row.problem is None]
            places = np.array([n for n, row in enumerate(chunk.rows) if row.problem is None], dtype=np.int64)
            if not usable:
                return _Ready(chunk, places, None)
            pairs = None if self.rows.pair is None else [row.pair or "" for row in usable]
            try:
                return _Ready(chunk, places, self.predictor.tokenize([row.text for row in usable], pairs))
            except BadRow as error:
                usable[error.row].problem = error.what

    def _answers(self, ready: _Ready) -> Answers:
        """What the model says; a row it cannot encode is marked as bad, the others are encoded again."""
        done = self.done
        last: BadRow | None = None
        for _ in range(BAD_A_CHUNK):
            if ready.tokens is None:
                break
            self.done = done
            try:
                shares, truncated = self.predictor.answer(ready.tokens, self._step)
            except BadRow as error:
                ready.chunk.rows[int(ready.places[error.row])].problem = error.what
                last = error
                ready = self._tokenized(ready.chunk)
                continue
            said = [self.predictor.said(row) for row in shares]
            own = [row[one].min() if one else row.max() for row, one in zip(shares, said, strict=True)]
            names = self.predictor.label_names
            labels = [[names[number] for number in one] for one in said]
            return Answers(ready.places, labels, np.array(own), shares, truncated)
        else:
            assert last is not None
            raise last
        none = np.zeros((0, len(self.predictor.label_names)))
        return Answers(ready.places, [], none[:, 0], none, np.zeros(0, dtype=bool))

    def _step(self, texts: int, tokens: int) -> None:
        self.done += texts
        self.tokens += tokens
        # The guess is made where chunks are written, which is after they are labelled.
        total = None if self.total is None else max(self.total, self.done)
        self.report(Step(self.done, total, self.tokens, self.resumed))

    def _refuse_all(self, chunk: Chunk) -> None:
        first = chunk.rows[0]
        raise SourceError(
            f"none of the first {len(chunk.rows)} rows of {self.rows.name} can be used; "
            f"line {first.line}: {first.problem}",
            hint="Chinese texts of older programs: iconv -f GB18030 -t UTF-8 OLD > NEW"
            if "UTF-8" in (first.problem or "")
            else "name the column with the text: --text-column",
        )

    def append(self, chunk: Chunk, answers: Answers, log: BinaryIO, bad_log: BinaryIO) -> None:
        """Write a chunk and count it; the state changes only when both files have it."""
        found = [
            {"row": row.number, "line": row.line, "problem": row.problem}
            for row in chunk.rows
            if row.problem is not None
        ]
        bad = b"".join(
            json.dumps(one, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for one in found
        )
        written = log.write(self.writer.chunk(chunk, answers))
        bad_written = bad_log.write(bad)
        state = self.state
        counts = dict(state.counts)
        for label in itertools.chain.from_iterable(answers.labels):
            counts[label] += 1
        self.state = replace(
            state,
            chunks=state.chunks + 1,
            rows=state.rows + len(chunk.rows),
            bad=state.bad + len(found),
            truncated=state.truncated + int(answers.truncated.sum()),
            digest=chunk.digest,
            bytes=state.bytes + written,
            bad_bytes=state.bad_bytes + bad_written,
            counts=counts,
        )
        self.first_bad += found[: FIRST_BAD - len(self.first_bad)]
        if self.rows.total is None and self.rows.size and chunk.consumed:  # guessed from the bytes read
            self.total = max(round(self.state.rows * self.rows.size / chunk.consumed), self.state.rows)


class _Commits:
    """Appends chunks in a thread of its own and makes them durable now and then; at most one waits."""

    def __init__(self, work: _Work) -> None:
        self.work = work

    def __enter__(self) -> _Commits:
        self.files: tuple[BinaryIO, BinaryIO] = (self.work.log.open("ab"), self.work.bad_log.open("ab"))
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.last = time.monotonic()
        if not self.work.state.chunks:
            written = self.files[0].write(self.work.writer.head())
            self.work.state = replace(self.work.state, bytes=written)
        return self

    def add(self, chunk: Chunk, answers: Answers) -> None:
        if self.writing:
            self.writing.result()
        self.writing = self.pool.submit(self._append, chunk, answers)

    def _append(self, chunk: Chunk, answers: Answers) -> None:
        self.work.append(chunk, answers, *self.files)
        if time.monotonic() - self.last >= COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        for file in self.files:
            disk.fsync(file)
        write_file(self.work.state_file, json.dumps(vars(self.work.state), ensure_ascii=False).encode())
        self.last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """What is appended stays, whatever ends the work."""
        try:
            if self.writing:
                self.writing.result()
        finally:
            self.pool.shutdown()
            try:
                self._commit()
            finally:
                for file in self.files:
                    file.close()


def _head_hash(predictor: Predictor) -> str:
    """SHA-256 of all that turns a text into a label."""
    head, digest = predictor.head, hashlib.sha256()
    note = [head.fingerprint, list(head.label_names), head.temperature, head.scorer.kind]
    note.append(None if head.thresholds is None else head.thresholds.tolist())
    digest.update(json.dumps(note).encode())
    for name, part in sorted(head.scorer.tensors().items()):
        digest.update(name.encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """A refusal of the file system in terms of the output."""
    try:
        yield
    except (CacheError, OSError) as error:
        if isinstance(error, CacheError) and not isinstance(error.__cause__, OSError):
            raise  # someone else holds the lock
        what = error.what if isinstance(error, CacheError) else f"cannot write {target}: {error.strerror}"
        raise SourceError(
            what,
            hint="finished rows are kept; the same command goes on from them",
        ) from error
