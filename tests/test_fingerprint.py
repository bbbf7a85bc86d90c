"""Equal values give equal fingerprints, others do not, and what differs is named."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.extraction.partition import first_occurrence
from featcache.fingerprint import (
    CacheDocument,
    EncoderDocument,
    Request,
    RequestedEncoder,
    TunedPart,
    canonical,
    differences,
    file_hash,
    fingerprint,
    row_hash,
    row_hashes,
)
from featcache.settings import FeatureSettings
from tests.support.documents import cache_document, encoder_document
from tests.support.extraction import reference_hash as reference

keys = st.text("abcdé中_", min_size=1, max_size=4)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(keys, values, max_size=5)
# Strings as JSON and Python hold them, and as UTF-8 can.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

# ---------------------------------------------------------------- documents

ALWAYS = {"files", "prompt", "max_length", "dtype", "storage"}  # fields that every request has


def later_settings(features: FeatureSettings) -> dict[str, Any]:
    """The fields of a request that are there only where they count."""
    asked = RequestedEncoder.of({}, "auto", features).to_json()
    return {name: value for name, value in asked.items() if name not in ALWAYS}


def shuffled(value: Any, draw: random.Random) -> Any:
    """An equal value, the keys of every dictionary in it in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, draw)) for key, inner in value.items()]
        draw.shuffle(items)
        return dict(items)
    return [shuffled(inner, draw) for inner in value] if isinstance(value, list) else value


@given(document=documents, seed=st.integers(0, 99))
def test_canonical_gives_equal_bytes_for_equal_values(document: dict[str, Any], seed: int) -> None:
    other = shuffled(document, random.Random(seed))
    assert canonical(other) == canonical(document)
    assert fingerprint(other) == fingerprint(document)
    assert differences(document, other) == []
    assert json.loads(canonical(document)) == document  # and nothing is lost on the way
    assert differences(document, json.loads(canonical(document))) == []  # nor by going through a file


@given(one=documents, two=documents)
def test_differences_agrees_with_fingerprint(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert bool(differences(one, two)) == (fingerprint(one) != fingerprint(two))


@pytest.mark.parametrize(
    ("cached", "wanted"),
    [
        ({"a": None}, {}),
        ({}, {"a": None}),
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": 1}, {"a": 1.0}),
    ],
)
def test_fingerprint_tells_values_apart_that_python_calls_equal(cached: Any, wanted: Any) -> None:
    assert fingerprint(cached) != fingerprint(wanted)
    assert [difference.field for difference in differences(cached, wanted)] == ["a"]


def leaf_paths(document: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from leaf_paths(value, (*path, key))
        else:
            yield (*path, key)


@given(document=documents.filter(bool), data=st.data())
def test_differences_names_the_changed_field(document: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(leaf_paths(document))))
    other = json.loads(json.dumps(document))
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = ["changed", inner[path[-1]]]
    assert fingerprint(other) != fingerprint(document)
    found = differences(document, other)
    assert [difference.field for difference in found] == [".".join(path)]
    assert found[0].wanted == inner[path[-1]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), b"x", {1}])
def test_canonical_refuses_what_json_does_not_have(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical({"a": value})


def encoder(**changes: Any) -> EncoderDocument:
    files = {"model.safetensors": "0" * 64, "tokenizer.json": "1" * 64}
    return encoder_document(**{"files": files, "max_length": 512, **changes})


def cache(document: EncoderDocument | None = None, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "views": ["last/cls"],
        "hashes": row_hashes(["a", "b", "c"]),
        "labels": np.array([0, 1, 0]),
        "label_names": ["bad", "good"],
    }
    return cache_document(document or encoder(), **(fields | changes)).to_json()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (cache(encoder(prompt="query: ")), "encoder.prompt"),
        (cache(encoder(max_length=256)), "encoder.max_length"),
        (cache(encoder(truncation_side="left")), "encoder.truncation_side"),
        (cache(encoder(compute="bfloat16")), "encoder.dtype.compute"),
        (cache(encoder(storage="float32")), "encoder.dtype.storage"),
        (cache(encoder(long_text="head-tail")), "encoder.long_text"),
        (cache(encoder(overlap=64)), "encoder.overlap"),
        (cache(encoder(positions={"how": "copy", "length": 1500})), "encoder.positions"),
        (
            cache(encoder(files={"model.safetensors": "2" * 64, "tokenizer.json": "1" * 64})),
            "encoder.files.model.safetensors",
        ),
        (cache(encoder(files={"model.safetensors": "0" * 64})), "encoder.files.tokenizer.json"),
        (cache(views=["last/cls", "last/mean"]), "views"),
        (cache(hashes=row_hashes(["a", "b", "d"])), "rows.chain"),
        (cache(hashes=row_hashes(["b", "a", "c"])), "rows.chain"),
        (cache(labels=np.array([0, 1, 1])), "labels.chain"),
        (cache(label_names=["bad", "great"]), "labels.names"),
        (cache(label_names=["good", "bad"]), "labels.names"),
    ],
)
def test_every_field_of_a_cache_document_counts(changed: dict[str, Any], field: str) -> None:
    assert fingerprint(changed) != fingerprint(cache())
    assert [difference.field for difference in differences(cache(), changed)] == [field]


def test_order_of_views_and_integer_types_do_not_count() -> None:
    assert cache(views=["last/mean", "last/cls"]) == cache(views=["last/cls", "last/mean"])
    assert cache(labels=np.array([0, 1, 0], dtype=">i4")) == cache()
    assert cache(label_names=("bad", "good")) == cache()


def test_the_fingerprint_never_changes_with_the_version() -> None:
    """Files made by an earlier version must be found by this one: these are not to be adjusted."""
    assert canonical({"b": [1, "é"], "a": None}) == b'{"a":null,"b":[1,"\\u00e9"]}'
    document = cache()
    assert fingerprint(document) == hashlib.sha256(canonical(document)).hexdigest()
    assert fingerprint(document) == "9a922ec0528f90952aabaac815bfa5974821185f591d72547dd523439a60bed3"


def test_documents_and_requests_of_the_first_version_are_those_of_the_defaults() -> None:
    """Heads and caches from before long texts had settings go on being found."""
    assert list(encoder().to_json()) == [
        "format", "files", "prompt", "max_length", "truncation_side", "long_text", "dtype"
    ]  # fmt: skip
    assert (encoder().format, encoder().long_text) == (1, "truncate")
    assert encoder(long_text="truncate", overlap=None, positions=None) == encoder()
    assert later_settings(FeatureSettings()) == {}
    assert later_settings(FeatureSettings(overlap=3, max_length=99, prompt="x", storage="float32")) == {}


def test_requests_leave_newer_fields_out_at_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        FeatureSettings(extend_positions="copy"),
        FeatureSettings(extend_positions="random"),
        FeatureSettings(long_text="head-tail"),
        FeatureSettings(long_text="chunks"),
        FeatureSettings(long_text="chunks", overlap=3),
        FeatureSettings(),
    ]
    made = [canonical(later_settings(features)) for features in asked]
    assert len(set(made)) == len(asked)
    same = [FeatureSettings(long_text="head-tail", overlap=overlap) for overlap in (3, 4)]
    assert later_settings(same[0]) == later_settings(same[1])
    monkeypatch.setattr("featcache.fingerprint.FEATURE_FORMAT", 2)
    assert later_settings(FeatureSettings()) == {"format": 2}  # what was asked of format 1 is not answered
    assert encoder().format == 2


@pytest.mark.parametrize(
    "document",
    [
        encoder(),
        encoder(overlap=64, long_text="chunks", positions={"how": "copy", "length": 9}),
        encoder(tuned=TunedPart("all", None, "0" * 64)),
    ],
)
def test_documents_are_read_as_they_were_written(document: EncoderDocument) -> None:
    content = json.loads(json.dumps(document.to_json()))
    assert EncoderDocument.from_json(content) == document
    assert EncoderDocument.from_json(content).to_json() == content
    whole = json.loads(json.dumps(cache(document)))
    assert CacheDocument.from_json(whole).to_json() == whole
    assert CacheDocument.from_json(whole).fingerprint == fingerprint(whole)
    several = json.loads(json.dumps(cache(document, labels=np.ones((3, 2), np.uint8))))
    assert CacheDocument.from_json(several).to_json() == several


def test_fields_of_a_later_version_count_in_fingerprints() -> None:
    content = {**cache(), "weather": "fine", "encoder": {**encoder().to_json(), "rounding": None}}
    content["labels"]["language"] = content["encoder"]["dtype"]["sums"] = "unknown"
    document = CacheDocument.from_json(content)
    assert document.to_json() == content and document.fingerprint == fingerprint(content)
    assert document.encoder != encoder()


def test_null_stays_null_in_a_document_of_trained_blocks() -> None:
    content = encoder(tuned=TunedPart("all", None, "0" * 64)).to_json()
    assert content["tuned"] == {"part": "all", "cut": None, "weights": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": "9"},
        {"max_length": True},
        {"files": []},
        {"dtype": "float32"},
        {"dtype": {}},
        {"prompt": None},
    ],
    ids=str,
)
def test_from_json_refuses_other_types(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EncoderDocument.from_json({**encoder().to_json(), **changes})
    for content in (None, [], "x", {}):
        for kind in (EncoderDocument, CacheDocument, Request):
            with pytest.raises(ValueError):
                kind.from_json(content)


@pytest.mark.parametrize(
    ("cached", "wanted", "says"),
    [
        (512, 256, "f (cached 512, wanted 256)"),
        ("a" * 64, "b" * 64, "f (cached aaaaaaaaaaaa, wanted bbbbbbbbbbbb)"),
        ("", None, "f (cached '', wanted none)"),
        (["坏", "好"], "query: ", 'f (cached ["坏", "好"], wanted \'query: \')'),
    ],
)
def test_difference_as_text(cached: Any, wanted: Any, says: str) -> None:
    assert str(differences({"f": cached}, {"f": wanted})[0]) == says


def test_file_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- rows


@given(rows=st.lists(st.tuples(texts, texts), max_size=8))
def test_row_hashes(rows: list[tuple[str, str]]) -> None:
    alone = row_hashes([text for text, _ in rows])
    assert alone.shape == (len(rows), 32) and alone.dtype == np.uint8
    assert [row.tobytes() for row in alone] == [reference(text) for text, _ in rows]
    both = row_hashes([text for text, _ in rows], [pair for _, pair in rows])
    assert [row.tobytes() for row in both] == [reference(*row) for row in rows]


@given(
    one=st.tuples(st.none() | texts, st.none() | texts), two=st.tuples(st.none() | texts, st.none() | texts)
)
def test_row_hash_is_equal_for_equal_rows_only(one: tuple[Any, Any], two: tuple[Any, Any]) -> None:
    assert (row_hash(*one) == row_hash(*two)) == (one == two)


def test_row_hash_tells_similar_rows_apart() -> None:
    rows = [
        *(("", None), (None, None), (None, ""), ("", "")),
        *(("ab", "c"), ("a", "bc"), ("abc", None), ("abc", ""), ("", "abc"), (None, "abc")),
        *(("a\0", None), ("a", None), ("\0", "\0"), ("\1", None)),
        *(("é", None), ("e\u0301", None)),  # the same to the eye, other tokens to a tokenizer
    ]
    assert len({row_hash(*row) for row in rows}) == len(rows)


def test_row_hashes_needs_as_many_pairs_as_texts() -> None:
    with pytest.raises(ValueError):
        row_hashes(["a", "b"], ["c"])


@given(rows=st.lists(texts, min_size=2, max_size=6, unique=True), data=st.data())
def test_row_chain_depends_on_the_order(rows: list[str], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(rows))
    chains = [cache(hashes=row_hashes(order))["rows"]["chain"] for order in (rows, moved)]
    assert (chains[0] == chains[1]) == (rows == moved)
    assert chains[0] == hashlib.sha256(b"".join(map(reference, rows))).hexdigest()


@given(rows=st.lists(st.integers(0, 6), max_size=60), seed=st.integers(0, 9))
def test_first_occurrence(rows: list[int], seed: int) -> None:
    # Rows that differ in one byte only, so that a comparison of a part of the hash is seen.
    kinds = np.random.default_rng(seed).integers(0, 2, (1, 32), dtype=np.uint8).repeat(7, 0)
    kinds[np.arange(7), [0, 7, 8, 15, 16, 24, 31]] ^= 255
    first: dict[int, int] = {}
    expected = [first.setdefault(kind, place) for place, kind in enumerate(rows)]
    found = first_occurrence(kinds[rows].reshape(-1, 32))
    assert found.dtype == np.int64 and found.tolist() == expected
