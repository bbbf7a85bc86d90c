"""Pickled weights: read by another process, converted once, and nothing in them runs."""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featcache.backbone.model_files import pickled_weights, read_pickle
from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.model_files.pickled_weights import CONVERTED, loadable_folder
from featcache.errors import BackboneError
from featcache.fingerprint import file_hash
from featcache.system.downloads import evict
from tests.support.pickled import RunsCommand, pickled
from tests.support.stock import assert_features, encoder, load, mixed, settings_of, stock

Folder = Callable[[str], Path]


pytestmark = [pytest.mark.usefixtures("mirror"), pytest.mark.bad_input("code run")]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, each time; read in this process, which is faster."""
    found: list[str] = []

    def read(source: Path, target: Path) -> Any:
        found.append(source.name)
        return read_pickle.main(str(source), str(target))

    monkeypatch.setattr(pickled_weights, "_read_in_another_process", read)
    monkeypatch.setattr(read_pickle, "limit_memory", lambda more: None)
    return found


def found_in(folder: Path) -> ModelFiles:
    return find_model(settings_of(folder))


def test_features_are_those_of_the_safetensors(tiny: Folder, tmp_path: Path) -> None:
    folder, texts = pickled(tiny("bert"), tmp_path / "old"), mixed()
    assert_features(encoder(load(folder))(texts).views, stock(tiny("bert")).matrix(texts), 3)


def test_features_from_shards(tiny: Folder, tmp_path: Path, reads: list[str]) -> None:
    folder, texts = pickled(tiny("bert"), tmp_path / "old", shards=2), mixed()
    assert_features(encoder(load(folder))(texts).views, stock(tiny("bert")).matrix(texts), 3)
    assert reads == ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    load(folder)
    assert len(reads) == 2  # the copy is there


def test_the_fingerprint_takes_the_file_as_published(tiny: Folder, tmp_path: Path, reads: list[str]) -> None:
    folder = pickled(tiny("bert"), tmp_path / "old")
    files = found_in(folder)
    assert files.hashes["pytorch_model.bin"] == file_hash(folder / "pytorch_model.bin")
    assert {name for name in files.hashes if "tokenizer" not in name} == {"config.json", "pytorch_model.bin"}
    assert not reads  # hashing reads no pickle
    copy = loadable_folder(files)
    assert found_in(folder).hashes == files.hashes
    written = json.loads((copy / CONVERTED).read_text())
    assert written["source"] == files.hashes
    assert written["files"]["model.safetensors"] == file_hash(copy / "model.safetensors")


def test_safetensors_are_preferred(tiny: Folder, tmp_path: Path, reads: list[str]) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert loadable_folder(found_in(folder)) == folder
    assert found_in(folder).hashes == found_in(tiny("bert")).hashes
    assert not reads


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", CONVERTED])
def test_a_damaged_copy_is_made_again(tiny: Folder, tmp_path: Path, reads: list[str], damage: str) -> None:
    files = found_in(pickled(tiny("bert"), tmp_path / "old"))
    folder = loadable_folder(files)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / damage).write_bytes(b"{}")
    assert loadable_folder(files) == folder and len(reads) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / damage).unlink()  # the mirror was too large
    assert loadable_folder(files) == folder and len(reads) == 3


def test_converted_weights_are_evicted_with_the_mirror(
    tiny: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    folder = pickled(tiny("bert"), tmp_path / "old")
    converted = loadable_folder(found_in(folder))
    monkeypatch.setenv("FEATCACHE_MIRROR_SIZE", "1KB")
    for path in converted.iterdir():
        os.utime(path, (time.time() - 3600, 0))
    evict()
    assert not converted.exists()


def test_a_file_that_changes_before_it_is_read(
    tiny: Folder, tmp_path: Path, mirror: Path, reads: list[str]
) -> None:
    folder = pickled(tiny("bert"), tmp_path / "old")
    files = found_in(folder)
    torch.save({"other": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin was changed while it was read"):
        loadable_folder(files)
    assert not list(mirror.rglob("*.safetensors"))


def test_a_pickle_that_runs_a_command(tiny: Folder, tmp_path: Path) -> None:
    folder, trace = pickled(tiny("bert"), tmp_path / "old"), tmp_path / "trace"
    torch.save({"weight": RunsCommand(trace)}, folder / "pytorch_model.bin")
    said = rf"asks for {os.system.__module__}\.system.*Nothing in it was run"
    with pytest.raises(BackboneError, match=said) as caught:
        load(folder)
    assert "save_pretrained" in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"w": torch.ones(2), "args": argparse.Namespace(lr=1)}, r"asks for argparse\.Namespace"),
        ({"w": torch.ones(2), "epoch": 3}, "'epoch' is a int and no tensor"),
        ({"model": {"w": torch.ones(2)}}, "'model' is a dict and no tensor"),
        ([torch.ones(2)], "holds a list, not weights by name"),
        ({}, "holds a dict, not weights by name"),
        ({1: torch.ones(2)}, "one of its names is a int"),
        ({"w": torch.eye(3).to_sparse()}, "of a kind that is not used for weights"),
        ({"w": torch.ones(1).expand(1 << 40)}, "would take 4,398,046,511,104 bytes"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(read_pickle.MoreThanTensors, match=reason), open(tmp_path / "a.bin", "rb") as file:
        read_pickle.checked(read_pickle.read(file), 1 << 20)


def test_tied_weights_become_two_tensors() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    made = read_pickle.separate(collections.OrderedDict(a=table, b=table, c=table.T))
    assert torch.equal(made["b"], table) and torch.equal(made["c"], table.T)
    assert len({value.data_ptr() for value in made.values()}) == 3


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_pickle(tiny: Folder, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(Exception) as caught, open(tmp_path / "a.bin", "rb") as file:
        read_pickle.checked(read_pickle.read(file), 1 << 20)
    assert "\n" not in read_pickle.first_line(caught.value)


@pytest.mark.hostile
def test_a_pickle_that_wants_all_memory(tiny: Folder, tmp_path: Path) -> None:
    """A storage of 8 GB that the file does not have: the process that reads it may not allocate it."""
    folder = pickled(tiny("bert"), tmp_path / "old")
    path = folder / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    numbers, more = b"cpuq\x06K\x04N", b"cpuq\x06\x8a\x05\x00\x00\x00\x80\x00N"
    assert numbers in content
    path.write_bytes(content.replace(numbers, more))
    with pytest.raises(BackboneError, match=r"cannot read .*pytorch_model\.bin.*allocate"):
        load(folder)


def test_the_reader_stands_alone() -> None:
    source = Path(read_pickle.__file__).read_text(encoding="utf-8")
    assert "import featcache" not in source and "from featcache" not in source
