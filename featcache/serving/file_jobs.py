"""Files of clients, labelled one after the other as `featcache predict` labels them.

A file and its result lie in a folder of this process, which nobody else can read, until the client removes
them, nobody has asked for them for `KEPT_SECONDS`, or the server stops.
"""

from __future__ import annotations

import gzip
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.parquet import read_metadata

from featcache.data.formats.lines import ReadLimits, first_line, reading
from featcache.data.formats.open import KINDS, RowBatch, RowFile, kind_of, open_rows
from featcache.data.formats.write import OutputForm
from featcache.errors import FeatcacheError, SourceError, UsageError
from featcache.prediction.file import LabelledFile, predict_file
from featcache.prediction.predictor import Predictor
from featcache.serving.request import Limits, Refused
from featcache.settings import DataSettings
from featcache.system.progress import Progress
from featcache.system.text import last_part, one_line

KEPT_SECONDS = 3600.0  # since somebody asked for a file
IDLE_SECONDS = 60.0  # since somebody asked for a result, after which a new file may take its place
UNPACKED = 4  # times `Limits.file_bytes`: the most that a packed file may become
LONGEST_NAME = 120  # characters
NOT_READ = ("arrow", "folder", None)  # kinds: the reader of Arrow files trusts them
READ = "csv, tsv, json, jsonl, parquet, txt, xlsx or xls, also as .gz or .zip"
BLOCK = 1 << 20


class CancelledByClient(Exception):
    """The client does not want the result any more."""


@dataclass
class FileJob:
    """A file of a client.

    Attributes:
        id: whoever knows it can read the result.
        name: of the file, as the client has it, on one line; it is never a path here.
        source: where its bytes are, in a folder of its own.
        columns: that the client named.
        state: `arriving`, `waiting`, `reading`, `labelling`, `done` or `failed`.
        done, total: rows.
        error: why it failed.
        asked: when somebody asked for it last, by `time.monotonic`.
    """

    id: str
    name: str
    source: Path
    columns: DataSettings
    state: str = "arriving"
    done: int = 0
    total: int = 0
    notes: tuple[str, ...] = ()
    error: FeatcacheError | None = None
    made: LabelledFile | None = None
    asked: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def folder(self) -> Path:
        return self.source.parent

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed")

    @property
    def result_name(self) -> str:
        """What the client may call the result."""
        assert self.made is not None
        stem = self.name[: -len(_ending(self.name))]
        return f"{stem}-labelled{Path(self.made.path).suffix}"

    def check(self) -> None:
        """
        Raises:
            CancelledByClient
        """
        if self.cancelled.is_set():
            raise CancelledByClient

    def step(self, progress: Progress) -> None:
        """Note how far it is; see `check`."""
        self.check()
        self.done = progress.done

    def fail(self, error: FeatcacheError) -> None:
        """Note the error with the client's name of the file, and without folders of this machine."""
        what, hint = (
            text.replace(str(self.source), self.name).replace(f"{self.folder}/", "")
            for text in (error.what, error.hint or "")
        )
        self.error, self.state = SourceError(what, hint=hint or None), "failed"


class FileJobs:
    """The files that are held, and the thread that labels them.

    Args:
        predictor: used by this thread; see `QueuedPredictor`.
        columns: that the head was trained on, taken where a file has them and the client names none.
    """

    def __init__(self, predictor: Predictor, limits: Limits, columns: DataSettings | None = None) -> None:
        self.predictor, self.limits = predictor, limits
        self.columns = DataSettings() if columns is None else columns
        self._folder = tempfile.TemporaryDirectory(prefix="featcache-serve-", ignore_cleanup_errors=True)
        self._jobs: dict[str, FileJob] = {}  # only the event loop changes it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="featcache-files")

    # -- for the event loop -----------------------------------------------------------------------

    def begin(self, name: str, columns: DataSettings) -> FileJob:
        """A place for a file that arrives now.

        Raises:
            Refused: its ending is of no format that is read, or too many files are held.
        """
        name = one_line(last_part(name))[-LONGEST_NAME:]
        if not self.limits.file_bytes:
            raise Refused(403, "this server labels no files", "label it with: featcache predict --input FILE")
        if kind_of(Path("/nowhere", name)) in NOT_READ:
            raise Refused(415, f"{name or 'a file without a name'}: it is none of {READ}")
        self.sweep()
        if len(self._jobs) >= self.limits.files and not self._make_room():
            what = f"{len(self._jobs)} files are held, and no more are taken"
            raise Refused(429, what, "remove one that is done, or try again later", retry_after=60)
        id = secrets.token_urlsafe(16)
        job = FileJob(id, name, Path(self._folder.name, id, "input" + _ending(name)), columns)
        job.folder.mkdir()
        self._jobs[id] = job
        return job

    def submit(self, job: FileJob) -> None:
        """Label a file that has arrived, after those before it."""
        job.state = "waiting"
        self._thread.submit(self._label, job)

    def find(self, id: str) -> FileJob:
        """
        Raises:
            Refused: there is no such file.
        """
        job = self._jobs.get(id)
        if job is None:
            raise Refused(404, "there is no such file: it was removed, or nobody asked for it for an hour")
        job.asked = time.monotonic()
        return job

    def before(self, job: FileJob) -> int:
        """How many files are labelled before this one."""
        waiting = [one for one in list(self._jobs.values()) if not one.over and one.state != "arriving"]
        return waiting.index(job) if job in waiting else 0

    def remove(self, job: FileJob) -> None:
        """Stop the work on it at its next batch, and remove the file and its result."""
        job.cancelled.set()
        self._jobs.pop(job.id, None)
        if job.over or job.state in ("arriving", "waiting"):
            shutil.rmtree(job.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what nobody has asked for."""
        for job in list(self._jobs.values()):
            if time.monotonic() - job.asked > KEPT_SECONDS:
                self.remove(job)

    def stop(self) -> None:
        """End the work, and remove everything."""
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._thread.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def _make_room(self) -> bool:
        idle = [
            job for job in self._jobs.values() if job.over and time.monotonic() - job.asked > IDLE_SECONDS
        ]
        if idle:
            self.remove(min(idle, key=lambda job: job.asked))
        return bool(idle)

    # -- in the thread ----------------------------------------------------------------------------

    def _label(self, job: FileJob) -> None:
        try:
            job.check()
            job.state = "reading"
            self._check_packed(job)
            job.total = self._count(job)
            rows = self._guarded(job, self._open(job))
            self.predictor.check_pairs(rows.pair is not None)
            job.notes, job.state = rows.notes, "labelling"
            kind = rows.kind if rows.kind in KINDS else "csv"  # Excel opens it, thanks to its first bytes
            job.made = predict_file(
                self.predictor, rows, job.folder / f"labelled.{kind}", OutputForm(kind), on_progress=job.step
            )
            job.done, job.state = job.made.rows, "done"
        except CancelledByClient:
            pass
        except FeatcacheError as error:
            job.fail(error)
        except BaseException as error:  # a parser in another language panics with no `Exception`
            job.fail(SourceError(f"{job.name} cannot be labelled: {first_line(error)}"))
        if job.id not in self._jobs:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _check_packed(self, job: FileJob) -> None:
        """Refuse a packed file that becomes too long, and unpack a `.gz`.

        Raises:
            SourceError
        """
        most = UNPACKED * self.limits.file_bytes
        too_long = SourceError(f"{job.name} unpacks to more than {most:,} bytes", hint="send it in parts")
        if job.source.suffix == ".gz":
            packed, job.source = job.source, job.source.with_suffix("")
            with reading(job.name), gzip.open(packed) as unpacked, job.source.open("wb") as file:
                while block := unpacked.read(BLOCK):
                    job.check()
                    if file.tell() + len(block) > most:
                        raise too_long
                    file.write(block)
        elif _unpacked_size(job) > most:
            raise too_long

    def _open(self, job: FileJob) -> RowFile:
        """The rows, with the columns that the client names, else those of the training or the usual ones."""
        named, kind = job.columns, kind_of(job.source)
        assert kind is not None
        budget = 1 << 15 if self.predictor.encoder is None else self.predictor.encoder.batch_tokens
        most = self.limits.characters
        limits = ReadLimits(
            batch_rows=max(32, budget // 128), batch_chars=most, row_chars=BLOCK, record_chars=BLOCK
        )
        asked = replace(
            named,
            text_column=named.text_column or self.columns.text_column,
            pair_column=named.pair_column or self.columns.pair_column,
        )
        if asked != named and kind != "txt":
            try:
                return open_rows(job.source, kind, asked, limits=limits)
            except (SourceError, UsageError):
                pass  # the file has other columns than the training had
        return open_rows(job.source, kind, named, limits=limits)

    def _count(self, job: FileJob) -> int:
        """How many rows there are.

        Raises:
            SourceError: too many.
        """
        rows, most = self._open(job), self.limits.file_rows
        count = rows.total or 0
        for batch in () if rows.total is not None else rows.batches:
            job.check()
            count += len(batch.rows)
            if count > most:
                break
        if count > most:
            hint = "send it in parts, or label it with: featcache predict --input FILE"
            raise SourceError(f"{job.name} has more than {most:,} rows", hint=hint)
        return count

    def _guarded(self, job: FileJob, rows: RowFile) -> RowFile:
        """The rows, without the texts that are longer than one of a request may be.

        Their number is not said: the backbone would be compiled for so many, beside requests that use it.
        """

        def batches() -> Iterator[RowBatch]:
            arrived, most = 0, UNPACKED * self.limits.file_bytes
            for batch in rows.batches:
                job.check()
                arrived += 0 if batch.table is None else batch.table.nbytes  # a value may stand for many rows
                if arrived > most:
                    raise SourceError(
                        f"{job.name} has more than {most:,} bytes of rows",
                        hint="split the file, or use featcache predict --input",
                    )
                for row in batch.rows:
                    if len(row.text) + len(row.pair or "") > self.limits.characters:
                        row.problem = f"longer than {self.limits.characters:,} characters"
                yield batch

        return replace(rows, batches=batches(), total=None)


def _ending(name: str) -> str:
    """`.csv` or `.csv.gz`, in small letters."""
    endings = Path(name.lower()).suffixes
    return "".join(endings[-2:] if endings[-1:] == [".gz"] else endings[-1:])


def _unpacked_size(job: FileJob) -> int:
    """How many bytes a zip, Excel or parquet file says that it becomes; 0 where it cannot be read.

    Raises:
        SourceError: a zip file of what is not read here.
    """
    kind, size = kind_of(job.source), 0
    with suppress(zipfile.BadZipFile, NotImplementedError, ArrowException, OSError):  # said when it is opened
        if kind == "parquet":
            metadata = read_metadata(job.source)
            size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
        elif kind in ("zip", "xlsx") and zipfile.is_zipfile(job.source):
            with zipfile.ZipFile(job.source) as parts:
                size = sum(one.file_size for one in parts.infolist())
                names = map(Path, parts.namelist()) if kind == "zip" else ()
                if any(kind_of(name) == "arrow" or name.suffix.lower() == ".gz" for name in names):
                    raise SourceError(
                        f"{job.name} holds an Arrow or a .gz file, which are not read there",
                        hint="send csv, tsv, json, jsonl, parquet, xlsx or txt",
                    )
    return size
