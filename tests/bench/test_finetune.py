"""`bench_finetune` on a tiny model: the document, not the speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.bench import finetune as module
from featcache.bench.finetune import bench_finetune
from featcache.errors import UsageError
from featcache.runs.run import list_runs
from featcache.system.progress import Progress
from tests.finetuning.test_finetune import settings_in


@pytest.mark.usefixtures("arrow_cache")
def test_bench_finetune_measures_the_asked_parts(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "gemm_peak", lambda *_: 1000.0)  # to measure it takes seconds
    asked = settings_in(tmp_path, tiny("bert"))
    told: list[Progress] = []
    found = bench_finetune(asked, ["top2", "all"], steps=2, epochs=1, on_progress=told.append)
    assert set(found.test_accuracy) == set(found.epoch_seconds) == {"head", "top2", "all"}
    assert all(0 <= value <= 1 for value in found.test_accuracy.values())
    assert set(found.share_of_peak) == {"top2", "all"} and found.dtype == "float32"
    assert all(0 < value < 1 for value in found.share_of_peak.values())
    assert set(found.tokens_per_second) == {"top2", "all"}
    assert all(rate > 0 for rate in found.tokens_per_second.values())
    assert found.ratios["all"] == 1 and np.isfinite(list(found.ratios.values())).all()
    assert found.prefix_seconds["top2"] > 0 == found.prefix_seconds["all"]
    assert found.rows == 60 and told
    assert list_runs(Path(asked.paths.reports_dir)) == []  # what it trains is not kept


def test_bench_finetune_refuses_an_unknown_part(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'top9'"):
        bench_finetune(settings_in(tmp_path, tiny("bert")), ["top9"])
