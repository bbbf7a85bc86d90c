"""Bars for callers from Python: drawn where somebody looks, and complete at the end."""

from __future__ import annotations

import pytest

from featcache.system.progress import Progress
from featcache.workflow.progress_bars import ProgressBars


def test_bars_end_at_their_total(capsys: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars(shown=True)
    for done in (0, 3, 10, 10):
        bars(Progress("encode", "train", done=done, total=10))
    bars(Progress("note", text="one line"))
    bars(Progress("seal", done=1, total=2))  # a stage without a bar
    seen = capsys.readouterr().err
    assert "extract train" in seen and "10/10" in seen and "one line\n" in seen and "seal" not in seen
    assert seen.count("10/10") == 1


def test_nothing_is_drawn_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars()
    bars(Progress("encode", "train", done=1, total=2))
    bars(Progress("note", text="one line"))
    assert capsys.readouterr() == ("", "")
