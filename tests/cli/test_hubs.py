"""Commands with a model and a dataset of a hub, as real processes against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli_tools import COMMAND
from tests.support.loopback_hub import LoopbackHub, Silence, Slow

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.bad_input]

MODEL, DATASET = "somebody/bert", "somebody/reviews"
EXTRACT = ("extract", "--all-splits", "--json", "--model", MODEL, "--dataset", DATASET)


@pytest.fixture(scope="module")
def hub(tiny: Callable[[str], Path]) -> Iterator[LoopbackHub]:
    with LoopbackHub() as started:
        started.add("model", MODEL, {path.name: path.read_bytes() for path in tiny("bert").iterdir()})
        rows = "".join("text,label\n" * (not row) + f"{'坏好'[row % 2]}房间,{row % 2}\n" for row in range(20))
        started.add("dataset", DATASET, {name: rows.encode() for name in ("train.csv", "test.csv")})
        yield started


def run(hub: LoopbackHub, folder: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One command in `folder`, which has the clients' caches, too."""
    done = subprocess.run(
        [COMMAND, *argv],
        cwd=folder,
        env=os.environ | hub.environment(folder / "hf", COLUMNS="200", **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    for word in ("unexpected", "defect", "Traceback"):
        assert word not in done.stderr
    return done


@pytest.mark.hostile
def test_a_hub_falls_silent_between_two_extractions(hub: LoopbackHub, tmp_path: Path) -> None:
    first = run(hub, tmp_path, *EXTRACT)
    assert first.returncode == 0, first.stderr
    assert f"downloading {MODEL} from {hub.url}" in first.stderr
    assert f"downloading {DATASET} from {hub.url}" in first.stderr
    before = len(hub.requests)
    hub.fail(".", Silence())
    try:
        again = run(hub, tmp_path, *EXTRACT)
        assert again.returncode == 0, again.stderr
        assert len(hub.requests) == before + 1  # two things are wanted of it, and it is asked for one
        assert [one["cached"] for one in json.loads(again.stdout)["splits"]] == [True, True, True]
        lines = [line for line in again.stderr.splitlines() if "does not answer within 1 s" in line]
        assert len(lines) == 2 and MODEL in lines[0] and DATASET in lines[1]
        assert run(hub, tmp_path, *EXTRACT, "--quiet").stderr == ""
        assert run(hub, tmp_path, *EXTRACT, HF_HUB_OFFLINE="1").stderr == ""
        assert run(hub, tmp_path, "train-head", *EXTRACT[3:], "--epochs", "1").returncode == 0
        refused = run(hub, tmp_path, "extract", "--split", "train", "--model", "somebody/other")
        assert refused.returncode == 4
        for way in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "--model FOLDER"):
            assert way in refused.stderr
    finally:
        hub.faults.clear()


@pytest.mark.hostile
def test_progress_of_a_download(hub: LoopbackHub, tmp_path: Path) -> None:
    """Off a terminal there is a line now and then; on one, a bar."""
    hub.fail("^GET .*safetensors", Slow(40_000, 0.3))
    code = (
        "import sys; from featcache_cli import progress; progress.LINE_EVERY = 0.2\n"
        "from featcache_cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    try:
        done = subprocess.run(
            [
                COMMAND.with_name("python"),
                "-c",
                code,
                "plan",
                "--rows",
                "10",
                "--model",
                MODEL,
                "--tokens",
                "9",
            ],
            cwd=tmp_path,
            env=os.environ | hub.environment(tmp_path / "hf"),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        hub.faults.clear()
    assert f"download {MODEL} " in done.stderr, done.stderr
