"""What sentence-transformers settings are followed, and which are refused; no model is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.model_files.modules_json import view_width
from featcache.backbone.model_files.sentence_transformers import ABOUT, follow
from featcache.backbone.model_files.wanted import wanted_files
from featcache.errors import BackboneError, FeatcacheError, UsageError
from featcache.settings import BackboneSettings, FeatureSettings
from tests.support.cli_tools import environment
from tests.support.loopback_hub import LoopbackHub
from tests.support.sentence_models import OLD, copy_of, write_json, write_settings

MEAN = {"pooling_mode": "mean"}
EXPLICIT = FeatureSettings(views=("last/cls", "-4/mean"), prompt="query: ", max_length=100)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as far as `follow` reads it."""
    folder = tmp_path / "model"
    write_json(folder / "config.json", {"hidden_size": 32, "max_position_embeddings": 512})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 10**30})
    return folder


def files_of(folder: Path) -> ModelFiles:
    return ModelFiles(folder.name, folder, None, {})


def followed(folder: Path, **changes: Any) -> FeatureSettings:
    return follow(FeatureSettings(**changes), files_of(folder)).features


def refused(folder: Path, *words: str, kind: type[FeatcacheError] = BackboneError, **changes: Any) -> None:
    with pytest.raises(kind) as caught:
        followed(folder, **changes)
    for word in words:
        assert word in f"{caught.value.what} {caught.value.hint}"


# --- nothing changes ----------------------------------------------------------------------------


def test_a_model_without_them_is_read_as_ever(model: Path) -> None:
    found = follow(FeatureSettings(), files_of(model))
    assert found.note == ""
    assert (found.features.views, found.features.prompt, found.features.longest) == (("last/cls",), "", 512)
    assert not found.features.lower_case
    assert found.features.pool_prompt is not False
    write_json(model / ABOUT, {"prompts": {"query": "q: "}, "default_prompt_name": "query"})
    assert followed(model).prompt == ""  # without modules.json it is no model of sentences


def test_explicit_poolings_leave_them_aside(model: Path) -> None:
    write_settings(
        model, {"include_prompt": False}, ["Normalize"],
        about={"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        transformer={"max_seq_length": 16, "do_lower_case": True},
    )  # fmt: skip
    assert follow(EXPLICIT, files_of(model)).features == EXPLICIT
    plain = followed(model, views=("last/mean",))
    assert (plain.prompt, plain.longest, plain.lower_case) == ("", 512, None)
    for odd in ("modules.json", ABOUT, "1_Pooling/config.json"):  # they are not even read
        (model / odd).write_text("{")
    assert follow(EXPLICIT, files_of(model)).features == EXPLICIT


@given(st.data())
@how(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_following_twice_changes_nothing(model: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([None, "a", "b"]))
    write_settings(
        model, {"include_prompt": data.draw(st.booleans())}, data.draw(st.sampled_from([[], ["Normalize"]])),
        about={"prompts": {"a": "x ", "b": ""}, "default_prompt_name": name},
        transformer={"max_seq_length": data.draw(st.integers(1, 600))},
    )  # fmt: skip
    asked = FeatureSettings(
        views=tuple(data.draw(st.lists(st.sampled_from(["last/auto", "-2/auto", "last/cls"]), min_size=1))),
        prompt=data.draw(st.sampled_from(["auto", "", "mine "])),
        max_length=data.draw(st.sampled_from([None, 7])),
        pool_prompt=data.draw(st.sampled_from([None, True, False])),
    )
    once = follow(asked, files_of(model)).features
    assert follow(once, files_of(model)).features == once
    assert not any("auto" in view for view in once.views)
    assert once.prompt != "auto"
    assert len(once.views) == len(set(once.views))


# --- what is followed ----------------------------------------------------------------------------


def test_everything_is_followed_and_said_in_one_line(model: Path) -> None:
    write_settings(
        model, {"pooling_mode": ["cls", "weightedmean"]}, ["Dense", "Dropout", "LayerNorm", "Normalize"],
        about={"prompts": {"query": "query: ", "passage": "passage: ", "none": ""},
               "default_prompt_name": "query", "truncate_dim": 8, "similarity_fn_name": "cosine"},
        transformer={"max_seq_length": 128, "do_lower_case": True, "model_args": {"torch_dtype": "float16"}},
    )  # fmt: skip
    found = follow(FeatureSettings(views=("-2/auto", "last/max")), files_of(model))
    views = ("-2/cls+weightedmean-dense-layernorm-normalized-first8", "last/max")
    assert found.features == FeatureSettings(
        views=views, prompt="query: ", max_length=128, lower_case=True, pool_prompt=True
    )
    assert found.note == (
        "as its sentence-transformers settings say: first token and weighted mean of layer -2, dense, "
        "layer norm, normalised, the first 8 numbers, at most 128 tokens, lower case, prompt 'query: ' "
        "(by --prompt-name: passage)"
    )


def test_what_is_asked_for_wins(model: Path) -> None:
    write_settings(
        model, {**MEAN, "include_prompt": False},
        about={"prompts": {"query": "q: ", "task": "t: "}, "default_prompt_name": "query"},
        transformer={"max_seq_length": 128, "do_lower_case": True},
    )  # fmt: skip
    own = followed(model, prompt="mine ", max_length=300, lower_case=False, pool_prompt=True)
    assert own == FeatureSettings(
        views=("last/mean",), prompt="mine ", max_length=300, lower_case=False, pool_prompt=True
    )
    assert followed(model).pool_prompt is False
    assert followed(model, prompt="").pool_prompt is None  # there are no tokens of it, so no vector differs
    assert followed(model, prompt_name="task").prompt == "t: "
    assert followed(model, views=("last/cls",), prompt_name="task").prompt == "t: "
    words = "--prompt and --prompt-name cannot be given together"
    refused(model, words, kind=UsageError, prompt="mine ", prompt_name="task")
    words = "model has no prompt named 'tusk'"
    refused(model, words, "it has query, task", kind=UsageError, prompt_name="tusk")
    write_json(model / ABOUT, {})
    refused(model, "has no prompt named 'task'", "give the text itself", kind=UsageError, prompt_name="task")


@pytest.mark.parametrize(
    ("asked", "tokenizer", "positions", "expected"),
    [
        (256, 10**30, 512, 256), (None, 128, 512, 128), (None, 10**30, 512, 512), (None, 10**30, None, None),
        (8192, 10**30, 512, 512), (None, None, -1, None), (100, 50, None, 50),
    ],
)  # fmt: skip
def test_the_longest_text_is_the_lowest_of_all_limits(
    asked: int | None, tokenizer: int | None, positions: int | None, expected: int | None, model: Path
) -> None:
    write_settings(model, MEAN, transformer={"max_seq_length": asked} if asked else {})
    write_json(model / "config.json", {"max_position_embeddings": positions})
    write_json(model / "tokenizer_config.json", {"model_max_length": tokenizer})
    assert followed(model).max_length == expected


def test_names_of_new_and_old_versions_are_read(model: Path) -> None:
    write_settings(model, MEAN)
    now = [
        {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ]
    write_json(model / "modules.json", now)
    assert followed(model).views == ("last/mean-normalized",)
    write_json(model / "sentence_roberta_config.json", {"max_seq_length": 75})
    assert followed(model).max_length == 75


def test_a_reranker_is_pooled_as_a_plain_model(model: Path) -> None:
    write_settings(model, MEAN, about={"model_type": "CrossEncoder"})
    found = follow(FeatureSettings(), files_of(model))
    assert found.features.views == ("last/cls",)
    assert found.note == (
        "its sentence-transformers settings are those of a CrossEncoder and are not followed: cls is pooled"
    )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "its pooling 'attention' is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "its pooling [] is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "is not supported"),
        ("1_Pooling/config.json", [], "not an object"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "works on token_embeddings"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "its max_seq_length is 'x'"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "its max_seq_length is -1"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "is made for fill-mask"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "chat template"),
        ("sentence_bert_config.json", {"tokenizer_args": {"add_eos_token": True}}, "add_eos_token = True"),
        ("sentence_bert_config.json", {"model_args": "x"}, "its model_args are 'x'"),
        (ABOUT, {"default_prompt_name": "query"}, "default prompt 'query' is not among its prompts"),
        (ABOUT, {"default_prompt_name": "q", "prompts": {"q": 1}}, "are not texts by name"),
        (ABOUT, {"default_prompt_name": "q", "prompts": ["q"]}, "are not texts by name"),
        (ABOUT, {"truncate_dim": 0}, "its truncate_dim is 0"),
        ("modules.json", {}, "not an array"),
        ("modules.json", [1], "a module has no type or no path"),
        ("modules.json", [{"type": OLD + "Transformer", "path": 3}], "a module has no type or no path"),
        ("modules.json", [{"type": OLD + "Transformer", "path": "../other"}], "is not inside"),
        ("modules.json", [{"type": OLD + "Transformer", "path": "/etc"}], "is not inside"),
        ("modules.json", [{"type": OLD + "Transformer", "path": "C:\\x"}], "is not inside"),
        ("modules.json", [{"type": "own.Transformer", "path": ""}], "own.Transformer has code of its own"),
        ("modules.json", [{"type": OLD + "LSTM", "path": ""}], "its module LSTM is not supported"),
        ("modules.json", [{"type": OLD + "Transformer", "path": ""}], "not a Transformer, a Pooling"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused(
    file: str, content: Any, words: str, model: Path
) -> None:
    write_settings(model, MEAN, ["Normalize"])
    write_json(model / file, content)
    refused(model, words)
    assert followed(model, views=("last/mean",)).views == ("last/mean",)  # what every hint says


def test_files_that_are_no_json_or_missing_are_named(model: Path) -> None:
    write_settings(model, MEAN)
    (model / "1_Pooling" / "config.json").unlink()
    refused(model, "1_Pooling", "config.json, which modules.json needs", "--pooling mean")
    for content in (b"{", b"\xff", b"[" * 100_000):
        (model / "modules.json").write_bytes(content)
        refused(model, "read", "modules.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "pooling_mode", "include_prompt", "pooling_mode_cls_token", "max_seq_length", "do_lower_case",
    "tokenizer_args", "modality_config", "transformer_task", "prompts", "default_prompt_name", "model_type",
    "truncate_dim", "module_input_name", "model_max_length", "max_position_embeddings",
])  # fmt: skip
FILES = ["1_Pooling/config.json", "2_Normalize/config.json", "sentence_bert_config.json", ABOUT,
         "tokenizer_config.json", "config.json"]  # fmt: skip


@given(st.sampled_from(FILES), JSON | st.dictionaries(KEYS, JSON, max_size=3))
@how(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_followed_or_refused_by_name(model: Path, file: str, content: Any) -> None:
    write_settings(model, MEAN, ["Normalize"])
    write_json(model / "config.json", {})
    write_json(model / "tokenizer_config.json", {})
    write_json(model / file, content)
    try:
        found = follow(FeatureSettings(), files_of(model))
    except FeatcacheError as error:
        assert re.search(r"model|json", error.what)
    else:
        assert found.features.longest > 0


# --- the files -----------------------------------------------------------------------------------


def test_module_files_are_hashed_where_a_view_needs_them(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_settings(tmp_path / "model", MEAN, ["Dense", "Normalize"])
    for file in tiny("bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 5})
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    files = find_model(BackboneSettings(model=str(folder)))
    assert files.hashes == find_model(BackboneSettings(model=str(tiny("bert")))).hashes
    assert files.hashes_of(["last/cls", "last/mean-normalized"]) == files.hashes
    found = files.hashes_of(["last/cls", "last/mean-dense"])
    assert set(found) - set(files.hashes) == {
        "modules.json", "2_Dense/config.json", "2_Dense/model.safetensors"
    }  # fmt: skip
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"Weights")
    assert files.hashes_of(["last/mean-dense"]) != found
    with pytest.raises(UsageError, match="of the kind Dense; the model has 1"):
        files.hashes_of(["last/mean-dense-dense"])
    assert files.width_of(["last/mean-dense", "last/cls+max", "last/cls-first7"]) == 5 + 64 + 7
    assert view_width(folder, "last/cls-first99", 32) == 32


def test_a_download_takes_the_folders_of_modules() -> None:
    names = ["onnx/model.onnx", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin",
             "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin", "openvino/config.json", "config.json",
             "model.safetensors", "1_Pooling/README.md", "0/config.json"]  # fmt: skip
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
               "3_Dense/pytorch_model.bin"]  # fmt: skip
    assert wanted_files([*names, "modules.json"], remote_code=False) == [
        "config.json", "model.safetensors", "modules.json", *modules
    ]  # fmt: skip
    assert wanted_files(names, remote_code=False) == ["config.json", "model.safetensors"]


READ = """
import json, sys
from pathlib import Path
from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.sentence_transformers import follow
from featcache.settings import load_settings
settings = load_settings({"model": "somebody/sentences", **json.loads(sys.argv[1])})
files = find_model(settings.backbone)
made = follow(settings.features, files).features
names = sorted(str(path.relative_to(files.folder)) for path in files.folder.rglob("*") if path.is_file())
print(json.dumps([made.views, made.prompt, sorted(files.hashes_of(made.views)), names]))
assert "torch" not in sys.modules
"""


def files_in(folder: Path) -> dict[str, bytes]:
    """The bytes of all files by their path in `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def read_from(hub: LoopbackHub, hub_name: str, home: Path) -> list[Any]:
    """What `READ` prints of the model that `hub` has."""
    variables = environment(**hub.environment(home / "home"))
    argv = [sys.executable, "-c", READ, json.dumps({"hub": hub_name})]
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.enable_socket
@pytest.mark.parametrize("hub_name", [pytest.param("huggingface", marks=pytest.mark.slow), "modelscope"])
def test_a_model_from_a_hub_is_followed(hub_name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Its modules are downloaded with it, other sub-folders are not; and again without the hub."""
    if hub_name == "modelscope":
        pytest.importorskip("modelscope_hub")
    folder = write_settings(
        copy_of(tiny("bert"), tmp_path / "model"), MEAN, ["Dense", "Normalize"],
        about={"prompts": {"q": "query: "}, "default_prompt_name": "q"},
    )  # fmt: skip
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 5})
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    write_json(folder / "onnx" / "config.json", {})
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    with LoopbackHub() as hub:
        hub.add("model", "somebody/sentences", files_in(folder))
        views, prompt, hashed, names = read_from(hub, hub_name, tmp_path)
        assert (views, prompt) == (["last/mean-dense-normalized"], "query: ")
        assert {*modules[1:], "modules.json", "model.safetensors"} <= set(hashed)
        assert {*modules, ABOUT} <= set(names)
        assert not any(name.startswith("onnx") for name in names)
    assert read_from(hub, hub_name, tmp_path) == [views, prompt, hashed, names]  # the hub is gone


@pytest.mark.enable_socket
@pytest.mark.parametrize("hub_name", ["huggingface", pytest.param("modelscope", marks=pytest.mark.slow)])
def test_a_transformer_in_a_folder_of_its_own_comes_from_a_hub(
    hub_name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Early models have `0_Transformer`, and their weights as `.bin`."""
    if hub_name == "modelscope":
        pytest.importorskip("modelscope_hub")
    folder = write_settings(tmp_path / "model", MEAN, ["Dense"])
    (folder / "sentence_bert_config.json").unlink()
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    write_json(folder / "modules.json", [modules[0] | {"path": "0_Transformer"}, *modules[1:]])
    copy_of(tiny("bert"), folder / "0_Transformer")
    (folder / "0_Transformer" / "model.safetensors").rename(folder / "0_Transformer" / "pytorch_model.bin")
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 5})
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"weights")
    with LoopbackHub() as hub:
        hub.add("model", "somebody/sentences", files_in(folder))
        views, _, hashed, names = found = read_from(hub, hub_name, tmp_path)
        assert views == ["last/mean-dense"]
        assert {"pytorch_model.bin", "tokenizer.json", "2_Dense/pytorch_model.bin"} <= set(hashed)
        assert {"config.json", "pytorch_model.bin", "tokenizer.json"} <= set(names)
    assert read_from(hub, hub_name, tmp_path) == found  # the hub is gone
