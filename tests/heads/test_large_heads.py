"""Heads train from memory-mapped float16 features in bounded memory.

Measured is the child's anonymous memory (RssAnon), sampled while it trains: the pages of the mapped file are
the system's to drop and do not count. Two million rows: `LARGE_ROWS=2000000 pytest -m slow -s` on this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.cli_tools import environment

WIDTH = 768
CHILD = """
import json, re, sys, threading, time
from pathlib import Path
import numpy as np
from featcache.settings import HeadSettings
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import KINDS
import featcache.heads.logistic.exact, featcache.heads.linear_stack, featcache.heads.closed_form, scipy.linalg
kind, path, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
x = np.memmap(path, np.float16, mode="r", shape=(rows, 768))
y = (np.asarray(x[:, 0]) > 0).astype(np.int64)
anonymous = lambda: 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch); watcher.start()
began = time.perf_counter()
settings = HeadSettings(epochs=1, batch_size=256, lr=0.01)
train, validation = LabelledFeatures(x, y), LabelledFeatures(x[:2000], y[:2000])
fit = KINDS[kind].fit(train, validation, 2, settings, seed=0)
seconds = time.perf_counter() - began
done.set(); watcher.join()
accuracy = float((fit.best.logits(x[:2000]).argmax(1) == y[:2000]).mean())
print(json.dumps({"grown": peak[0] - before, "accuracy": accuracy, "seconds": seconds}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")


def train(kind: str, path: Path, rows: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(path), str(rows)],
        capture_output=True, text=True, timeout=3000, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write_features(path: Path, rows: int) -> None:
    dice = np.random.default_rng(0)
    with open(path, "wb") as file:
        for _ in range(0, rows, 10_000):
            file.write(dice.standard_normal((10_000, WIDTH), np.float32).astype(np.float16).tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "exact", "ridge", "discriminant", "centroid"])
def test_memory_of_every_kind_is_bounded(tmp_path: Path, kind: str) -> None:
    rows = int(os.environ.get("LARGE_ROWS", "400000"))  # 400,000 x 768: 614 MB stored, 1.2 GB in float32
    write_features(tmp_path / "x", rows)
    found = train(kind, tmp_path / "x", rows)
    print(f"\n{kind}: {rows:,} rows, {found['grown'] / 1e6:.0f} MB grown, {found['seconds']:.0f} s")
    assert found["grown"] < 700 << 20
    assert found["accuracy"] > 0.95
