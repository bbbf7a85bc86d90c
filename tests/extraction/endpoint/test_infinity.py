"""A server that others made, where it is installed: `FEATCACHE_INFINITY` names its command `infinity_emb`."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import urllib3

from featcache.cache.catalog import CacheFile
from featcache.extraction.api import extract_splits, find_features
from featcache.settings import load_settings
from tests.support.source_files import jsonl, write

COMMAND = os.environ.get("FEATCACHE_INFINITY")
STARTS = 120.0  # seconds
pytestmark = [
    pytest.mark.skipif(not COMMAND, reason="FEATCACHE_INFINITY names no infinity_emb"),
    pytest.mark.allow_hosts(["127.0.0.1"]),
]


@contextmanager
def infinity(model: Path) -> Iterator[str]:
    """The `--model` of a server with the model in this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(COMMAND), "v2", "--model-id", str(model), "--served-model-name", "tiny", "--engine", "torch"]
    words += ["--device", "cpu", "--no-bettertransformer", "--no-model-warmup", "--url-prefix", "/v1"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    own = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    process = subprocess.Popen(words, env=os.environ | own, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + STARTS
        while True:
            assert process.poll() is None and time.monotonic() < until
            try:
                urllib3.request("GET", f"http://127.0.0.1:{port}/v1/models", retries=False, timeout=2.0)
                break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.5)
        yield f"openai+http://127.0.0.1:{port}/v1#tiny"
    finally:
        process.terminate()
        process.wait(30)


def test_infinity_gives_the_vectors_of_the_backbone_on_this_machine(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"text": f"good film {number} 好看", "label": number % 2} for number in range(300)]
    write(tmp_path / "data" / "train.jsonl", jsonl(rows))
    write(tmp_path / "data" / "validation.jsonl", jsonl(rows[:10]))

    def extracted(model: str, view: str) -> CacheFile:
        own = {"model": model, "dataset": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"),
               "views": [view], "storage": "float32"}  # fmt: skip
        settings = load_settings(own, path=os.devnull)
        extract_splits(settings, ["train"])
        return find_features(settings, "train")

    folder = tiny("bert")
    with infinity(folder) as model:
        by_server = extracted(model, "vector").features("vector").x
    here = extracted(str(folder), "last/mean-normalized")
    ours = here.features(here.stored_view("last/mean-normalized")).x
    lengths = np.linalg.norm(by_server, axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)
    np.testing.assert_allclose(by_server, ours, atol=1e-3)
