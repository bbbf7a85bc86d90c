"""Extraction on a Ray cluster gives the cache file of one machine, also when actors die."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from featcache.cluster import cluster as ray_cluster
from featcache.cluster.extract import absolute, extract_with_ray
from featcache.errors import SourceError
from featcache.extraction import partition
from featcache.settings import load_settings
from featcache.system.progress import Progress
from tests.support.extraction import Case, assert_same_file, some_texts
from tests.support.ray_runs import needs_ray


@needs_ray
@pytest.mark.enable_socket
def test_extract_with_ray_makes_the_file_of_one_machine(case: Case, alone: None) -> None:
    other = case.fresh()
    before = case.extract("train")
    said: list[Progress] = []
    (made,) = extract_with_ray(other.settings(), ["train"], said.append, workers=1)
    assert_same_file(made.path, before.path)
    assert (made.rows, made.encoded, made.cached, made.tokens) == (60, 60, False, before.tokens)
    steps = [event.done for event in said if event.stage == "encode"]
    assert steps[0] == 0 and steps[-1] == 60 and steps == sorted(steps)
    assert len(set(steps)) > 2  # reported during the work
    assert other.leftovers() == []
    record = json.loads(made.path.with_suffix(".json").read_text())["made"]
    assert (record["device"], record["dtype"], record["tokens"]) == ("cpu", "float32", before.tokens)


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_extract_with_ray_encodes_missing_units_and_raises_the_errors_of_one_machine(
    case: Case, alone: None
) -> None:
    broken = case.fresh("broken")
    rows = broken.rows()
    shutil.copy(broken.data / "train.jsonl", broken.data / "kept")

    def spoil(event: Progress) -> None:
        if event.stage == "load":  # the actors find other rows than the driver
            broken.write([*rows[:-1], {**rows[-1], "text": "好" + rows[-1]["text"]}])

    with pytest.raises(SourceError, match="not those that the driver read"):
        extract_with_ray(broken.settings(), ["train"], spoil, workers=1)
    shutil.copy(broken.data / "kept", broken.data / "train.jsonl")
    (partial,) = broken.cache.rglob("*.partial")
    there = sum(len(load_file(path)["n_tokens"]) for path in partial.glob("block-*.safetensors"))
    said: list[Progress] = []
    (made,) = extract_with_ray(broken.settings(), ["train"], said.append, workers=1)
    assert made.encoded == 60 - there
    assert_same_file(made.path, case.extract("train").path)


def test_extract_with_ray_uses_finished_files_without_ray(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.extract("train")
    monkeypatch.setattr(ray_cluster, "require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.extract.require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.extract.connected", lambda address: pytest.fail("Ray was asked"))
    (again,) = extract_with_ray(case.settings(), ["train"])
    assert again.cached


def test_absolute_changes_paths_and_not_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path)
    made = absolute(load_settings({"model": "model", "dataset": "some/hub-id", "cache_dir": "cache"}))
    assert (made.backbone.model, made.data.dataset) == (str(tmp_path / "model"), "some/hub-id")
    assert made.paths.cache_dir == str(tmp_path / "cache")
    made = absolute(load_settings({"model": "hub/id", "data_files": {"train": "train.csv"}}))
    assert made.backbone.model == "hub/id"
    assert made.data.data_files == {"train": str(tmp_path / "train.csv")}


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_extraction_survives_the_loss_of_a_node(
    case: Case, two_nodes: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "UNIT_ROWS", 40)
    case.write([{"text": text, "label": f"l{n % 2}"} for n, text in enumerate(some_texts(4000, 3))])
    other, notes = case.fresh(), []
    killed: list[int] = []

    def watch(event: Progress) -> None:
        if event.stage == "note":
            notes.append(event.text)
        if event.stage == "encode" and event.done > 300 and not killed:
            killed.append(event.done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    (made,) = extract_with_ray(other.settings(), ["train"], watch, workers=2, address=two_nodes.address)
    assert killed and made.encoded == 4000
    assert_same_file(made.path, case.extract("train").path)
    assert other.leftovers() == []
    assert capfd.readouterr().out == ""  # Ray would tell of the lost node on stdout
