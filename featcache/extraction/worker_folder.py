"""The folder through which several workers at one extraction report how far they are.

Workers share nothing but folders, and work is not dealt out: each takes the next commit unit that no other
has claimed. What is written here does not matter to the result.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from featcache.plain_file import read_plain
from featcache.system.documents import read_document
from featcache.system.durable import temporary_beside
from featcache.system.progress import Progress

EVERY = 0.25  # seconds between two notes of one worker


@dataclass
class WorkerNote:
    """What one worker reports.

    Attributes:
        left: texts that were not encoded when it began with the split.
        done, tokens: texts and tokens that it has encoded since.
    """

    rank: int
    split: str = ""
    stage: str = "load"
    total: int = 0
    left: int = 0
    done: int = 0
    tokens: int = 0


class WorkerFolder:
    """The notes of all workers in a folder; that the folder is gone is no error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last = 0.0

    def post(self, note: WorkerNote, *, now: bool = False) -> None:
        """Replace this worker's note; not more often than every `EVERY` seconds, unless `now`."""
        if not now and time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        path = self.folder / f"worker-{note.rank}-{note.split}.json"
        temporary = temporary_beside(path)
        with contextlib.suppress(OSError):
            with temporary.open("x") as file:
                file.write(json.dumps(asdict(note)))
            temporary.replace(path)

    def notes(self, split: str = "*") -> list[WorkerNote]:
        """The notes of all workers, the oldest first; each worker has one for every split it was at."""
        found = []
        for path in self.folder.glob(f"worker-*-{split}.json"):
            with contextlib.suppress(OSError, ValueError):
                note = read_document(WorkerNote, read_plain(path), str(path), ValueError)
                found.append((path.stat().st_mtime_ns, note))
        return [note for _, note in sorted(found, key=lambda each: each[0])]

    def finish(self, split: str) -> None:
        """Record that the file of a split was sealed."""
        with contextlib.suppress(OSError):
            (self.folder / f"sealed-{split}").touch(exist_ok=False)  # follows no link

    def finished(self, split: str) -> bool:
        """Whether the file of a split was sealed."""
        return (self.folder / f"sealed-{split}").exists()


def combined_progress(notes: Sequence[WorkerNote]) -> Progress | None:
    """How far all workers are with the split that most of them are at; None without notes.

    Args:
        notes: the oldest first; the last one of each worker counts.
    """
    if not notes:
        return None
    by_rank = {note.rank: note for note in notes}
    last = [by_rank[rank] for rank in sorted(by_rank)]
    splits = [note.split for note in last]
    split = max(splits, key=splits.count)
    same = [note for note in last if note.split == split]
    total = max(note.total for note in same)
    left = max(note.left for note in same)  # the first worker found most texts missing
    stages = [note.stage for note in same]
    stage = "encode" if "encode" in stages else stages[0]
    done = min(total - left + sum(note.done for note in same), total)
    return Progress(stage, split, done, total, sum(note.tokens for note in same))
