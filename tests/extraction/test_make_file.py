"""Which rows are encoded, which are copied from other files, and what the sealed file holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.errors import CacheError, CorruptCache
from featcache.extraction.api import extract_splits
from tests.support.extraction import (
    COUNTS,
    TRAIN,
    Case,
    assert_hit,
    assert_same_as_fresh,
    counted,
    reference_hash,
    some_texts,
)


def test_one_more_row_is_one_text(case: Case, passes: list[int]) -> None:
    old = case.features()
    rows = case.rows()
    case.write([*rows[:30], {"text": "新书很好", "label": "good"}, *rows[30:]])
    result = case.extract()
    assert (result.rows, result.encoded, result.reused, passes) == (TRAIN + 1, 1, TRAIN, [1])
    now = case.features()
    assert np.array_equal(np.delete(now, 30, 0), old)
    assert_same_as_fresh(case)


def test_equal_texts_are_encoded_once(case: Case, passes: list[int]) -> None:
    shutil.rmtree(case.cache)
    same = [{"text": "书很好", "label": "bad" if number % 2 else "good"} for number in range(100)]
    rows = case.rows()
    case.write([*same[:50], *rows, *same[50:]])
    result = case.extract()
    assert (result.rows, result.encoded, sum(passes)) == (TRAIN + 100, TRAIN + 1, TRAIN + 1)
    values = case.features()
    assert len(np.unique(values, axis=0)) == TRAIN + 1
    assert (values[:50] == values[0]).all() and (values[-50:] == values[0]).all()
    labels = case.find().features("last/cls").y
    assert labels[:4].tolist() == [1, 0, 1, 0]  # labels are of the row, features of the text


def test_thousands_of_equal_texts(case: Case, passes: list[int]) -> None:
    case.write([{"text": "很好", "label": number % 2} for number in range(3000)])
    for split in ("validation", "test"):
        case.write([{"text": "很好", "label": 1}], split)
    result = case.extract()
    assert (result.rows, result.encoded, passes) == (3000, 1, [1])
    assert len(np.unique(case.features(), axis=0)) == 1


def test_a_split_takes_rows_from_another(case: Case, passes: list[int]) -> None:
    rows = case.rows("test")
    case.write([*case.rows()[:9], *rows[:5]], "validation")
    assert case.extract("validation").encoded == 0 and passes == []
    assert_same_as_fresh(case, "validation")


def test_two_splits_of_equal_rows(case: Case, passes: list[int]) -> None:
    """Some data sets bring their test split a second time as validation."""
    shutil.copy(case.data / "test.jsonl", case.data / "validation.jsonl")
    results = extract_splits(case.settings(), ["train", "validation", "test"])
    assert [(one.split, one.encoded) for one in results] == [("train", 0), ("validation", 0), ("test", 0)]
    for split in ("train", "validation", "test"):
        assert case.find(split).split == split
    assert passes == []
    assert (case.features(split="validation") == case.features(split="test")).all()


@pytest.mark.parametrize("seed", range(3))
def test_rows_from_everywhere_land_in_their_places(
    case: Case, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two cache files, from several units, once and again: each row gets its own text's vector."""
    monkeypatch.setattr("featcache.extraction.partition.UNIT_ROWS", 8)
    monkeypatch.setattr("featcache.extraction.assemble.ASSEMBLE_ROWS", 7)
    draw = np.random.default_rng(seed)
    texts = [row["text"] for split in ("train", "test") for row in case.rows(split)] + some_texts(
        50, 9 + seed
    )
    rows = [{"text": texts[i], "label": int(i) % 2} for i in draw.integers(0, len(texts), 150)]
    case.write(rows)
    for split in ("validation", "test"):
        case.write([{"text": "很好", "label": 1}], split)
    result = case.extract()
    new = {row["text"] for row in rows} - set(texts[: TRAIN + COUNTS["test"]])
    assert result.encoded == len(new) > 16
    monkeypatch.undo()
    assert_same_as_fresh(case)


def test_several_views_are_one_pass(case: Case) -> None:
    views = ("last/cls", "last/mean", "-2/mean", "0/max", "1/last")
    fresh = case.fresh("all")
    with counted() as together:
        fresh.extract(views=views)
    names = {"last/cls", "last/mean", "-2/mean", "-3/last", "-4/max"}  # layers counted from the last
    assert set(fresh.find(views=views).views) == names
    for number, view in enumerate(views):
        single = case.fresh(str(number))
        with counted() as alone:
            single.extract(views=view)
        assert alone == together and sum(alone) == TRAIN
        (name,) = single.find(views=view).views
        a, b = fresh.features(name, views=views), single.features(name, views=view)
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_force_encodes_again(case: Case, passes: list[int]) -> None:
    path = case.find().path
    content, made = path.read_bytes(), path.stat().st_ino
    result = case.extract(force=True)
    assert (result.cached, result.encoded, sum(passes), result.path) == (False, TRAIN, TRAIN, path)
    assert path.read_bytes() == content and path.stat().st_ino != made
    assert case.leftovers() == []
    assert_hit(case)


def test_force_replaces_what_is_damaged(case: Case) -> None:
    path = case.find().path
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert case.extract(force=True).encoded == TRAIN
    assert path.read_bytes() == content


def test_the_file_read_with_nothing_but_h5py(case: Case) -> None:
    from transformers import AutoTokenizer

    rows = case.rows()
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    lengths = [len(tokenizer(row["text"])["input_ids"]) for row in rows]
    limit = lengths[0]  # a text that just fits, beside some that do not
    path = case.extract(max_length=limit, views="last/cls,-2/mean").path
    with h5py.File(path, "r") as file:
        assert file["/views/last-cls"].shape == file["/views/-2-mean"].shape == (TRAIN, 32)
        assert file["/views/last-cls"].dtype == np.float16
        assert [row.tobytes() for row in file["/row_hash"][()]] == [reference_hash(r["text"]) for r in rows]
        names = json.loads(file["/meta"][()].tobytes())["document"]["labels"]["names"]
        assert names == ["bad", "good"]
        assert [names[label] for label in file["/labels"][()]] == [row["label"] for row in rows]
        assert file["/n_tokens"][()].tolist() == [min(length, limit) for length in lengths]
        assert file["/truncated"][()].tolist() == [int(length > limit) for length in lengths]
        assert file.attrs["split"] == "train" and path.stem.endswith(file.attrs["fingerprint"][:12])
    cut = sum(length > limit for length in lengths)
    assert case.extract(max_length=limit).truncated == case.find(max_length=limit).truncated == cut > 0


def test_features_are_those_of_transformers(case: Case) -> None:
    """Against the model itself, one text at a time, without any code of ours."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    case.extract(storage="float32", views="last/cls,-2/mean,-4/max", max_length=20, prompt="书 ")
    model = AutoModel.from_pretrained(case.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    changes: dict[str, Any] = {"storage": "float32", "max_length": 20, "prompt": "书 "}
    stored = {view: case.features(view, views=view, **changes) for view in ("last/cls", "-2/mean", "-4/max")}
    for number, row in enumerate(case.rows()):
        tokens = tokenizer("书 " + row["text"], truncation=True, max_length=20, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens, output_hidden_states=True).hidden_states
        expected = {
            "last/cls": states[3][0, 0], "-2/mean": states[2][0].mean(0), "-4/max": states[0][0].amax(0),
        }  # fmt: skip
        for view, values in expected.items():
            np.testing.assert_allclose(stored[view][number], values.numpy(), rtol=1e-4, atol=1e-5)


def test_pairs(case: Case, passes: list[int]) -> None:
    first = {"sentence1": "好书", "sentence2": "坏书", "label": 0}
    rows = [first, first | {"sentence2": "", "label": 1}, first | {"sentence1": "好", "sentence2": "书坏书"}]
    rows += [{"sentence1": "好", "sentence2": "坏书", "label": 1}, first | {"label": 1}]
    for split in COUNTS:
        case.write(rows, split)
    result = case.extract()
    assert (result.rows, result.encoded, sum(passes)) == (5, 4, 4)
    found = case.find().sealed.column("row_hash")
    assert [row.tobytes() for row in found] == [
        reference_hash(row["sentence1"], row["sentence2"]) for row in rows
    ]
    values = case.features()
    assert len(np.unique(values, axis=0)) == 4 and (values[0] == values[4]).all()
    for split in COUNTS:  # a pair is not the text alone
        case.write([{"text": row["sentence1"], "label": row["label"]} for row in rows], split)
    assert case.extract().encoded == 2


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def place_of(path: Path, name: str) -> int:
    with h5py.File(path, "r") as file:
        return int(file[name].id.get_offset())


def test_a_damaged_view_is_never_served(case: Case) -> None:
    path = case.find().path
    flip(path, place_of(path, "views/last-cls") + 5)
    with pytest.raises(CorruptCache, match=r"chunk 0 of views/last-cls") as caught:
        case.features()
    assert "featcache cache rm" in (caught.value.hint or "")
    path.unlink()
    assert case.extract().encoded == TRAIN
    assert case.find().sealed.verify()


@pytest.mark.parametrize("place", [0, 30, 200, -1])
def test_after_extract_the_file_is_whole(case: Case, place: int, passes: list[int]) -> None:
    """A file that cannot be opened is replaced, or refused before the backbone has run for nothing."""
    path = case.find().path
    content = path.read_bytes()
    flip(path, place % len(content))
    try:
        case.extract()
    except CacheError:
        assert passes == []
    else:
        assert path.read_bytes() == content
        assert_hit(case)


def test_a_damaged_neighbour_does_no_harm(case: Case) -> None:
    """Rows are not taken from a damaged file, at least not without a word."""
    path = case.find().path
    flip(path, place_of(path, "views/last-cls") + 5)
    case.write([*case.rows(), {"text": "新书很好", "label": "good"}])
    try:
        result = case.extract()
    except CorruptCache as error:
        assert path.name in error.what and "featcache cache rm" in (error.hint or "")
        path.unlink()
        result = case.extract()
    assert result.encoded == TRAIN + 1 and case.leftovers() == []
    assert_same_as_fresh(case)


def test_other_files_in_the_cache_folder_are_left_alone(case: Case) -> None:
    folder = case.find().path.parent
    foreign = [folder / "train-notes.h5", folder / "train-000000000000.h5", folder / "train-x.json"]
    with h5py.File(foreign[0], "w") as file:
        file["x"] = np.arange(3)
    for path in foreign[1:]:
        path.write_bytes(b"mine")
    (folder / "train-folder.h5").mkdir()
    before = [path.read_bytes() for path in foreign]
    assert_hit(case)
    case.extract(force=True)
    case.extract(prompt="书")
    assert [path.read_bytes() for path in foreign] == before
