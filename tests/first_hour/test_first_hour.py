"""What a new user types and reads in the first hour, from one csv to a report, kept as transcripts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import featcache_cli.progress as drawing
from tests.first_hour.newcomer import TRANSCRIPTS, WIDTHS, Called, shape, walk
from tests.support.cli_tools import Cli, plain_terminal, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.mark.parametrize("language", [pytest.param("zh"), pytest.param("en", marks=pytest.mark.slow)])
def test_every_command_that_is_named_works(
    language: str, cli: Cli, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_model(folder: Path, **_: Any) -> Path:
        shutil.copytree(demo_model, folder, copy_function=os.link, dirs_exist_ok=True)
        return folder

    monkeypatch.setattr("featcache.demo.demo.build_model", build_model)
    monkeypatch.setattr(drawing, "LINE_EVERY", 1e9)  # no lines that come and go with the speed of a machine
    monkeypatch.setattr(drawing, "FIRST_LINE", 1e9)
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch, WIDTHS[language])

    def call(*argv: str) -> Called:
        answer = cli(*argv)
        return Called(argv, answer.code, answer.out, answer.err)

    first, *answers = walk(call, language)
    assert first.code == 2 and "featcache run reviews.csv" in first.err
    for answer in answers:
        assert answer.code == 0, answer
        assert widest(answer.out) <= WIDTHS[language], answer.out
    said = [answer.argv[0] for answer in answers]
    assert said[0] == "run" and {"predict", "report", "curve"} <= set(said), said
    kept = (TRANSCRIPTS / f"{language}-{WIDTHS[language]}.txt").read_text(encoding="utf-8")
    found = "\n".join(answer.text for answer in (first, *answers))
    missing = set(shape(kept)) ^ set(shape(found))
    assert not missing, f"python -m tests.first_hour.newcomer writes them again, and read them: {missing}"
