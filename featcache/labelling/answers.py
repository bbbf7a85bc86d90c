"""The answers file: what was answered about which text, a line of JSON each, only ever appended to.

The first line names the labels. A later line about a text takes the place of an earlier one by the same
person, and an undo is a line of its own. Each line is on the disk before the answer counts. The file may be
edited by hand, also while it is used, and several people may write to it at the same time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from featcache.errors import LockHeld, SourceError
from featcache.system import durable
from featcache.system.documents import plain_document, read_document
from featcache.system.durable import explained, write_file
from featcache.system.lock import ProcessLock, locked

FORMAT = 1
KINDS = ("labels", "skip", "unsure", "undo", "new label")
WAIT = 10.0  # seconds for another process that appends a line
_MEND = "correct that line or remove it; nothing was changed, and every other answer is kept"


@dataclass(frozen=True, kw_only=True)
class AnswersHeader:
    """The first line.

    Attributes:
        featcache: always `answers`, what kind of file it is.
        multi_label: a text may have several labels.
        labels: the labels when labelling began; others may be added by lines.
    """

    featcache: str = "answers"
    format: int = FORMAT
    labels: tuple[str, ...]
    multi_label: bool = False


@dataclass(frozen=True, kw_only=True)
class AnswerLine:
    """One answer, or something else that a person did.

    Attributes:
        answer: one of `KINDS`.
        text: the row hash of the text, in hexadecimal digits; empty for a new label.
        labels: the labels of the text, or the new label.
        by: who.
        time: when, in UTC.
        chosen: how the text came to be asked: `estimate` for those drawn at random to estimate the accuracy,
            `bulk` where many were confirmed at once, or the kind of a `Reason`.
        guess_shown: the person had asked for the head's guess.
        note: of the person.
    """

    answer: str
    text: str = ""
    labels: tuple[str, ...] = ()
    by: str
    time: str
    chosen: str = ""
    guess_shown: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.answer not in KINDS:
            raise ValueError(f"answer is {self.answer!r}; it can be: {', '.join(KINDS)}")
        if self.answer in ("labels", "new label") and not (self.labels and all(self.labels)):
            raise ValueError("labels is empty")
        if not self.text and self.answer != "new label":
            raise ValueError("text is missing")


class AnswersFile:
    """An answers file that is read and appended to.

    Args:
        path: made with its folder where it does not exist.
        header: of a new file; of one that exists its own counts.

    Attributes:
        lines: all lines, as they are in the file.

    Raises:
        SourceError: a line is broken, or the file is another one; names the line.
        DiskError: the file system refuses.
    """

    def __init__(self, path: Path, header: AnswersHeader) -> None:
        self.path = path
        self.header, self.lines = header, list[AnswerLine]()
        self._seen: tuple[int, int, int] | None = None
        with self._alone():
            if not path.exists() or not path.stat().st_size:
                write_file(path, _json_line(header))
            self._read()

    def refresh(self) -> bool:
        """Read what others have written since; whether there was anything."""
        if self._stamp() == self._seen:
            return False
        with self._alone():
            self._read()
        return True

    def append(self, *lines: AnswerLine) -> None:
        """Write lines to the disk; on return they survive a crash. What others wrote before is read first.

        Raises:
            SourceError: the file was edited in between, and a line is broken; nothing is written.
        """
        with self._alone():
            if self._stamp() != self._seen:
                self._read()
            self._write(b"".join(map(_json_line, lines)))
            self.lines += lines
            self._seen = self._stamp()

    @contextmanager
    def writer(self, by: str) -> Iterator[None]:
        """Hold the file for one person: the same person cannot answer in two places at once.

        Raises:
            LockHeld: another process writes for this person.
        """
        name = f"{self.path.name}.{sha256(by.encode()).hexdigest()[:12]}"
        target = self.path.with_name(f".{name}.person")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(target))
            except LockHeld as error:
                raise LockHeld(
                    f"{by} labels with {self.path} in another process: {error.what.partition(': ')[2]}",
                    hint="stop that one, or give another name: --annotator",
                ) from None
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While one process reads or writes, others wait."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = ProcessLock(self.path.with_name(f".{self.path.name}.lock"))
            if not lock.acquire(WAIT):
                raise LockHeld(
                    f"another process has held {self.path} for {WAIT:g} seconds",
                    hint="close the other page or terminal on this file, then try again",
                )
        try:
            yield
        finally:
            lock.release()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise SourceError(
                f"{self.path} was removed while it was used", hint="put it back, or start again"
            ) from None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _write(self, content: bytes) -> None:
        with explained(self.path), durable.disk.open(self.path, "ab") as file:
            file.write(content)
            durable.disk.fsync(file)

    def _read(self) -> None:
        """Read all lines; a last line that was cut off in the middle of writing is set aside."""
        seen = self._stamp()
        with explained(self.path):
            content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            content = self._mended(content)
            seen = self._stamp()
        header, lines = None, list[AnswerLine]()
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            if header is None:
                header = read_document(AnswersHeader, line, where, _broken)
                if header.featcache != "answers" or header.format != FORMAT:
                    raise SourceError(
                        f"{where}: no answers file of this version of featcache",
                        hint="name another file, or install the featcache that wrote it",
                    )
            else:
                lines.append(read_document(AnswerLine, line, where, _broken))
        if header is None:
            raise SourceError(f"{self.path} is empty", hint="remove it to start a new one")
        if lines[: len(self.lines)] != self.lines:
            self._keep_removed(lines)
        self.header, self.lines, self._seen = header, lines, seen

    def _keep_removed(self, lines: Sequence[AnswerLine]) -> None:
        """Keep what an edit took out: an editor may have saved what it read before the lines were written."""
        removed = (Counter(self.lines) - Counter(lines)).elements()
        aside = self.path.with_name(f"{self.path.name}.removed")
        with explained(aside), durable.disk.open(aside, "ab") as file:
            file.write(b"".join(map(_json_line, removed)))
            durable.disk.fsync(file)

    def _mended(self, content: bytes) -> bytes:
        """The content in whole lines: the last one gets its end; half a line is kept elsewhere."""
        whole, _, last = content.rpartition(b"\n")
        try:
            read_document(AnswerLine if whole else AnswersHeader, last, "", ValueError)
        except ValueError:
            if not whole:
                raise SourceError(f"{self.path} is no answers file", hint="name another file") from None
            aside = self.path.with_name(f"{self.path.name}.torn")
            with explained(aside), durable.disk.open(aside, "ab") as file:
                file.write(last + b"\n")
                durable.disk.fsync(file)
            with explained(self.path), durable.disk.open(self.path, "r+b") as file:
                file.truncate(len(whole) + 1)
                durable.disk.fsync(file)
            return whole + b"\n"
        self._write(b"\n")
        return content + b"\n"


def _json_line(document: AnswersHeader | AnswerLine) -> bytes:
    return json.dumps(plain_document(document), ensure_ascii=False).encode() + b"\n"


def _broken(problem: str) -> SourceError:
    return SourceError(problem, hint=_MEND)


def standing(lines: Sequence[AnswerLine]) -> dict[tuple[str, str], AnswerLine]:
    """The answers that count, by text and person, in the order in which they were given.

    An undo takes the last answer of the same person about the same text back; the one before counts again.
    """
    given: dict[tuple[str, str], list[tuple[int, AnswerLine]]] = {}
    for number, line in enumerate(lines):
        key = line.text, line.by
        if line.answer == "undo":
            if given.get(key):
                given[key].pop()
        elif line.answer != "new label":
            given.setdefault(key, []).append((number, line))
    last = sorted((stack[-1] for stack in given.values() if stack), key=lambda one: one[0])
    return {(line.text, line.by): line for _, line in last}


def all_labels(header: AnswersHeader, lines: Sequence[AnswerLine]) -> tuple[str, ...]:
    """The labels of the header, then those that were added, in the order in which they came."""
    added = (label for line in lines if line.answer in ("labels", "new label") for label in line.labels)
    return tuple(dict.fromkeys((*header.labels, *added)))


def default_path(texts: Path) -> Path:
    """Where the answers about a file of texts are kept: beside it."""
    return texts.with_name(f"{name_of(texts)}.labels.jsonl")


def name_of(file: Path) -> str:
    """The name of a file without its ending: `reviews.2024` of `reviews.2024.csv.gz`."""
    return Path(file.name.removesuffix(".gz")).stem


def whoami() -> str:
    """The name under which answers are kept where none is given: that of the user."""
    return os.environ.get("USER") or os.environ.get("USERNAME") or "me"
