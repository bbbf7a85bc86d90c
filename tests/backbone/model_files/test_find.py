"""A model's files: where they are found, and which are hashed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.backbone.model_files.find import find_model
from featcache.errors import BackboneError
from featcache.settings import BackboneSettings
from tests.support.stock import (
    assert_features,
    encoder,
    load,
    mixed,
    settings_of,
    stock,
)

Folder = Callable[[str], Path]


def hashes_of(folder: Path, **changes: Any) -> dict[str, str]:
    return find_model(settings_of(folder, **changes)).hashes


def test_find_model_in_a_local_folder(bert: Path) -> None:
    found = find_model(settings_of(bert))
    assert (found.name, found.folder, found.commit) == ("bert", bert, None)
    assert found.hashes == {
        name: hashlib.sha256((bert / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }


def test_find_model_names_folders(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert)
    assert find_model(BackboneSettings(model=".")).name == "bert"
    monkeypatch.setenv("HOME", str(bert.parent))
    assert find_model(BackboneSettings(model="~/bert")).hashes == hashes_of(bert)


def test_find_model_ignores_files_that_are_not_loaded(bert: Path) -> None:
    before = hashes_of(bert)
    for name in (
        "README.md",
        "pytorch_model.bin",
        "model.onnx",
        "other.safetensors",
        "modeling_x.py",
        "modules.json",
    ):
        (bert / name).write_text("{}", encoding="utf-8")
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    os.utime(bert / "model.safetensors", (0, 0))
    assert hashes_of(bert) == before
    assert find_model(settings_of(bert.rename(bert.with_name("moved")))).hashes == before


def test_find_model_hashes_code_that_may_run(bert: Path) -> None:
    (bert / "modeling_x.py").write_text("pass", encoding="utf-8")
    assert "modeling_x.py" not in hashes_of(bert)
    assert "modeling_x.py" in hashes_of(bert, trust_remote_code=True)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_find_model_hashes_change_with_one_byte(bert: Path, name: str) -> None:
    before = hashes_of(bert)
    with (bert / name).open("ab") as file:
        file.write(b" ")
    after = hashes_of(bert)
    assert {key for key in before if before[key] != after[key]} == {name}


@pytest.mark.parametrize(
    "name",
    [
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spiece.model",  # ALBERT, XLNet
        "sentencepiece.bpe.model",  # XLM-RoBERTa
        "tokenizer.model",  # Llama
        "spm.model",  # DeBERTa v2 and v3
        "bpe.codes",  # PhoBERT, BERTweet
    ],
)
def test_find_model_hashes_every_vocabulary(bert: Path, name: str) -> None:
    """Without tokenizer.json the tokenizer is built from these, and other words give other features."""
    (bert / "tokenizer.json").unlink()
    (bert / name).write_text("a", encoding="utf-8")
    before = hashes_of(bert)
    (bert / name).write_text("b", encoding="utf-8")
    assert hashes_of(bert) != before


def sharded(folder: Path, target: Path) -> Path:
    from transformers import AutoModel

    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    AutoModel.from_pretrained(folder).save_pretrained(target, max_shard_size="20KB")
    return target


def test_find_model_hashes_every_shard(tiny: Folder, tmp_path: Path) -> None:
    folder = sharded(tiny("bert"), tmp_path / "sharded")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    before = hashes_of(folder)
    assert set(before) == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", *shards,
    }  # fmt: skip
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"not in the index")
    assert hashes_of(folder) == before
    texts = mixed()
    assert_features(encoder(load(folder))(texts).views, stock(tiny("bert")).matrix(texts), 3)
    (folder / shards[1]).unlink()
    with pytest.raises(BackboneError, match=f"lacks the weight files {shards[1]}"):
        find_model(settings_of(folder))


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "", "\0", '{"a":' * 100_000])
def test_find_model_refuses_an_unreadable_shard_index(bert: Path, content: str) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match=r"model\.safetensors\.index\.json"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "weight_map",
    [
        None, 3, {}, [], {"a": 1}, {"a": None}, {"a": ["b"]},
        {"a": "../model-1{}"}, {"a": "/etc/passwd"}, {"a": "C:\\x{}"}, {"a": "sub/x{}"}, {"a": "C:x{}"},
        {"a": "x\0{}"}, {"a": "x.gguf"}, {"a": "..."},
    ],
)  # fmt: skip
def test_find_model_refuses_shards_outside_the_folder(bert: Path, index: str, weight_map: object) -> None:
    (bert / "model.safetensors").unlink()
    suffix = ".safetensors" if index.startswith("model.") else ".bin"
    content = json.dumps({"weight_map": weight_map}).replace("{}", suffix)
    (bert / index).write_text(content if weight_map != {} else '{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(BackboneError, match=rf"{index}: weight_map is .*; it takes"):
        find_model(settings_of(bert))


def test_find_model_refuses_pickles_named_by_the_index_of_safetensors(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model-1.bin")
    (bert / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    with pytest.raises(BackboneError, match=r"takes names of \.safetensors files in the same folder"):
        find_model(settings_of(bert))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_model.h5", "TensorFlow weights alone.*from_tf=True"),
        ("flax_model.msgpack", "Flax weights alone.*from_flax=True"),
        ("model.gguf", "GGUF weights alone"),
        ("notes.txt", "neither safetensors nor pytorch_model.bin"),
    ],
)
def test_find_model_says_what_to_do_with_other_weights(bert: Path, name: str, said: str) -> None:
    (bert / "model.safetensors").rename(bert / name)
    with pytest.raises(BackboneError, match=f"(?s){said}"):
        find_model(settings_of(bert))


# ---------------------------------------------------------------- the hub's cache folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIND = """
import json, sys
from featcache.settings import BackboneSettings
from featcache.errors import BackboneError
from featcache.backbone.model_files.find import find_model
try:
    found = find_model(BackboneSettings(model=sys.argv[1], revision=sys.argv[2] or None))
    answer = {"name": found.name, "commit": found.commit, "folder": str(found.folder), "hashes": found.hashes}
except BackboneError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"torch": "torch" in sys.modules}))
"""


@pytest.fixture
def hub_home(tiny: Folder, tmp_path: Path) -> Path:
    """HF_HOME as the hub's client leaves it: blobs by hash, a snapshot of links, a branch."""
    home = tmp_path / "hf"
    repository = home / "hub" / "models--somebody--tiny-bert"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    for path in tiny("bert").iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (repository / "refs" / "main").write_text(COMMIT, encoding="ascii")
    return home


def find_in_subprocess(home: Path, model: str, revision: str = "") -> dict[str, Any]:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_ENDPOINT"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", FIND, model, revision],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_find_model_in_the_hub_cache(hub_home: Path, tiny: Folder, revision: str) -> None:
    found = find_in_subprocess(hub_home, "somebody/tiny-bert", revision)
    assert (found["name"], found["commit"]) == ("somebody/tiny-bert", COMMIT)
    assert found["hashes"] == hashes_of(tiny("bert"))
    assert not found["torch"]  # a repeated request is answered without loading it


def test_find_model_in_the_hub_cache_with_pickled_weights(hub_home: Path) -> None:
    snapshot = hub_home / "hub/models--somebody--tiny-bert/snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    found = find_in_subprocess(hub_home, "somebody/tiny-bert")
    assert "pytorch_model.bin" in found["hashes"] and not found["torch"]


def test_find_model_offline_without_that_revision(hub_home: Path) -> None:
    found = find_in_subprocess(hub_home, "somebody/tiny-bert", "v9")
    assert "somebody/tiny-bert" in found["error"]


def test_find_model_refuses_an_unfinished_snapshot(hub_home: Path) -> None:
    (hub_home / "hub/models--somebody--tiny-bert/snapshots" / COMMIT / "model.safetensors").unlink()
    assert "safetensors" in find_in_subprocess(hub_home, "somebody/tiny-bert")["error"]


def test_find_model_offline_without_the_model_gives_hints() -> None:
    with pytest.raises(BackboneError, match="nobody/nothing-of-the-kind") as caught:
        find_model(BackboneSettings(model="nobody/nothing-of-the-kind"))
    for way in ("HF_ENDPOINT", "--model FOLDER", "the embedded encoder"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    "model", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "../x", "a/b/c", "bad id!"]
)
def test_find_model_without_the_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError) as caught:
        find_model(BackboneSettings(model=model))
    assert model in str(caught.value)


def test_find_model_refuses_a_file(bert: Path) -> None:
    with pytest.raises(BackboneError, match="no model folder"):
        find_model(settings_of(bert / "config.json"))
