"""Runs for the tests of reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.runs.run import Run
from tests.support.saved_runs import noisy, predictions, save

LABELS = np.arange(200) % 2


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three runs on the same rows, the second clearly better, the third a tie."""
    return [
        save(tmp_path / "reports", head, test=predictions(LABELS, noisy(LABELS, wrong, start=start)))
        for head, wrong, start in (("linear", 40, 0), ("exact", 5, 0), ("ridge", 42, 1))
    ]
