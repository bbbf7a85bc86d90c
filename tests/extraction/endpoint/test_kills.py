"""Processes killed while an endpoint answers: no row is lost or there twice, and no file has the key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featcache.extraction.api import find_features
from featcache.extraction.endpoint.canary import TEXTS
from featcache.settings import load_settings
from tests.support.cli_tools import COMMAND
from tests.support.endpoint_server import server_process, vector_of
from tests.support.source_files import jsonl, write

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]
SECRET = "sk-never-on-disk-8b1f"


@pytest.mark.parametrize(
    "units",
    [(2,), pytest.param((2, 4, 6), marks=pytest.mark.hostile("wrong vectors"))],
    ids=["once", "three times"],
)
def test_kills_lose_no_row_and_double_none(tmp_path: Path, units: tuple[int, ...]) -> None:
    long = "and so on " * 60
    rows = [{"text": f"good film {number} {long}", "label": number % 2} for number in range(1500)]
    write(tmp_path / "data" / "train.jsonl", jsonl(rows))
    write(tmp_path / "data" / "validation.jsonl", jsonl(rows[:4]))
    log, kills = tmp_path / "log", 0
    with server_process(log, latency=0.04, errors=0.02) as model:
        command = [COMMAND, "extract", "--split", "train", "--model", model, "--connections", "4", "--json"]
        command += ["--dataset", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache"), "--debug"]
        environment = os.environ | {"FEATCACHE_API_KEY": SECRET}
        for committed in units:
            process = subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            until = time.monotonic() + 60
            while len(list(tmp_path.rglob("block-*.safetensors"))) < committed and time.monotonic() < until:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert kills == len(units) and json.loads(done.stdout)["splits"][0]["rows"] == 1500
    own = {"model": model, "dataset": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    settings = load_settings(own, path="/dev/null")
    found = find_features(settings, "train").features("vector").x
    assert np.allclose(found, np.stack([vector_of(row["text"]) for row in rows]), atol=1e-3)
    times = Counter(json.loads(line) for line in log.read_text().splitlines())
    assert set(times) == {row["text"] for row in rows} | set(TEXTS)
    twice = sum(times[row["text"]] - 1 for row in rows)
    assert twice < kills * 700  # what was on its way at each kill alone is asked for again: four units
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 2 and not any(SECRET.encode() in path.read_bytes() for path in files)
    assert SECRET not in done.stdout + done.stderr
