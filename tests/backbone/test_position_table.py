"""Positions beyond the learned ones: the same features as a stock model with the longer table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from featcache.backbone.encoder import Encoder, document_settings
from featcache.backbone.model import Backbone
from featcache.backbone.position_table import Extension, extended, longer_buffer
from featcache.errors import BackboneError, UsageError
from tests.support.extraction import write_case
from tests.support.stock import (
    assert_features,
    encoder,
    lively,
    load,
    loaded,
    mixed,
    sentence,
    stock,
)
from tests.support.tiny import build, write_tokenizer

Folder = Callable[[str], Path]
LENGTH = 150  # the tiny tables have room for 64 or 65
TEXTS = mixed((148, 62, 63, 64, 65, 3, 20, 147, 148, 120))
# Families with learned absolute positions, and the first row that a text reads.
FIRST = {
    "bert": 0, "distilbert": 0, "electra": 0, "albert": 0, "gpt2": 0, "deberta-v2": 0,
    "roberta": 1, "xlm-roberta": 1, "mpnet": 2,
}  # fmt: skip


def table_name(folder: Path) -> str:
    names = ("position_embeddings.weight", "wpe.weight")
    (name,) = [key for key in load_file(folder / "model.safetensors") if key.endswith(names)]
    return name


def longer(table: np.ndarray, first: int, how: str, length: int = LENGTH) -> np.ndarray:
    """The table as it should be, place by place."""
    special, learned = table[:first], table[first:]
    count, width = learned.shape
    if how == "interpolate":
        at = np.linspace(0, count - 1, length)
        rows = np.stack([np.interp(at, np.arange(count), column) for column in learned.T], axis=1)
    elif how == "copy":
        rows = np.stack([learned[place % count] for place in range(length)])
    else:
        draw = np.random.RandomState(0).normal(scale=0.02, size=(length - count, width))
        rows = np.concatenate([learned, draw])
    return np.concatenate([special, rows]).astype(np.float32)


def stretched(folder: Path, target: Path, family: str, how: str) -> Path:
    """A stock model with the longer table in its files."""
    shutil.copytree(folder, target)
    tensors, name = load_file(target / "model.safetensors"), table_name(folder)
    tensors[name] = torch.from_numpy(longer(tensors[name].numpy(), FIRST[family], how))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    key = "n_positions" if family == "gpt2" else "max_position_embeddings"
    config[key] = len(tensors[name])
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(target, decoder=family == "gpt2", limit=LENGTH)
    return target


def asked(how: str, length: int = LENGTH) -> dict[str, Any]:
    return {"extend_positions": how, "max_length": length}


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *((family, "copy") for family in FIRST),
        *(
            (family, how)
            for family in ("bert", "roberta", "gpt2", "mpnet")
            for how in ("random", "interpolate")
        ),
    ],
)
def test_features_equal_a_stock_model_with_the_longer_table(
    family: str, how: str, tiny: Folder, tmp_path: Path
) -> None:
    folder = lively(tiny(family), tmp_path / "lively")
    expected = stock(stretched(folder, tmp_path / "long", family, how)).matrix(TEXTS)
    backbone = load(folder)
    packing = backbone.packing
    for budget in (None, 200):
        found = encoder(backbone, batch_tokens=budget, **asked(how))(TEXTS)
        assert_features(found.views, expected, 3)
        assert (found.n_tokens.max(), found.truncated.any()) == (150 if family != "gpt2" else 148, False)
    assert backbone.packing == packing  # a longer table takes nothing from how batches are run
    assert (backbone.position_limit, backbone.tokenizer.model_max_length) == (LENGTH, LENGTH)
    assert backbone.model.config.max_position_embeddings == FIRST[family] + LENGTH


@pytest.mark.parametrize("how", ["random", "copy", "interpolate"])
def test_bfloat16_and_single_token_views(how: str, tiny: Folder, tmp_path: Path) -> None:
    folder = lively(tiny("bert"), tmp_path / "lively")
    expected = stock(stretched(folder, tmp_path / "long", "bert", how)).matrix(TEXTS, views=["last/cls"])
    found = encoder(load(folder, dtype="bfloat16"), "last/cls", **asked(how))(TEXTS).views["last/cls"]
    exact = encoder(load(folder), "last/cls", **asked(how))(TEXTS).views["last/cls"]
    np.testing.assert_allclose(exact, expected["last/cls"], rtol=0, atol=1e-5)
    assert abs(found - exact).mean() < 0.05 * abs(exact).mean()


def test_texts_that_fit_keep_their_features(tiny: Folder) -> None:
    short = mixed((3, 20, 60, 62))
    before = encoder(loaded(tiny("bert")))(short).views
    for how in ("copy", "random"):
        after = encoder(load(tiny("bert")), **asked(how))(short).views
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], values)
    moved = encoder(load(tiny("bert")), **asked("interpolate"))(short).views
    assert abs(moved["last/mean"] - before["last/mean"]).max() > 1e-3  # positions lie closer together


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "mpnet"])
def test_no_text_sees_another(family: str, tiny: Folder) -> None:
    encode = encoder(load(tiny(family)), **asked("random"))
    texts = mixed((100, 100, 20, 140, 20))
    before = encode(texts).views
    after = encode([texts[0], sentence(100, 99), *texts[2:]]).views
    for name, values in before.items():
        others = [0, 2, 3, 4]
        np.testing.assert_array_equal(after[name][others], values[others])
    assert abs(after["last/mean"][1] - before["last/mean"][1]).max() > 1e-3


def test_texts_beyond_the_extension_are_truncated_and_counted(tiny: Folder) -> None:
    found = encoder(load(tiny("bert")), **asked("copy"))([sentence(148), sentence(149)])
    assert (found.n_tokens.tolist(), found.truncated.tolist()) == ([150, 150], [False, True])


# ---------------------------------------------------------------- the table


@given(
    count=st.integers(1, 12),
    more=st.integers(1, 30),
    first=st.integers(0, 3),
    how=st.sampled_from(["random", "copy", "interpolate"]),
)
def test_extended_table_equals_the_reference(count: int, more: int, first: int, how: str) -> None:
    table = torch.from_numpy(np.random.default_rng(count).normal(size=(first + count, 4)).astype(np.float32))
    made = extended(table, first, Extension(how, count + more), 0.02)
    np.testing.assert_allclose(
        made.numpy(), longer(table.numpy(), first, how, count + more), rtol=0, atol=1e-6
    )
    assert torch.equal(made[:first], table[:first])
    if how == "interpolate":
        torch.testing.assert_close(made[[first, -1]], table[[first, -1]])
    else:
        assert torch.equal(made[: first + count], table)


def test_random_rows_look_like_untrained_ones() -> None:
    made = extended(torch.zeros(512, 768), 0, Extension("random", 1500), 0.02)[512:].double()
    assert abs(made.std() / 0.02 - 1) < 0.01 and abs(made.mean()) < 1e-4
    assert len(torch.unique(made, dim=0)) == 988


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["random", "copy", "interpolate"])
def test_extended_keeps_the_dtype(how: str, dtype: torch.dtype) -> None:
    made = extended(torch.ones(8, 4, dtype=dtype), 2, Extension(how, 20), 0.02)
    assert (made.dtype, tuple(made.shape)) == (dtype, (22, 4))


def test_longer_buffer() -> None:
    counting = torch.arange(5).expand(1, -1)
    assert torch.equal(longer_buffer(counting, 5, 8), torch.arange(8).expand(1, -1))  # type: ignore[arg-type]
    zeros = torch.zeros(1, 5, dtype=torch.long)
    assert torch.equal(longer_buffer(zeros, 5, 8), torch.zeros(1, 8, dtype=torch.long))  # type: ignore[arg-type]
    assert longer_buffer(torch.ones(5, 5).tril(), 5, 8) is None
    assert longer_buffer(torch.tensor([3, 1, 2, 0, 4]), 5, 8) is None


def test_random_rows_are_always_the_same() -> None:
    """Features cached years ago must agree with those of today, whatever else was drawn before."""
    torch.manual_seed(5)
    np.random.random()  # noqa: NPY002
    made = extended(torch.zeros(2, 3), 0, Extension("random", 4), 1.0)[2:]
    known = [[1.764052346, 0.400157208, 0.978737984], [2.240893199, 1.867557990, -0.977277880]]
    np.testing.assert_allclose(made.numpy(), known, rtol=1e-6)


# ---------------------------------------------------------------- what is recorded and said


def test_the_document_names_the_extension(tiny: Folder) -> None:
    documents = {
        how: encoder(load(tiny("bert")), **asked(how)).document for how in ("random", "copy", "interpolate")
    }
    assert documents["copy"].positions == {"how": "copy", "length": LENGTH}
    assert documents["random"].positions == {"how": "random", "length": LENGTH, "seed": 0}
    assert len({json.dumps(document.to_json()) for document in documents.values()}) == 3
    assert encoder(load(tiny("bert")), **asked("copy")).document == documents["copy"]
    plain = encoder(loaded(tiny("bert"))).document
    assert "positions" not in plain.to_json() and plain.max_length == 64


@pytest.mark.parametrize("how", ["none", "random", "copy", "interpolate"])
def test_a_document_makes_its_encoder_again(how: str, tiny: Folder) -> None:
    """What a predictor does with the document of a head."""
    length = 64 if how == "none" else LENGTH
    made = encoder(load(tiny("bert")), "last/mean", prompt="the ", **asked(how, length))
    again = Encoder(load(tiny("bert")), document_settings(made.document, ["last/mean"]))
    assert again.document == made.document
    np.testing.assert_array_equal(again(TEXTS).views["last/mean"], made(TEXTS).views["last/mean"])


def test_nothing_is_extended_where_there_is_room(tiny: Folder) -> None:
    for length in (64, 20):
        made = encoder(load(tiny("bert")), **asked("interpolate", length))
        assert made.document == encoder(loaded(tiny("bert")), max_length=length).document
        assert any("not extended" in note and "64 tokens" in note for note in made.notes)
        short = mixed((3, 12))
        assert_features(made(short).views, encoder(loaded(tiny("bert")))(short).views, 3)


@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_families_that_compute_positions(family: str, tmp_path: Path) -> None:
    """Nothing to extend; the tokenizer's lower limit is lifted up to the model's own."""
    folder = build(family, tmp_path)
    write_tokenizer(folder, decoder=family == "llama", limit=64)
    assert encoder(load(folder)).max_length == 64
    made = encoder(load(folder), **asked("copy", 200))
    assert (made.max_length, made.backbone.extension) == (200, None)
    assert any("not extended" in note and "256 tokens" in note for note in made.notes)
    text = sentence(190)
    assert_features(made([text]).views, stock(folder).matrix([text]), 3)
    beyond = encoder(load(folder), **asked("copy", 400))
    assert beyond.max_length == 256
    assert any("no table of learned positions" in note for note in beyond.notes)
    with pytest.raises(UsageError, match="positions for 256 tokens") as caught:
        encoder(load(folder), **asked("copy", 600))
    assert "--long-text chunks" in str(caught.value) and "--extend-positions" not in str(caught.value)


def test_a_length_beyond_the_table_hints_at_extension(tiny: Folder) -> None:
    notes = " ".join(encoder(loaded(tiny("bert"))).notes)
    assert "--extend-positions" in notes and "--long-text chunks" in notes
    with pytest.raises(UsageError, match="--max-length 1500") as caught:
        encoder(loaded(tiny("bert")), max_length=1500)
    assert "--extend-positions" in str(caught.value) and "--long-text chunks" in str(caught.value)
    assert "--extend-positions" not in " ".join(encoder(loaded(tiny("llama"))).notes)


# ---------------------------------------------------------------- twice, hostile


def test_extend_twice(tiny: Folder) -> None:
    backbone = load(tiny("bert"))
    first = encoder(backbone, **asked("copy"))
    before = first(TEXTS).views
    second = encoder(backbone, **asked("copy"))(TEXTS).views
    np.testing.assert_array_equal(second["last/cls"], before["last/cls"])
    for other in (asked("random"), asked("copy", 200), asked("interpolate", 20)):
        with pytest.raises(BackboneError, match="extended already, by copy to 150"):
            encoder(backbone, **other)
    unasked = encoder(backbone)  # its features are those of the longer table, and it says so
    assert unasked.document.positions == first.document.positions


def test_extend_refuses_too_many_positions(tiny: Folder) -> None:
    with pytest.raises(BackboneError, match="131,072 at most"):
        encoder(load(tiny("bert")), **asked("copy", 10**9))


def test_extend_refuses_an_unknown_way(tiny: Folder) -> None:
    with pytest.raises(BackboneError, match="'mirror'"):
        encoder(load(tiny("bert")), **asked("mirror"))


def test_extend_refuses_a_model_with_another_buffer_of_that_length(tiny: Folder) -> None:
    """GPT-Neo's causal mask, say: made once for as many positions as there are."""
    backbone = load(tiny("bert"))
    backbone.model.encoder.register_buffer("causal", torch.ones(1, 1, 64, 64).tril(), persistent=False)
    before = backbone.model.embeddings.position_embeddings.weight.clone()
    with pytest.raises(BackboneError, match="its causal are made for 64 positions"):
        encoder(backbone, **asked("copy"))
    assert torch.equal(backbone.model.embeddings.position_embeddings.weight, before)  # nothing half done
    assert (backbone.position_limit, backbone.extension) == (64, None)


def test_the_table_stays_frozen(tiny: Folder) -> None:
    backbone: Backbone = encoder(load(tiny("bert")), **asked("random")).backbone
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


# ---------------------------------------------------------------- the whole way


@pytest.mark.parametrize("how", ["copy", "random"])
def test_a_text_of_1500_tokens_is_extracted(
    how: str, tiny: Folder, tmp_path: Path, arrow_cache: None
) -> None:
    case = write_case(tmp_path, tiny("bert"), storage="float32", views="last/mean")
    texts = [sentence(1498), sentence(9)]
    case.write([{"text": text, "label": text[:3]} for text in texts])
    extension = {"extend_positions": how, "max_length": 1500}
    made = case.extract(**extension)
    assert (made.tokens, made.truncated, made.encoded) == (1511, 0, 2)
    assert case.extract(**extension).cached
    other = "random" if how == "copy" else "copy"
    assert case.extract(**{**extension, "extend_positions": other}).encoded == 2
    fresh = encoder(load(tiny("bert")), "last/mean", **extension)(texts)
    np.testing.assert_array_equal(case.features("last/mean", **extension), fresh.views["last/mean"])
    with pytest.raises(UsageError, match="--max-length 1500"):
        case.extract(max_length=1500)
