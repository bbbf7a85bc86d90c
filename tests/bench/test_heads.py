"""`bench_heads` on a small matrix."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from featcache.bench.heads.measure import _scikit_learn, bench_heads, made_up
from featcache.system.progress import Progress

NAMES = {
    "tutorial_dataloader", "one_head", "heads_64", "exact_path_20",
    "sklearn_lbfgs_C0.01", "exact_C0.01", "sklearn_lbfgs_C1", "exact_C1",
    "compared_path_20", "chosen_penalty", "sklearn_path_20",
}  # fmt: skip


def test_bench_heads_times_every_contender_and_solvers_reach_the_same_minimum() -> None:
    told: list[Progress] = []
    found = bench_heads(rows=400, width=16, epochs=2, device="cpu", on_progress=told.append)
    beside = {now.stage for now in told if "on the CPU" in now.stage}
    assert set(found.seconds) == {now.stage for now in told} - beside == NAMES
    assert found.on_device is not None and len(found.on_device.heads) == len(beside)
    assert all(head.device_seconds > 0 and head.apart == 0 for head in found.on_device.heads)
    assert all(seconds > 0 for seconds in found.seconds.values())
    for C in ("0.01", "1"):
        ours, theirs = found.losses[f"exact_C{C}"], found.losses[f"sklearn_lbfgs_C{C}"]
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert ours <= theirs + 1e-7
    ratio = found.ratios["tutorial_over_one_head"]
    seconds = found.seconds
    assert ratio == pytest.approx(seconds["tutorial_dataloader"] / seconds["one_head"], rel=0.05)


def test_made_up_features_can_be_learnt_but_not_perfectly() -> None:
    x, y = made_up(2000, 32, 3)
    assert x.dtype == np.float32 and set(y.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(x.std(0), 1, atol=1e-3)
    assert 0.3 < _scikit_learn(x, y, 1.0) < np.log(3) * 0.8


@pytest.mark.slow
def test_bench_heads_from_the_command_line() -> None:
    command = [sys.executable, "-m", "featcache_cli.main", "bench", "heads"]
    small = ["--rows", "200", "--width", "8", "--epochs", "1", "--quiet"]
    made = subprocess.run([*command, *small, "--json"], capture_output=True, text=True, check=True)
    assert set(json.loads(made.stdout)["seconds"]) == NAMES
    shown = subprocess.run(
        [*command, *small], capture_output=True, text=True, check=True, env={"COLUMNS": "80"}
    ).stdout
    assert "64 heads" in shown and max(map(len, shown.splitlines())) <= 80
    refused = subprocess.run([*command, "--rows", "3"], capture_output=True, text=True)
    assert refused.returncode == 2 and "at least 100" in refused.stderr
