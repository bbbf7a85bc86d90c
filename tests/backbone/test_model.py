"""Finding a model's files and loading them: what is hashed, what is refused, what is run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.backbone.files import find_model
from featcache.backbone.load import resolve_device, resolve_dtype
from featcache.backbone.model import Backbone, TokenBatch
from featcache.errors import BackboneError, UsageError
from featcache.settings import BackboneSettings
from tests.support.stock import (
    VIEWS,
    assert_features,
    encoder,
    load,
    loaded,
    mixed,
    one_thread,
    settings_of,
    stock,
)
from tests.support.tiny import CONFIGS, build

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def bert(tiny: Folder, tmp_path: Path) -> Path:
    """A copy of its own, to be spoiled."""
    return shutil.copytree(tiny("bert"), tmp_path / "bert")


def hashes_of(folder: Path, **changes: Any) -> dict[str, str]:
    return find_model(settings_of(folder, **changes)).hashes


# ---------------------------------------------------------------- which files


def test_a_local_folder(bert: Path) -> None:
    found = find_model(settings_of(bert))
    assert (found.name, found.folder, found.commit) == ("bert", bert, None)
    assert found.hashes == {
        name: hashlib.sha256((bert / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }


def test_names_of_folders(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert)
    assert find_model(BackboneSettings(model=".")).name == "bert"
    monkeypatch.setenv("HOME", str(bert.parent))
    assert find_model(BackboneSettings(model="~/bert")).hashes == hashes_of(bert)


def test_files_that_are_not_loaded_do_not_count(bert: Path) -> None:
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


def test_code_counts_where_it_may_run(bert: Path) -> None:
    (bert / "modeling_x.py").write_text("pass", encoding="utf-8")
    assert "modeling_x.py" not in hashes_of(bert)
    assert "modeling_x.py" in hashes_of(bert, trust_remote_code=True)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_one_changed_byte_changes_the_hash(bert: Path, name: str) -> None:
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
def test_every_vocabulary_counts(bert: Path, name: str) -> None:
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


def test_every_shard_counts(tiny: Folder, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '"x"'])
def test_an_unreadable_shard_index_is_refused(bert: Path, content: str) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match=r"cannot read .*model\.safetensors\.index\.json"):
        find_model(settings_of(bert))


# ---------------------------------------------------------------- the hub's cache folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIND = """
import json, sys
from featcache.settings import BackboneSettings
from featcache.errors import BackboneError
from featcache.backbone.files import find_model
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
def test_a_snapshot_in_the_hub_cache(hub_home: Path, tiny: Folder, revision: str) -> None:
    found = find_in_subprocess(hub_home, "somebody/tiny-bert", revision)
    assert (found["name"], found["commit"]) == ("somebody/tiny-bert", COMMIT)
    assert found["hashes"] == hashes_of(tiny("bert"))
    assert not found["torch"]  # a repeated request is answered without loading it


def test_another_revision_is_not_there_offline(hub_home: Path) -> None:
    found = find_in_subprocess(hub_home, "somebody/tiny-bert", "v9")
    assert "somebody/tiny-bert" in found["error"]


def test_an_unfinished_snapshot_is_refused(hub_home: Path) -> None:
    (hub_home / "hub/models--somebody--tiny-bert/snapshots" / COMMIT / "model.safetensors").unlink()
    assert "safetensors" in find_in_subprocess(hub_home, "somebody/tiny-bert")["error"]


def test_offline_without_the_model_says_the_ways_out() -> None:
    with pytest.raises(BackboneError, match="nobody/nothing-of-the-kind") as caught:
        find_model(BackboneSettings(model="nobody/nothing-of-the-kind"))
    for way in ("HF_ENDPOINT", "--model FOLDER", "featcache demo"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    "model", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "../x", "a/b/c", "bad id!"]
)
def test_no_such_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError) as caught:
        find_model(BackboneSettings(model=model))
    assert model in str(caught.value)


def test_a_file_is_no_folder(bert: Path) -> None:
    with pytest.raises(BackboneError, match="no model folder"):
        find_model(settings_of(bert / "config.json"))


# ---------------------------------------------------------------- refused


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "key",
    [
        "encoder.layer.1.attention.self.query.weight",
        "embeddings.word_embeddings.weight",
        "encoder.layer.2.output.LayerNorm.bias",
    ],
)
def test_missing_weights(bert: Path, key: str) -> None:
    change_weights(bert, lambda tensors: tensors.pop(key))
    with pytest.raises(BackboneError, match="lacks 1 of its weights") as caught:
        load(bert)
    assert key in str(caught.value)


def test_a_missing_pooler_is_never_used(bert: Path, tiny: Folder) -> None:
    change_weights(bert, lambda tensors: [tensors.pop(key) for key in list(tensors) if "pooler" in key])
    texts = mixed()
    assert_features(encoder(load(bert))(texts).views, stock(tiny("bert")).matrix(texts), 3)


def test_weights_of_a_model_with_a_head(bert: Path, tiny: Folder) -> None:
    """`BertForMaskedLM` checkpoints: a prefix before every name, and a head that is left out."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(bert)
    model.save_pretrained(bert)
    from safetensors.torch import load_file

    assert "bert.encoder.layer.0.output.dense.weight" in load_file(bert / "model.safetensors")
    texts = mixed()
    assert_features(encoder(load(bert))(texts).views, stock(tiny("bert")).matrix(texts), 3)


def test_pickled_weights_only(bert: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(bert / "model.safetensors"), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="no safetensors weights") as caught:
        find_model(settings_of(bert))
    assert "save_pretrained" in str(caught.value)


def test_no_tokenizer(bert: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    with pytest.raises(BackboneError, match="has no tokenizer"):
        find_model(settings_of(bert))


def test_a_tokenizer_without_words(bert: Path) -> None:
    """tokenizer_config.json alone names a class but brings no vocabulary."""
    (bert / "tokenizer.json").unlink()
    with pytest.raises(BackboneError):
        load(bert)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_json(bert: Path, name: str, content: str) -> None:
    (bert / name).write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match="bert"):
        load(bert)


def test_no_config(bert: Path) -> None:
    (bert / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"no config\.json"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("keep", [0, 5, 1000, -1000])
def test_truncated_weights(bert: Path, keep: int) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BackboneError, match="cannot load bert") as caught:
        load(bert)
    assert "download" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"intermediate_size": 64},
        {"num_hidden_layers": 4},
        {"vocab_size": 1000},
        {"max_position_embeddings": 128},
        {"model_type": "electra"},
        {"model_type": "no-such-type"},
        {"num_attention_heads": 5},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights(bert: Path, changes: dict[str, Any]) -> None:
    change_config(bert, **changes)
    with pytest.raises(BackboneError, match="bert"):
        load(bert)


def test_an_encoder_decoder(tiny: Folder, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    folder = shutil.copytree(tiny("bert"), tmp_path / "t5")
    T5Model(T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )
    with pytest.raises(BackboneError, match=r"encoder-decoder \(t5\)"):
        load(folder)


def test_a_device_that_is_not_there(tiny: Folder) -> None:
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (missing, "no-such-device"):
        with pytest.raises(UsageError, match=f"--device {device}") as caught:
            load(tiny("bert"), device=device)
        assert "--device cpu" in str(caught.value)


def test_devices_and_types() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("float32", cpu) == "float32"
    native = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
    assert resolve_dtype("auto", cpu) == ("bfloat16" if native else "float32")


# ---------------------------------------------------------------- frozen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "albert", "llama", "mpnet"])
def test_nothing_is_trainable(family: str, dtype: str, tiny: Folder) -> None:
    backbone = loaded(tiny(family), dtype=dtype)
    assert backbone.dtype_name == dtype
    parameters = list(backbone.model.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not any(module.training for module in backbone.model.modules())
    states, _ = backbone.states(batch_of(4, 4), [0, 3])
    assert not any(values.requires_grad for values in states.values())


def batch_of(*lengths: int) -> TokenBatch:
    return TokenBatch(np.arange(sum(lengths)) % 50 + 5, np.array(lengths))


@pytest.fixture
def calls() -> Iterator[Callable[[Backbone], list[int]]]:
    """Counts the forward calls of each block from then on."""
    hooks: list[Any] = []

    def count(backbone: Backbone) -> list[int]:
        counts = [0] * backbone.num_blocks
        lists = [
            module
            for module in backbone.model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == backbone.num_blocks
        ]
        assert len(lists) == 1

        def counter(number: int) -> Callable[..., None]:
            def called(*_: Any) -> None:
                counts[number] += 1

            return called

        hooks.extend(block.register_forward_hook(counter(n)) for n, block in enumerate(lists[0]))
        return counts

    yield count
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", [family for family in CONFIGS if family != "albert"])
def test_blocks_above_the_highest_layer_are_not_run(
    family: str, tiny: Folder, calls: Callable[[Backbone], list[int]]
) -> None:
    backbone = loaded(tiny(family))
    counts = calls(backbone)
    for views, run in (
        (["0/mean"], [0, 0, 0]),
        (["1/cls"], [1, 0, 0]),
        (["-2/mean", "0/max"], [1, 1, 0]),
        (["last/cls", "1/mean"], [1, 1, 1]),
    ):
        counts[:] = [0, 0, 0]
        encoder(backbone, *views)(["good book", "the room"])
        assert counts == run, views


@pytest.mark.parametrize("family", CONFIGS)
def test_loading_leaves_nothing_behind(family: str, tiny: Folder) -> None:
    """No hook of ours stays, not after a pass either, and one pass does not change the next."""
    encode = encoder(loaded(tiny(family)))
    before = encode(["good", "the room"]).views
    after = encode(["good", "the room"]).views
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    for module in encode.backbone.model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        assert not [hook for hook in hooks if hook.__module__.startswith("featcache")]
        assert "forward" not in vars(module)


def test_loading_says_nothing_and_keeps_the_verbosity(
    bert: Path, tiny: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    change_weights(bert, lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}))
    logging.set_verbosity_info()
    try:
        capfd.readouterr()
        load(bert)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


def test_the_tiny_backbones_differ_where_it_matters(tiny: Folder) -> None:
    """The fixture itself: views, layers and texts are far apart, so that a mix-up would show."""
    made = encoder(loaded(tiny("bert")))(mixed())
    assert len(made.views) == len(VIEWS)
    values = list(made.views.values())
    for number, one in enumerate(values):
        assert np.linalg.norm(one[0] - one[1]) > 0.1
        for other in values[:number]:
            assert abs(one - other).max() > 0.1


def test_a_seed_makes_a_backbone(tiny: Folder, tmp_path: Path) -> None:
    same, other = build("bert", tmp_path / "same"), build("bert", tmp_path / "other", seed=1)
    files = hashes_of(tiny("bert"))
    assert hashes_of(same) == files
    assert {name for name, found in hashes_of(other).items() if found != files[name]} == {"model.safetensors"}
