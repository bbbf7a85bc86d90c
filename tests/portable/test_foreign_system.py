"""The command under what Windows and macOS refuse: see `tests/support/foreign_system/sitecustomize.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_tools import environment

HERE = Path(__file__).resolve().parents[1] / "support" / "foreign_system"


def python(code: str, *argv: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    """Run `code` in a Python that refuses what Windows refuses.

    Args:
        home: the folder of Hugging Face's clients. Without `fcntl` they take every lock file that another
            program has left for one that is held.
    """
    path = environment()["PYTHONPATH"]
    env = environment(PYTHONPATH=f"{HERE}:{path}", PYTHONIOENCODING="cp936", HF_HOME=str(home))
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, env=env, timeout=540)


REFUSED = {
    "import fcntl": ImportError,
    "os.fork()": AttributeError,
    "os.open('.', os.O_RDONLY)": PermissionError,
    "os.symlink('a', 'b')": OSError,
    "file = open('a'); os.replace('b', 'a')": PermissionError,
    "file = open('a'); pathlib.Path('a').unlink()": PermissionError,
    "open('AUX.txt', 'w')": OSError,
    "pathlib.Path('ends.').mkdir()": OSError,
    "os.mkdir('a:b')": OSError,
    "open('A', 'x')": FileExistsError,
    "open('n' * 250, 'w')": FileNotFoundError,
    "open('utf8').read()": UnicodeDecodeError,
}


def test_the_harness_refuses_what_windows_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").write_text("")
    (tmp_path / "utf8").write_bytes("很".encode() + b"\xff\xff")
    code = (
        "import os, pathlib, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for statement in sys.argv[2:]:\n"
        "    try: exec(statement, {'os': os, 'pathlib': pathlib})\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "    else: print('done')\n"
    )
    told = python(code, str(tmp_path), *REFUSED, home=tmp_path).stdout.decode().split()
    found = dict(zip(REFUSED, told, strict=True))
    names = {"ModuleNotFoundError": "ImportError"}
    assert {line: names.get(name, name) for line, name in found.items()} == {
        line: kind.__name__ for line, kind in REFUSED.items()
    }


def test_files_are_written_and_locked_durably(tmp_path: Path) -> None:
    """The short form of the story below, without torch."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from featcache.system.durable import make_folder, publish, write_file\n"
        "from featcache.system.lock import discard_lock, is_locked, lock_path, locked\n"
        "folder = Path(sys.argv[1]) / 'new' / 'cache'\n"
        "make_folder(folder)\n"
        "target = folder / 'a.h5'\n"
        "lock_path(target).touch()\n"  # as another system leaves it
        "with locked(target):\n"
        "    assert is_locked(target)\n"
        "    write_file(folder / 'part', b'1')\n"
        "    assert publish(folder / 'part', target)\n"
        "    write_file(folder / 'part', b'2')\n"
        "    assert not publish(folder / 'part', target)\n"
        "    write_file(target, b'3')\n"
        "assert target.read_bytes() == b'3' and not is_locked(target)\n"
        "print('房间')\n"
    )
    done = python(code, str(tmp_path), home=tmp_path)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout == "房间\n".encode("cp936")


STORY = (
    "extract --all-splits --max-length 9 --quiet",
    "train-head --epochs 2 --max-length 9 --quiet",
    "predict --input in.txt --output out.jsonl --quiet",
    "predict 很好 --quiet",
    "report --quiet",
    "cache verify",
    "extract --split train --max-length 9 --force --quiet",
    "cache gc",
    "cache rm --all",
    "init --force --quiet",
)


@pytest.mark.portable
def test_the_main_job_works(trained: Path, tmp_path: Path) -> None:
    (trained / "in.txt").write_bytes("很好\n很差\n".encode())
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    for line in sys.argv[1:]:\n"
        "        assert main(line.split()) == 0, line\n"
    )
    done = python(code, *STORY, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
