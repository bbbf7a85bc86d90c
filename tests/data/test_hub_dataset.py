"""Datasets of a hub: a commit and its rows, from a hub on loopback or from this disk, in real processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.loopback_hub import Broken, LoopbackHub, Silence, Status

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.bad_input]

NAME = "some/reviews"
LOAD = """
import json, os, sys
exec(os.environ.get("FIRST", ""))
from featcache.data.split import describe_source, load_splits
from featcache.errors import FeatcacheError
from featcache.settings import DataSettings
from featcache.system.hub.listener import listening
answers = []
for name in sys.argv[2:]:
    notes, received, answer = [], [], {}
    def hear(event):
        (notes if event.stage == "note" else received).append(event.text or [event.done, event.total])
    with listening(hear):
        data = DataSettings(dataset=name, dataset_revision=sys.argv[1] or None)
        try:
            source = describe_source(data, seed=0)
            answer["commit"] = source and source["commit"]
            answer["texts"] = load_splits(data, ["test"], seed=0)["test"].texts(slice(None))
        except FeatcacheError as error:
            answer |= {"error": str(error), "code": error.exit_code}
    answers.append(answer | {"notes": notes, "received": received[-1:]})
print(json.dumps(answers))
"""


@dataclass
class Loaded:
    """What one process found; `requests` are those that it made."""

    commit: str | None = None
    texts: list[str] | None = None
    error: str = ""
    code: int = 0
    notes: tuple[str, ...] = ()
    received: tuple[Any, ...] = ()
    requests: tuple[str, ...] = ()


def load(hub: LoopbackHub, home: Path, name: str = NAME, revision: str = "", **variables: str) -> Loaded:
    before = len(hub.requests)
    (found,) = load_all(hub, home, [name], revision, **variables)
    found.requests = tuple(hub.requests[before:])
    return found


def load_all(
    hub: LoopbackHub, home: Path, names: list[str], revision: str = "", **variables: str
) -> list[Loaded]:
    """Load datasets in one process."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, revision, *names],
        env=os.environ | hub.environment(home, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [Loaded(**one) for one in json.loads(done.stdout)]
    for word in ("unexpected", "defect", "Traceback"):
        assert word not in done.stdout
    return found


def dataset(mark: str, rows: int = 12) -> dict[str, bytes]:
    """A repository with train and test; `mark` is in every text."""
    files = {"README.md": b"---\nlicense: mit\n---\n"}
    for split in ("train", "test"):
        texts = [f"{mark} {row}" if split == "test" else f"{mark} {row} {row**20}" for row in range(rows)]
        table, file = pa.table({"text": texts, "label": [row % 2 for row in range(rows)]}), io.BytesIO()
        pq.write_table(table, file)
        files[f"data/{split}-00000-of-00001.parquet"] = file.getvalue()
    return files


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as started:
        yield started


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the clients keep after they have loaded `dataset("a")`; not to be changed."""
    home = tmp_path_factory.mktemp("on-disk")
    with LoopbackHub() as started:
        started.add("dataset", NAME, dataset("a"))
        assert load(started, home).error == ""
    return home


@pytest.fixture
def home(on_disk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(on_disk, tmp_path / "home", symlinks=True))


def test_a_dataset_is_loaded_at_its_commit_and_then_from_this_disk(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add("dataset", NAME, dataset("a"))
    first = load(hub, tmp_path)
    assert (first.commit, first.error) == (commit, "")
    assert first.texts is not None and first.texts[:2] == ["a 0", "a 1"]
    assert len(first.notes) == 1 and f"commit {commit[:12]}" in first.notes[0]
    size = sum(map(len, dataset("a").values()))
    assert first.received == [[size, size]]
    assert not any("datasets-server" in line or line.startswith("GET /info") for line in first.requests)
    again = load(hub, tmp_path)
    assert (again.texts, again.notes) == (first.texts, [])
    assert set(again.requests) == {f"GET /api/datasets/{NAME}?blobs=true"}  # the commit, nothing else


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_commit_that_is_on_this_disk_needs_no_network(hub: LoopbackHub, home: Path, offline: str) -> None:
    hub.fail(".", Silence())
    commit = hub.add("dataset", NAME, dataset("a"))
    found = load(hub, home, revision=commit, HF_HUB_OFFLINE=offline)
    assert (found.commit, found.requests, found.notes) == (commit, (), [])
    assert found.texts is not None and found.texts[0] == "a 0"


def test_a_silent_hub_gives_way_to_the_copy_on_this_disk(hub: LoopbackHub, home: Path) -> None:
    commit = hub.add("dataset", NAME, dataset("a"))
    hub.fail(".", Silence())
    found = load(hub, home)
    assert (found.commit, found.error) == (commit, "")
    assert len(found.requests) == 1  # asked once, though two questions need its answer
    assert len(found.notes) == 1
    for words in (
        hub.url,
        "does not answer within 1 s",
        "the copy of some/reviews on this disk",
        commit[:12],
    ):
        assert words in found.notes[0]


def test_without_a_copy_the_error_names_the_ways_out(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(".", Silence())
    found = load(hub, tmp_path)
    assert (found.commit, found.texts, found.code) == (None, None, 3)
    for way in ("HF_ENDPOINT=", "HF_HUB_OFFLINE=1", "--dataset FOLDER", "featcache demo", "does not answer"):
        assert way in found.error


@pytest.mark.bad_input("wrong vectors")
def test_rows_of_another_commit_are_never_taken_for_those_that_were_asked_for(
    hub: LoopbackHub, home: Path
) -> None:
    """`datasets` itself takes what it prepared last when its requests fail, whatever commit that was."""
    old = hub.add("dataset", NAME, dataset("a"))
    new = hub.add("dataset", NAME, dataset("b"))
    hub.fail(f"{new}.*README", Status(404))
    found = load(hub, home)
    assert (found.commit, found.texts, found.code) == (new, None, 3)
    assert f"another commit ({old[:12]}, wanted {new[:12]})" in found.error
    hub.faults.clear()
    assert load(hub, home).texts == [f"b {row}" for row in range(12)]
    assert load(hub, home, revision=old).texts == [f"a {row}" for row in range(12)]


ANSWERS = {
    "gated": (
        Status(403, {"X-Error-Code": "GatedRepo"}),
        ("only to those who asked for access", "hf auth login"),
    ),
    "login": (Status(401), ("wants a login", "hf auth login")),
    "nothing": (Status(404), ("404",)),
    "busy": (Status(429, {"Retry-After": "300"}), ("too many requests (429)", "wait 300 s")),
    "fault": (Status(500), ("fault of its own (500",)),
    "unavailable": (Status(503, {"Retry-After": "300"}), ("503",)),
    "page": (Status(200, {"Content-Type": "text/html"}, b"<html>log in</html>"), ("no hub's", "login page")),
    "number": (Status(200, {}, b'{"id": "x", "sha": 3}'), ("does not say which commit",)),
    "list": (Status(200, {}, b"[1, 2]"), ("no hub's",)),
    "bytes": (Status(200, {"Content-Encoding": "gzip"}, b"no gzip"), ("no hub's",)),
    "reset": (Broken(3), ("breaks the connection off",)),
    "circle": (Status(307, {"Location": "/api/datasets/some/circle"}), ("circle",)),
}


def test_every_answer_is_one_sentence(hub: LoopbackHub, tmp_path: Path) -> None:
    for name, (answer, _) in ANSWERS.items():
        hub.add("dataset", f"some/{name}", {"README.md": b""})
        hub.fail(f"/api/datasets/some/{name}", answer)
    found = load_all(hub, tmp_path, [f"some/{name}" for name in ANSWERS])
    for one, (name, (_, words)) in zip(found, ANSWERS.items(), strict=True):
        assert one.code == 3
        for word in (f"cannot fetch the dataset some/{name}", *words):
            assert word in one.error.splitlines()[0] + (one.error.splitlines()[1]), one.error


@pytest.mark.hostile
@pytest.mark.parametrize("how", ["reset", "end", "stall"])
def test_a_body_that_breaks_off_is_resumed(hub: LoopbackHub, tmp_path: Path, how: str) -> None:
    hub.add("dataset", NAME, dataset("a", rows=2_000))
    hub.fail("^GET .*train.*parquet", Broken(10_000, how), times=1)
    # The client writes pieces of 10 MB, and goes on after the last of them.
    small = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 5_000"
    found = load(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1", FIRST=small)
    assert (found.error, len(found.texts or ())) == ("", 2_000)
    assert hub.ranges == ["bytes=10000-"]
    assert "goes on where it was" in found.notes[-1]


@pytest.mark.hostile
def test_a_body_that_never_goes_on_ends(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("dataset", NAME, dataset("a"))
    hub.fail("^GET .*parquet", Broken(0, "stall"))
    found = load(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert found.code == 3 and "does not answer" in found.error
    assert sum("train" in line for line in found.requests) < 6  # three silences, not six with pauses


@pytest.mark.hostile
def test_a_renamed_dataset_is_found(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add("dataset", NAME, dataset("a"))
    hub.rename("dataset", NAME, "somebody/else")
    found = load(hub, tmp_path)
    assert (found.commit, found.error) == (commit, "")


def test_another_configuration_is_not_taken_for_the_default(hub: LoopbackHub, tmp_path: Path) -> None:
    card = b"""---
configs:
- config_name: zh
  data_files: [{split: test, path: zh.csv}]
- config_name: en
  data_files: [{split: test, path: en.csv}]
  default: true
---
"""
    rows = {name: f"text,label\n{name} 1,0\n{name} 2,1\n".encode() for name in ("zh", "en")}
    hub.add("dataset", NAME, {"README.md": card, "zh.csv": rows["zh"], "en.csv": rows["en"]})
    zh, en, fr = load_all(hub, tmp_path, [f"{NAME}:zh", NAME, f"{NAME}:fr"])
    assert (zh.texts, en.texts) == (["zh 1", "zh 2"], ["en 1", "en 2"])
    assert "'fr' not found" in fr.error and f"--dataset {NAME}:CONFIG" in fr.error
    zh, en = load_all(hub, tmp_path, [f"{NAME}:zh", NAME], HF_HUB_OFFLINE="1")
    assert (zh.texts, en.texts) == (["zh 1", "zh 2"], ["en 1", "en 2"])
