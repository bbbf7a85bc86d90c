"""Sizes that cannot be meant are refused with their file and field, before anything is allocated."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from featcache.backbone.model_files.find import find_model
from featcache.errors import BackboneError
from tests.support.stock import encoder, load, settings_of
from tests.support.tiny import VOCABULARY

pytestmark = pytest.mark.bad_input

SIZES = ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"]


def change(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")


@pytest.mark.parametrize("field", [*SIZES, "max_position_embeddings"])
@pytest.mark.parametrize("value", ["12", True, -1, 0, 1.5, 1e30, 10**30])
def test_a_size_that_cannot_be_meant(bert: Path, field: str, value: Any) -> None:
    change(bert / "config.json", **{field: value})
    with pytest.raises(BackboneError, match=rf"config\.json: {field} is .*; it takes a whole number from 1"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_is_null(bert: Path, field: str) -> None:
    change(bert / "config.json", **{field: None})
    with pytest.raises(BackboneError, match=rf"config\.json: {field} is null"):
        find_model(settings_of(bert))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10_000_000},
        {"num_hidden_layers": 2001},
        {"hidden_size": 10_000_000},
        {"vocab_size": 2**31},
        {"text_config": {"hidden_size": 10_000_000}},
    ],
)
def test_a_size_beyond_the_weights(bert: Path, fields: dict[str, Any]) -> None:
    change(bert / "config.json", **fields)
    with pytest.raises(BackboneError, match=r"config\.json: \S+ is .*; it takes a whole number"):
        find_model(settings_of(bert))


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 60_000, "num_attention_heads": 4},
        {"intermediate_size": 80_000, "hidden_size": 8_000},
        {"num_hidden_layers": 200, "hidden_size": 3200},
        {"max_position_embeddings": 2**31 - 1},
    ],
)
def test_sizes_that_are_far_beyond_the_weights_together(bert: Path, fields: dict[str, int]) -> None:
    change(bert / "config.json", **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = r"config\.json describes a model of [\d,]{11,} numbers"
    with pytest.raises(BackboneError, match=said) as caught:
        load(bert)
    name, size = next(iter(fields.items()))
    assert f"{name} {size:,}" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB: nothing was allocated


def test_sizes_that_are_a_little_wrong_are_told_by_the_weights(bert: Path) -> None:
    change(bert / "config.json", num_hidden_layers=4)
    with pytest.raises(BackboneError, match="lacks 16 of its weights"):
        load(bert)


@pytest.mark.parametrize(
    ("field", "value"), [("layer_norm_eps", "small"), ("model_type", None), ("model_type", 7)]
)
def test_other_fields_are_refused_by_transformers(bert: Path, field: str, value: Any) -> None:
    change(bert / "config.json", **{field: value})
    with pytest.raises(BackboneError, match=f"cannot load bert from {bert}"):
        load(bert)


@pytest.mark.parametrize("value", [len(VOCABULARY), 10**9, -(10**6)])
def test_a_padding_id_beyond_the_table(bert: Path, value: int) -> None:
    change(bert / "config.json", pad_token_id=value)
    with pytest.raises(BackboneError, match=r"config\.json: pad_token_id is .*below vocab_size"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"a":' * 100_000, '"x"', "\x00"])
def test_a_file_that_is_no_json_object(bert: Path, name: str, content: str) -> None:
    (bert / name).write_text(content, encoding="utf-8")
    with pytest.raises(BackboneError, match=f"{bert / name}"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("value", [-1, 0, "512", True, [512], float("nan"), float("inf")])
def test_a_longest_length_that_cannot_be_meant(bert: Path, value: Any) -> None:
    change(bert / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(BackboneError, match=r"tokenizer_config\.json: model_max_length is"):
        find_model(settings_of(bert))


@pytest.mark.parametrize("value", [None, 1e30, int(1e30), 64.0])
def test_a_tokenizer_without_a_limit(bert: Path, value: Any) -> None:
    change(bert / "tokenizer_config.json", model_max_length=value)
    assert encoder(load(bert), max_length=512).max_length == 64


@pytest.mark.parametrize("value", [1, 4])
def test_a_longest_length_without_room_for_text(bert: Path, value: int) -> None:
    change(bert / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(BackboneError, match=f"takes {value} tokens, which leaves no room"):
        encoder(load(bert))


# ---------------------------------------------------------------- vocabularies


def change_tokenizer(folder: Path, vocabulary: dict[str, int] | None = None, **fields: Any) -> None:
    """Set fields of tokenizer.json, and words of its vocabulary."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes()) | fields
    if vocabulary is not None:
        content["model"]["vocab"] = vocabulary
    path.write_text(json.dumps(content), encoding="utf-8")


def words() -> dict[str, int]:
    return {word: number for number, word in enumerate(VOCABULARY)}


def test_a_vocabulary_that_is_larger_than_the_embedding(bert: Path) -> None:
    change_tokenizer(bert, words() | {"extra": len(VOCABULARY)})
    said = rf"tokenizer\.json has the token 'extra' with id {len(VOCABULARY)}, but vocab_size"
    with pytest.raises(BackboneError, match=said):
        load(bert)


def test_a_special_token_beyond_the_embedding(bert: Path) -> None:
    content = json.loads((bert / "tokenizer.json").read_bytes())
    content["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [999_999]
    (bert / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"with id 999,999, but vocab_size"):
        load(bert)


def test_an_added_token_beyond_the_embedding_matters_where_it_is_used(bert: Path) -> None:
    added = {
        "id": len(VOCABULARY), "content": "<more>", "special": False,
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
    }  # fmt: skip
    change_tokenizer(bert, added_tokens=[added])
    made = encoder(load(bert))
    assert len(made(["good book"]).n_tokens) == 1
    with pytest.raises(BackboneError, match="has no embedding of its tokenizer's token '<more>'") as caught:
        made.tokenize(["good", "bad <more> book"])
    assert caught.value.row == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("vocabulary", [{}, {word: number for number, word in enumerate(VOCABULARY[:5])}])
def test_an_empty_vocabulary(bert: Path, vocabulary: dict[str, int]) -> None:
    change_tokenizer(bert, vocabulary)
    with pytest.raises(BackboneError, match=r"tokenizer\.json has an empty vocabulary"):
        load(bert)


def test_a_text_that_the_tokenizer_refuses(bert: Path) -> None:
    change_tokenizer(bert, model={"type": "Unigram", "unk_id": None, "vocab": [["good", 0.0]]})
    made = encoder(load(bert))
    with pytest.raises(BackboneError, match=r"the tokenizer of bert fails: .*unk_id.*text: 'zzz'"):
        made.tokenize(["zzz"])


@pytest.mark.parametrize("long_text", ["truncate", "chunks"])
def test_a_text_on_which_tokenizers_panics(bert: Path, long_text: str) -> None:
    slow = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    change_tokenizer(bert, normalizer=slow)
    made = encoder(load(bert), long_text=long_text, overlap=8)
    with pytest.raises(BackboneError, match="the tokenizer of bert fails: PanicException") as caught:
        made.tokenize(["good", "a" * 30 + "b"])
    assert caught.value.row == 1  # type: ignore[attr-defined]


def test_a_tokenizer_on_which_tokenizers_panics(bert: Path) -> None:
    change_tokenizer(bert, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(BackboneError, match=r"cannot load bert.*PanicException"):
        load(bert)
