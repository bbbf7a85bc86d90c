"""`--workers N`: several processes on this machine at one extraction, one a GPU, or a group of cores each.

The processes are started as torchrun would start them and share the work as those of torchrun do (`gang`);
here they are only watched. `python -m featcache.extraction.local_workers FOLDER` is one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import BackboneError, FeatcacheError, UsageError
from featcache.extraction.api import Extracted, Job, extract_splits, extracted
from featcache.extraction.worker_group import BOARD, LAUNCHER, Board, Gang, together
from featcache.settings import Settings, load_settings, to_toml
from featcache.system.machine import available_cores, core_groups, keep_to
from featcache.system.progress import OnProgress, Progress

CORES = "FEATCACHE_CORES"  # the cores of a worker: 0,1,2
CORES_A_WORKER = 4  # with `auto`, on processors
POLL = 0.1  # seconds between two looks at the workers
PATIENCE = 10.0  # seconds a worker is given to end


def worker_count(asked: int | str, device: str) -> int:
    """How many workers `asked` means: a number, or `auto`.

    Args:
        device: as the settings have it.

    Raises:
        UsageError: no such number, or more than there are GPUs or cores.
    """
    cores, gpus = len(available_cores()), _gpus() if device in ("auto", "cuda") else 0
    if asked == "auto":
        return gpus or max(1, cores // CORES_A_WORKER)
    try:
        count = int(asked)
    except ValueError:
        count = 0
    if count < 1:
        raise UsageError(f"--workers {asked}: no number of workers", hint="auto, or 1 and more")
    if device not in ("auto", "cuda", "cpu") and count > 1:
        raise UsageError(f"--workers {asked} on --device {device}", hint="leave --device out")
    most, what = (gpus, "GPUs") if gpus else (cores, "cores")
    if count > most:
        raise UsageError(f"--workers {asked}: there are {most} {what} here", hint=f"--workers {most}")
    return count


def extract_with_workers(
    settings: Settings,
    splits: Sequence[str],
    workers: int | str,
    report: OnProgress | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
) -> list[Extracted]:
    """As `extract_splits`, by several processes.

    A worker that is killed costs the block it was at; the others take over. One that meets an error ends all.

    Raises:
        FeatcacheError: what a worker raised; committed blocks are kept.
        BackboneError: all workers were killed.
    """
    count = worker_count(workers, settings.backbone.device)
    tell = report or (lambda _: None)
    job = Job(settings, force=force)
    known = {} if force else {split: job.find_by_request(split) for split in splits}
    missing = [split for split in splits if known.get(split) is None]
    if count == 1 or not missing:
        return extract_splits(settings, splits, report, force=force, wait=wait)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        board = Path(folder)
        (board / "settings.toml").write_text(to_toml(settings), encoding="utf-8")
        (board / "order.json").write_text(json.dumps({"splits": missing, "force": force}))
        tell(Progress("note", missing[0], text=f"{count} workers of {_share(count, settings)} each"))
        with _running(count, board) as crew:
            crew.watch(tell)
        results = _results(board)
    seconds = time.perf_counter() - began
    files = {split: job.cache.file(Path(one["path"])) for split, one in results.items()}
    made = {
        split: extracted(files[split], split, seconds, one["encoded"], tuple(one["notes"]))
        for split, one in results.items()
    }
    return [known.get(split) or made[split] for split in splits]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _share(count: int, settings: Settings) -> str:
    if settings.backbone.device in ("auto", "cuda") and _gpus():
        return "one GPU"
    cores = len(core_groups(available_cores(), count)[0])
    return f"{cores} cores" if cores > 1 else "one core"


# -- the workers, as seen from outside ------------------------------------------------------------


@dataclass
class _Crew:
    """The workers that are running.

    Attributes:
        told: what was said already.
    """

    board: Path
    running: dict[int, subprocess.Popen[bytes]]
    killed: list[int] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def watch(self, tell: OnProgress) -> None:
        """Until all have ended; a worker's error ends the others and is raised."""
        while self.running:
            for rank, process in list(self.running.items()):
                code = process.poll()
                if code is not None:
                    del self.running[rank]
                    self._ended(rank, code, tell)
            self._show(tell)
            time.sleep(POLL)

    def _ended(self, rank: int, code: int, tell: OnProgress) -> None:
        if code == 0:
            return
        if code > 0:
            raise Board(self.board).failure() or BackboneError(
                f"worker {rank} ended with {code}: {self._last_line(rank)}"
            )
        self.killed.append(rank)
        what = f"worker {rank} was killed (signal {-code})"
        if not self.running and not _results(self.board):
            raise BackboneError(
                f"{what}, and no other is left",
                hint="was memory short? finished blocks are kept: run the same command again",
            )
        tell(Progress("note", "", text=f"{what}; the others go on with its work"))

    def _last_line(self, rank: int) -> str:
        lines = (self.board / f"stderr-{rank}.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _show(self, tell: OnProgress) -> None:
        for path in sorted(self.board.glob("notes-*.txt")):
            for text in path.read_text(encoding="utf-8").splitlines():
                if text not in self.told:
                    self.told.add(text)
                    tell(Progress("note", "", text=text))
        now = together(Board(self.board).notes())
        if now:
            tell(Progress(now.stage, now.split, now.done, now.total, now.tokens))

    def stop(self) -> None:
        """End those that are still running."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        for process in self.running.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _running(count: int, board: Path) -> Iterator[_Crew]:
    crew = _Crew(board, {})
    try:
        for rank, cores in enumerate(core_groups(available_cores(), count)):
            with open(board / f"stderr-{rank}.txt", "wb") as errors:
                crew.running[rank] = subprocess.Popen(
                    [sys.executable, "-m", "featcache.extraction.local_workers", str(board)],
                    env=_environment(rank, count, cores, board),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
        yield crew
    finally:
        crew.stop()


def _environment(rank: int, count: int, cores: Sequence[int], board: Path) -> dict[str, str]:
    """That of this process, with what torchrun sets."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": str(len(cores)),
        CORES: ",".join(map(str, cores)),
        BOARD: str(board),
        LAUNCHER: str(os.getpid()),
    }


def _results(board: Path) -> dict[str, dict[str, Any]]:
    """What the workers that came to the end say of each split; of each, the one that knows of most work."""
    best: dict[str, dict[str, Any]] = {}
    for path in sorted(board.glob("result-*.json")):
        with contextlib.suppress(OSError, ValueError):
            for split, one in json.loads(path.read_bytes()).items():
                best[split] = max(best.get(split, one), one, key=lambda each: int(each["encoded"]))
    return best


# -- a worker -------------------------------------------------------------------------------------


def main(folder: str) -> int:
    """Be one worker; the exit code."""
    board = Path(folder)
    gang = Gang.of_environment()
    assert gang is not None
    keep_to([int(core) for core in os.environ.get(CORES, "").split(",") if core])

    def report(event: Progress) -> None:
        if event.stage == "note":
            with open(board / f"notes-{gang.rank}.txt", "a", encoding="utf-8") as file:
                file.write(event.text.replace("\n", " ") + "\n")

    try:
        order = json.loads((board / "order.json").read_bytes())
        settings = load_settings(path=board / "settings.toml")
        results = extract_splits(settings, order["splits"], report, force=order["force"])
    except FeatcacheError as error:
        Board(board).fail(gang.rank, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    content = {
        one.split: {"path": str(one.path.absolute()), "encoded": one.encoded, "notes": one.notes}
        for one in results
    }
    temporary = board / f".tmp-{gang.rank}"
    temporary.write_text(json.dumps(content))
    temporary.replace(board / f"result-{gang.rank}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
