"""The README's commands and Python, run as they stand, on a tiny backbone and small files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.settings import load_settings
from featcache.settings_file import to_toml
from featcache_cli.main import main

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("featcache ")]


@pytest.fixture
def folder(
    tmp_path: Path, tiny: Callable[[str], Path], reviews: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder whose featcache.toml names a tiny model and small files."""
    files = {split: str(path) for split, path in reviews.items()}
    settings = load_settings({"model": str(tiny("bert")), "data_files": files, "epochs": 5}, path="/dev/null")
    (tmp_path / "featcache.toml").write_text(to_toml(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_commands_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = commands()
    assert {words[1] for words in typed} >= {"extract", "train-head", "compare", "predict"}
    for words in typed:
        assert main(words[1:]) == 0, (words, capsys.readouterr().err)
    assert len(list((folder / "reports").glob("*/run.json"))) == 4


def test_readme_python_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "linear-last-cls-1" in printed
    assert "(60, 32)" in printed
