"""Several processes at one extraction: which of them this one is, and how far all of them are.

The processes are told by the environment variables of torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), whoever
started them: `--workers`, torchrun itself, or a Slurm script that sets them. They share nothing but a folder.
Work is not dealt out: each takes the next block that nobody has claimed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from featcache.errors import FeatcacheError, UsageError, restored

BOARD = "FEATCACHE_BOARD"  # where workers of one `--workers` say how far they are
LAUNCHER = "FEATCACHE_LAUNCHER"  # the process that started them
EVERY = 0.25  # seconds between two notes of one worker


@dataclass(frozen=True)
class Gang:
    """This process among those at work.

    Attributes:
        rank: 0 to size - 1.
        local_rank: among those on this machine.
        board: the folder of the notes; None: they stand beside the blocks.
        launcher: process that started this one and is missed when it ends; 0: none.
    """

    rank: int
    size: int
    local_rank: int
    board: Path | None = None
    launcher: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Gang | None:
        """What the environment says; None where this process works alone.

        Raises:
            UsageError: variables that contradict each other.
        """
        given = os.environ if environment is None else environment
        size = _number(given, "WORLD_SIZE", 1)
        if size <= 1:
            return None
        rank = _number(given, "RANK", -1)
        if not 0 <= rank < size:
            raise UsageError(f"RANK={given.get('RANK')} with WORLD_SIZE={size}", hint="0 to WORLD_SIZE - 1")
        board = given.get(BOARD)
        return cls(
            rank,
            size,
            _number(given, "LOCAL_RANK", rank),
            Path(board) if board else None,
            _number(given, LAUNCHER, 0),
        )

    @property
    def orphaned(self) -> bool:
        """Whether the process that started this one is gone."""
        return self.launcher != 0 and os.getppid() != self.launcher


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(given.get(name, default))
    except ValueError:
        raise UsageError(f"the environment variable {name} is {given[name]!r}", hint="a number") from None


@dataclass
class Note:
    """What one worker says of itself.

    Attributes:
        left: texts that were not encoded when it began with the split.
        done, tokens: encoded by it since.
    """

    rank: int
    split: str = ""
    stage: str = "load"
    total: int = 0
    left: int = 0
    done: int = 0
    tokens: int = 0


class Board:
    """The notes of all workers, in a folder; none of it matters to the result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last = 0.0

    def post(self, note: Note, *, now: bool = False) -> None:
        """Replace this worker's note, now and then; a folder that is gone is no matter."""
        if not now and time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        temporary = self.folder / f".tmp-worker-{note.rank}.json"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(note)))
            temporary.replace(self.folder / f"worker-{note.rank}-{note.split}.json")

    def notes(self) -> list[Note]:
        """What each worker said last, by rank."""
        last = {note.rank: note for _, note in sorted(self._read(), key=lambda each: each[0])}
        return [last[rank] for rank in sorted(last)]

    def notes_of(self, split: str) -> list[Note]:
        """What each worker said last of a split, though it may be at the next one by now."""
        return [note for _, note in self._read() if note.split == split]

    def _read(self) -> list[tuple[int, Note]]:
        """All notes, with the time at which they were written."""
        found = []
        for path in self.folder.glob("worker-*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append((path.stat().st_mtime_ns, Note(**json.loads(path.read_bytes()))))
        return found

    def fail(self, rank: int, error: FeatcacheError) -> None:
        """Leave word of why this worker gives up."""
        content = {"kind": type(error).__name__, "what": error.what, "hint": error.hint}
        with contextlib.suppress(OSError):
            (self.folder / f"error-{rank}.json").write_text(json.dumps(content))

    def failure(self) -> FeatcacheError | None:
        """Why a worker gave up, as the error it was."""
        for path in sorted(self.folder.glob("error-*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                return restored(**json.loads(path.read_bytes()))
        return None

    def finish(self, split: str) -> None:
        """Say that the file of a split was sealed."""
        with contextlib.suppress(OSError):
            (self.folder / f"sealed-{split}").touch()

    def finished(self, split: str) -> bool:
        return (self.folder / f"sealed-{split}").exists()


@dataclass(frozen=True)
class Together:
    """How far all workers are with one split."""

    split: str
    stage: str
    done: int
    total: int
    tokens: int


def together(notes: list[Note]) -> Together | None:
    """All workers' notes as one; of the split that most of them are at.

    The texts that were there before are those that the first of them found.
    """
    if not notes:
        return None
    splits = [note.split for note in notes]
    split = max(splits, key=splits.count)
    same = [note for note in notes if note.split == split]
    total = max(note.total for note in same)
    left = max(note.left for note in same)
    stages = [note.stage for note in same]
    stage = "encode" if "encode" in stages else stages[0]
    done = min(total - left + sum(note.done for note in same), total)
    return Together(split, stage, done, total, sum(note.tokens for note in same))
