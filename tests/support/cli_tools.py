"""The `featcache` command, called in this process, as a real process, and on a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from featcache_cli.main import main
from tests.support.forked import PIPE, ForkedProcess, be_the_command, can_fork
from tests.support.review_files import write_reviews

COMMAND = Path(sys.executable).with_name("featcache")
TRUNCATED = 16  # the longest length in `make_work`: about half of the reviews are longer


@dataclass(frozen=True)
class Result:
    """The exit code and the two output streams of one call."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


class Cli:
    """`cli("extract", "--all-splits")`: one command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: str | Path) -> Result:
        self.capsys.readouterr()
        code = main([str(part) for part in argv])
        return Result(code, *self.capsys.readouterr())

    def ok(self, *argv: str | Path) -> Result:
        """Run a command and check that it succeeds."""
        result = self(*argv)
        assert result.code == 0, (argv, result)
        return result

    def refused(self, code: int, argv: Iterable[str | Path], *words: str) -> Result:
        """Run a command and check that it fails with a message on stderr only and changes no file."""
        before = contents(Path())
        result = self(*argv)
        check_refusal(result, code, *words)
        assert contents(Path()) == before
        return result


def check_refusal(result: Result, code: int, *words: str) -> None:
    """Check that a command failed with `code`, with `words` on stderr, and with nothing on stdout."""
    assert result.code == code, result
    assert "error: " in result.err, result
    for word in words:
        assert word in result.err, (word, result.err)
    assert "Traceback" not in result.err and "defect of featcache" not in result.err, result.err
    assert result.out == ""


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder` except lock files and keys of texts."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".holder", ".keys")
    }


def plain_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
    """Set the width of the terminal, and unset the variables that switch colour on or off."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")


def make_work(folder: Path, model: Path, *, views: str = "last/cls,last/mean", rows: int = 60) -> Path:
    """Make a folder with reviews and a featcache.toml, in which every command works without flags."""
    write_reviews(folder / "reviews", rows)
    with contextlib.chdir(folder):
        argv = ["init", "--quiet", "--model", str(model), "--dataset", "reviews"]
        argv += ["--dtype", "float32", "--max-length", str(TRUNCATED), "--views", views]
        assert main(argv) == 0
    return folder


def write_rows(path: Path, rows: Iterable[tuple[Any, Any]]) -> Path:
    """Write (text, label) rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def widest(text: str) -> int:
    """Cells of the widest line, as a terminal shows them."""
    return max((cell_len(line) for line in text.splitlines()), default=0)


def edit_run(name: str, **changes: Any) -> None:
    """Change run.json of a run; a mapping is merged into the one that is there."""
    path = Path("reports") / name / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        record[key] = record[key] | value if isinstance(value, Mapping) else value
    path.write_text(json.dumps(record), encoding="utf-8")


def encoder_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a command that loads the model fails."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("featcache.backbone.load.load_backbone", refuse)


# --- real processes -----------------------------------------------------------------------------


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process that the tests start, with `changes`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return kept | {"HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"} | changes


def start(
    argv: Iterable[str | Path],
    env: dict[str, str],
    *,
    stdin: int = PIPE,
    stdout: int = PIPE,
    stderr: int = PIPE,
    forked: bool = True,
) -> ForkedProcess | subprocess.Popen[bytes]:
    """The command as a process of its own; with `forked`, it begins after the imports where it can."""
    words = [str(word) for word in argv]
    if forked and can_fork(env):
        return ForkedProcess(be_the_command, words, env, stdin=stdin, stdout=stdout, stderr=stderr)
    return subprocess.Popen(
        [COMMAND, *words], env=env, stdin=stdin, stdout=stdout, stderr=stderr, preexec_fn=interruptible
    )


def shell(*argv: str | Path, stdin: str = "", **changes: str) -> Result:
    """The command as a process of its own, once it has ended."""
    process = start(argv, environment(**changes))
    out, err = process.communicate(stdin.encode(), timeout=180)
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


class Terminal:
    """The command on a pseudo-terminal of 80 columns; with `piped_out`, stdout is a pipe."""

    def __init__(self, *argv: str, piped_out: bool = False, **changes: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        out = PIPE if piped_out else slave
        self.process = start(argv, environment(**changes), stdin=slave, stdout=out, stderr=slave)
        os.close(slave)
        self.seen = ""
        self._returned = 0  # characters of `seen` that `read_until` has given out
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self.master)

    def type(self, text: str) -> None:
        """Send keys to the command."""
        os.write(self.master, text.encode())

    def read_until(self, words: str, seconds: float = 120.0) -> str:
        """The output since the last call, up to and including `words`."""
        start, end = self._returned, time.monotonic() + seconds
        while (found := self.seen.find(words, start)) < 0:
            assert time.monotonic() < end, f"no {words!r} in {self.seen[start:]!r}"
            if not self._read(0.2) and self.process.poll() is not None:
                raise AssertionError(f"ended without {words!r}: {self.seen[start:]!r}")
        self._returned = found + len(words)
        return self.seen[start : self._returned]

    def finish(self, seconds: float = 120.0) -> int:
        """Read to the end and return the exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running after {self.seen!r}"
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.wait()

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            content = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += self._decoder.decode(content)
        return bool(content)


def interruptible() -> None:
    """In a new process: let SIGINT interrupt it, also where a shell started the tests in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# --- folders with something in them -------------------------------------------------------------


@contextlib.contextmanager
def arrow_in(folder: Path) -> Iterator[None]:
    """`datasets` keeps its Arrow files in `folder`, for fixtures that live longer than a test."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
        yield


def make_trained(folder: Path, model: Path) -> Path:
    """`make_work` with all splits extracted and a run of either kind."""
    make_work(folder / "work", model)
    with arrow_in(folder / "arrow"), contextlib.chdir(folder / "work"):
        assert main(["extract", "--all-splits", "--quiet"]) == 0
        assert main(["train-head", "--epochs", "30", "--quiet"]) == 0
        assert main(["train-head", "--head", "logistic", "--view", "last/mean", "--quiet"]) == 0
    return folder / "work"


def make_one_run(folder: Path, model: Path) -> Path:
    """`make_work` of one view with all splits extracted and one run of three epochs."""
    make_work(folder / "work", model, views="last/mean")
    with arrow_in(folder / "arrow"), contextlib.chdir(folder / "work"):
        assert main(["extract", "--all-splits", "--quiet"]) == 0
        assert main(["train-head", "--epochs", "3", "--quiet"]) == 0
    return folder / "work"
