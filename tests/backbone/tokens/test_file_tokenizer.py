"""The tokenizer of a tokenizer.json makes the ids that transformers' own classes make, or is left to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from featcache.backbone.tokens.file_tokenizer import SPECIAL, FileTokenizer
from tests.support.stock import mixed
from tests.support.tiny import VOCABULARY

TEXTS = [*mixed(), "", "GOOD Room É é", "[MASK] 房间 [SEP] [PAD]", "好\u3000书\n\tthe", "<x> new"]
BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def change(
    bert: Path, settings: dict[str, Any], edit: Callable[[Tokenizer], object] = lambda _: None
) -> None:
    """Change the settings and the tokenizer of a folder; None takes a setting away."""
    path, file = bert / "tokenizer_config.json", bert / "tokenizer.json"
    content = json.loads(path.read_text("utf-8")) | settings
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), "utf-8")
    backend = Tokenizer.from_file(str(file))
    edit(backend)
    backend.save(str(file))


def add_special(backend: Tokenizer) -> None:
    backend.add_special_tokens(VOCABULARY[:5])


def cased(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)


def baked(backend: Tokenizer) -> None:
    backend.enable_truncation(9, direction="left")
    backend.enable_padding(length=12, pad_id=0, pad_token="[PAD]")


def bits(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, "special": True, **flags}


UNDERSTOOD: dict[str, tuple[dict[str, Any], Callable[[Tokenizer], object]]] = {
    "as it is": ({}, lambda _: None),
    "without a mask": ({"mask_token": None}, lambda _: None),
    "as written in a dictionary": (
        {"mask_token": {"__type": "AddedToken", **bits("[MASK]")}}, lambda _: None,
    ),
    "truncated on the left": ({"truncation_side": "left"}, lambda _: None),
    "with baked truncation and padding": ({"pad_token": None}, baked),
    "no token types": ({"model_input_names": ["input_ids", "attention_mask"]}, lambda _: None),
    "a new special token": ({"bos_token": "<x>"}, lambda _: None),
    "class of BERT": (BERT, add_special),
    "class of BERT, tokens not added": (BERT, lambda _: None),
    "class of BERT by default": ({"tokenizer_class": None}, add_special),
    "class of BERT, cased": ({**BERT, "do_lower_case": False}, cased),
    "class of BERT with added tokens": (
        {**BERT, "added_tokens_decoder": {str(i): bits(VOCABULARY[i]) for i in range(5)}}, add_special,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "edit"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_file_tokenizer_makes_the_ids_of_transformers(
    settings: dict[str, Any], edit: Callable[[Tokenizer], object], bert: Path
) -> None:
    from transformers import AutoTokenizer

    change(bert, settings, edit)
    own, stock = FileTokenizer.read(bert, "bert"), AutoTokenizer.from_pretrained(bert)
    assert own is not None
    for pairs in (None, TEXTS[::-1]):
        for options in ({}, {"truncation": True, "max_length": 8}, {"add_special_tokens": False}):
            found, wanted = own(TEXTS, pairs, **options), stock(TEXTS, pairs, **options)
            assert found["input_ids"] == wanted["input_ids"]
            assert found.get("token_type_ids") == wanted.get("token_type_ids")
            overflowing = [bool(one.overflowing) for one in wanted.encodings]
            assert [bool(one.overflowing) for one in found.encodings] == overflowing
    assert own("a good room")["input_ids"] == stock("a good room")["input_ids"]
    for name in (*SPECIAL, *(f"{name}_id" for name in SPECIAL)):
        assert getattr(own, name) == getattr(stock, name), name
    assert set(own.all_special_ids) == set(stock.all_special_ids)
    assert (own.get_vocab(), own.get_added_vocab()) == (stock.get_vocab(), stock.get_added_vocab())
    assert (len(own), own.model_max_length) == (len(stock), stock.model_max_length)
    assert (own.truncation_side, own.padding_side) == (stock.truncation_side, stock.padding_side)
    assert own.convert_ids_to_tokens(7) == stock.convert_ids_to_tokens(7)
    for pair in (False, True):
        assert own.num_special_tokens_to_add(pair) == stock.num_special_tokens_to_add(pair)


LEFT_TO_TRANSFORMERS: dict[str, tuple[dict[str, Any], Callable[[Tokenizer], object]]] = {
    "another class": ({"tokenizer_class": "RobertaTokenizer"}, lambda _: None),
    "a setting that is not known": ({"split_special_tokens": True}, lambda _: None),
    "more special tokens": ({"extra_special_tokens": ["<y>"]}, lambda _: None),
    "inputs by the version of transformers": ({"model_input_names": None}, lambda _: None),
    "BERT with another normaliser": ({**BERT, "do_lower_case": False}, lambda _: None),
    "BERT without its template": (BERT, lambda backend: setattr(backend, "post_processor", None)),
    "added tokens that the file lacks": (
        {"added_tokens_decoder": {"3": bits("[SEP]")}}, lambda _: None,
    ),
    "added tokens of other flags": (
        {"added_tokens_decoder": {"3": bits("[SEP]")}},
        lambda backend: backend.add_tokens([AddedToken("[SEP]", lstrip=True, special=True)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "edit"), LEFT_TO_TRANSFORMERS.values(), ids=LEFT_TO_TRANSFORMERS)
def test_file_tokenizer_is_left_to_transformers(
    settings: dict[str, Any], edit: Callable[[Tokenizer], object], bert: Path
) -> None:
    change(bert, settings, edit)
    assert FileTokenizer.read(bert, "bert") is None


def test_file_tokenizer_reads_special_tokens_map(bert: Path) -> None:
    from transformers import AutoTokenizer

    change(bert, dict.fromkeys(SPECIAL))
    content = {"pad_token": "[PAD]", "mask_token": bits("[MASK]")}
    (bert / "special_tokens_map.json").write_text(json.dumps(content))
    own, stock = FileTokenizer.read(bert, "bert"), AutoTokenizer.from_pretrained(bert)
    assert own is not None and own.sep_token is None
    assert own(TEXTS)["input_ids"] == stock(TEXTS)["input_ids"]
    (bert / "added_tokens.json").write_text("{}")
    assert FileTokenizer.read(bert, "bert") is None
