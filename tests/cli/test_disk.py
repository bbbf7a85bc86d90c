"""Disks that refuse, and names that the system does not take: one message that fits the command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from featcache.system.durable import Disk
from featcache_cli.main import CONTINUES
from tests.support.cli_tools import COMMAND, Cli, environment

DISK = 5  # the exit code
RUN = "linear-last-cls-1"
WRITERS = [
    ("init --force --model m", False, "--config"),
    ("extract --all-splits --max-length 9", True, "--cache-dir"),
    ("train-head --epochs 2", False, "--reports-dir"),
    ("sweep --seeds 1", False, "--reports-dir"),
    ("report", False, "--output"),
    ("curve --sizes 20,40", True, "--reports-dir"),
    ("predict --input in.txt --output out.jsonl", True, "--output"),
    (f"export {RUN} --output model", False, "--output"),
    (f"export {RUN} --output model --format onnx", False, "--output"),
    ("cache export {train} --view last/cls --output x.npy", False, "--output"),
]
QUICK = [case for case in WRITERS if "onnx" not in case[0]]

pytestmark = [pytest.mark.usefixtures("arrow_cache"), pytest.mark.bad_input]


@contextmanager
def refusing(code: int) -> Iterator[None]:
    """A disk that takes no new bytes: every fsync fails with `code`."""

    def fsync(disk: Disk, file: BinaryIO) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Disk, "fsync", fsync)
        yield


@pytest.fixture
def here(trained: Path) -> Path:
    (trained / "in.txt").write_text("很好\n很差\n", encoding="utf-8")
    return trained


def words(line: str) -> list[str]:
    train = next(str(path) for path in Path("cache").rglob("train-*.h5"))
    return line.format(train=train).split()


@pytest.mark.parametrize(("line", "continues", "flag"), QUICK, ids=[line for line, *_ in QUICK])
def test_a_full_disk_is_told_in_words_that_fit_the_command(
    line: str, continues: bool, flag: str, here: Path, cli: Cli
) -> None:
    argv = words(line)
    with refusing(errno.ENOSPC):
        result = cli(*argv)
    assert result.code == DISK, result
    assert "error: cannot write" in result.err and "No space left on device" in result.err
    assert "free some space" in result.err and flag in result.err
    assert (CONTINUES in result.err) == continues
    assert result.out == "" and not list(here.rglob(".tmp-*"))
    cli.ok(*argv)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "write to another one"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "check the disk"),
    ],
    ids=["quota", "read-only", "too large", "not allowed", "broken"],
)
def test_the_hint_is_that_of_the_error(code: int, hint: str, here: Path, cli: Cli) -> None:
    with refusing(code):
        result = cli("train-head", "--epochs", "1")
    assert result.code == DISK and os.strerror(code) in result.err and hint in result.err, result.err


@pytest.mark.parametrize(
    "argv",
    [
        "extract --all-splits --cache-dir {name}",
        "extract --all-splits --model {name}",
        "extract --all-splits --dataset {name}",
        "train-head --reports-dir {name}",
        "predict 好 --run {name}",
        "predict --input {name}/a.csv --output out.txt",
        f"export {RUN} --output {{name}}",
        "cache ls --cache-dir {name}",
        "init --config {name}/a.toml",
    ],
)
@pytest.mark.parametrize("name", ["n" * 300, "deep/" * 1000], ids=["name", "path"])
def test_names_that_are_too_long_are_refused_in_a_sentence(
    argv: str, name: str, here: Path, cli: Cli
) -> None:
    result = cli(*argv.format(name=name).split())
    assert result.code in (3, 4, DISK), result
    assert "defect" not in result.err and "Traceback" not in result.err
    assert len(result.err) < 8000 and ("too long" in result.err or result.code != DISK), result.err


@pytest.fixture
def not_utf8(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder under a name of bytes that are no UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xc3"))
    try:
        shutil.copytree(trained, folder)
    except OSError:
        pytest.skip("the file system takes only names in UTF-8")
    monkeypatch.chdir(folder)
    return folder


def test_json_names_files_that_are_not_utf8(not_utf8: Path, cli: Cli) -> None:
    listed = cli.ok("cache", "ls", "--json", "--cache-dir", not_utf8 / "cache").json
    assert all(Path(item["path"]).is_file() for item in listed["files"]), listed
    assert len(listed["files"]) == 3


def test_commands_work_in_a_folder_that_is_not_utf8_or_name_it(not_utf8: Path, cli: Cli) -> None:
    (not_utf8 / "in.txt").write_text("很好\n", encoding="utf-8")
    cli.ok("extract", "--split", "train", "--dataset", not_utf8 / "reviews", "--max-length", "8")
    cli.ok("train-head", "--epochs", "1", "--reports-dir", not_utf8 / "reports")
    cli.ok("report", "--json")
    cli.ok("predict", "--input", not_utf8 / "in.txt", "--output", not_utf8 / "out.txt")
    result = cli("export", RUN, "--output", not_utf8 / "model")
    assert result.code == DISK and "is not UTF-8" in result.err, result


# --- real file systems --------------------------------------------------------------------------


@pytest.fixture
def small_disk(here: Path, tmp_path: Path) -> Iterator[Path]:
    """The working folder on a disk of 2 MB of its own, with room for 4 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", mount], capture_output=True)
    if made.returncode:
        pytest.skip("only root can make a disk")
    try:
        shutil.copytree(here, mount / "work")
        yield mount
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize(("line", "continues", "flag"), WRITERS, ids=[line for line, *_ in WRITERS])
def test_real_disks_that_refuse(
    line: str, continues: bool, flag: str, kind: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_disk / "work")
    argv = words(line)
    if kind == "full":
        with open(small_disk / "fill", "wb", buffering=0) as fill:
            try:
                while fill.write(bytes(4096)):
                    pass
            except OSError:
                pass
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = subprocess.run([COMMAND, *argv], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == DISK, done
    assert flag in done.stderr and (CONTINUES in done.stderr) == continues and "defect" not in done.stderr
    if kind == "full":
        assert json.loads(_output(COMMAND, "cache", "gc", "--json"))["kept"] == []


def _output(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, env=environment(), check=True).stdout
