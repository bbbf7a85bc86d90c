"""What is found in the cache without a forward pass, what is missing, and what a miss says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featcache.backbone.model import Backbone
from featcache.errors import CacheMiss
from featcache.extraction.api import extract_splits
from tests.support.extraction import (
    COUNTS,
    TRAIN,
    Case,
    assert_hit,
    assert_same_as_fresh,
    counted,
    reference_hash,
)
from tests.support.source_files import write, write_rows


def test_the_second_time_nothing_is_run(case: Case, passes: list[int]) -> None:
    before = case.files()[0].stat().st_mtime_ns
    results = extract_splits(case.settings(), ["test", "train"])
    assert [(one.split, one.rows, one.cached, one.encoded) for one in results] == [
        ("test", 20, True, 0),
        ("train", 60, True, 0),
    ]
    assert passes == [] and case.files()[0].stat().st_mtime_ns == before
    assert results[1].tokens == int(np.sum(case.find().sealed.column("n_tokens")))


def test_the_second_time_nothing_heavy_is_imported(case: Case) -> None:
    code = (
        "import json, sys\n"
        "from featcache.settings import load_settings\n"
        "from featcache.extraction.api import extract_splits, find_features\n"
        "settings = load_settings(json.loads(sys.argv[1]))\n"
        "assert [one.cached for one in extract_splits(settings, ['train', 'test'])] == [True, True]\n"
        "total = float(find_features(settings, 'train').features('last/cls').x.astype('f8').sum())\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'datasets', 'pyarrow', 'sklearn', 'h5py'}\n"
        "print(json.dumps([total, sorted(heavy & set(sys.modules))]))\n"
    )
    asked = {"model": str(case.model), "dataset": str(case.data), "cache_dir": str(case.cache)}
    command = [sys.executable, "-c", code, json.dumps({**asked, "dtype": "float32"})]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, heavy = json.loads(done.stdout)
    assert heavy == []
    assert total == float(case.find().features("last/cls").x.astype("f8").sum())


def test_paths_and_times_do_not_count(case: Case) -> None:
    moved = case.own_model()
    shutil.move(moved.model, case.folder / "renamed")
    shutil.move(case.folder, case.folder.with_name("elsewhere"))
    folder = case.folder.with_name("elsewhere")
    for path in (*folder.glob("reviews/*"), *folder.glob("renamed/*")):
        os.utime(path, (1, 1))
    assert_hit(Case(folder, folder / "renamed", case.asked))


def test_data_under_another_name_is_found_by_its_rows(case: Case) -> None:
    for split in COUNTS:
        (case.data / f"{split}.jsonl").rename(case.folder / f"{split}-renamed.jsonl")
    files = {split: str(case.folder / f"{split}-renamed.jsonl") for split in COUNTS}
    changes: dict[str, Any] = {"dataset": "unused", "data_files": files}
    with pytest.raises(CacheMiss, match=r"source\.files\.train\.name"):
        case.find(**changes)
    with counted() as passes:
        result = case.extract(**changes)
    assert (result.cached, result.encoded, passes) == (True, 0, [])
    assert_hit(case, **changes)  # and from now on without reading the rows
    assert len(case.files()) == 2


def test_the_same_rows_in_another_format(case: Case) -> None:
    (case.folder / "csv").mkdir()
    for split in COUNTS:
        rows = case.rows(split)
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
        write_rows(case.folder / "csv" / f"{split}.csv", texts, labels)
    with counted() as passes:
        result = case.extract(dataset=str(case.folder / "csv"))
    assert (result.cached, result.encoded, passes) == (True, 0, [])


def test_calling_the_tokenizer_changes_nothing(case: Case) -> None:
    """It does change a fast tokenizer's state, and with it the hash `datasets` would take of it."""
    from transformers import AutoTokenizer

    mine = case.own_model()
    tokenizer = AutoTokenizer.from_pretrained(mine.model)
    tokenizer(["好", "好坏"], truncation=True, max_length=5, padding="max_length")
    tokenizer(["好", "坏"], truncation=False)
    assert_hit(mine)


def test_files_that_are_no_part_of_the_model_do_not_count(case: Case) -> None:
    mine = case.own_model()
    for name in ("README.md", "pytorch_model.bin", "training_args.json", "onnx/model.onnx"):
        write(mine.model / name, "x")
    assert_hit(mine)


@pytest.mark.parametrize(
    "changes", [{"batch_tokens": 99}, {"device": "cpu"}, {"epochs": 3}, {"seed": 5}], ids=str
)
def test_settings_that_change_no_feature_do_not_count(case: Case, changes: dict[str, Any]) -> None:
    assert_hit(case, **changes)


def test_some_of_the_views_are_a_hit(case: Case) -> None:
    case.extract(views="last/cls,-2/mean,0/max")
    for views in ("-2/mean", "0/max,-2/mean", "last/cls", "0/max,last/cls,-2/mean"):
        assert_hit(case, views=views)
    with pytest.raises(CacheMiss, match=r"views .*wanted last/max"):
        case.find(views="last/cls,last/max")


@pytest.mark.parametrize(
    "changes", [{"views": "-1/cls"}, {"views": "3/cls, last/cls"}, {"max_length": 64}], ids=str
)
def test_another_spelling_of_the_same_features(case: Case, changes: dict[str, Any]) -> None:
    with counted() as passes:
        result = case.extract(**changes)
    assert (result.encoded, result.reused, passes) == (0, TRAIN, [])
    assert result.path == case.find().path and len(case.files()) == 2
    assert_hit(case, **changes)
    assert_hit(case)


def change_row(number: int, **changes: Any) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        rows = case.rows()
        rows[number] |= changes
        case.write(rows)
        return case

    return change


def reverse(case: Case) -> Case:
    case.write(case.rows()[::-1])
    return case


def drop_last(case: Case) -> Case:
    case.write(case.rows()[:-1])
    return case


def rename_label(case: Case) -> Case:
    for split in COUNTS:
        case.write(
            [row | {"label": {"good": "great"}.get(row["label"], "bad")} for row in case.rows(split)], split
        )
    return case


def change_weights(case: Case) -> Case:
    mine = case.own_model()
    file = mine.model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return mine


def append_blank(name: str) -> Callable[[Case], Case]:
    def change(case: Case) -> Case:
        mine = case.own_model()
        with (mine.model / name).open("a") as file:
            file.write("\n")
        return mine

    return change


def keep(case: Case) -> Case:
    return case


FILE = r"source\.files\.train\.sha256"
MISSES: dict[str, tuple[Callable[[Case], Case], dict[str, Any], str, int]] = {
    "text": (change_row(7, text="好" * 9), {}, FILE, 1),
    "order": (reverse, {}, FILE, 0),
    "a row less": (drop_last, {}, FILE, 0),
    "label": (change_row(7, label="bad"), {}, FILE, 0),
    "label name": (rename_label, {}, FILE, 0),
    "order of labels": (keep, {"label_names": "good,bad"}, r"source\.label_names", 0),
    "text column": (keep, {"text_column": "name"}, r"source\.text_column", TRAIN),
    "pair column": (keep, {"pair_column": "name"}, r"source\.pair_column", TRAIN),
    "weights": (change_weights, {}, r"encoder\.files\.model\.safetensors", TRAIN),
    "tokenizer": (append_blank("tokenizer.json"), {}, r"encoder\.files\.tokenizer\.json", TRAIN),
    "tokenizer settings": (
        append_blank("tokenizer_config.json"), {}, r"encoder\.files\.tokenizer_config\.json", TRAIN,
    ),
    "config": (append_blank("config.json"), {}, r"encoder\.files\.config\.json", TRAIN),
    "view": (keep, {"views": "last/mean"}, r"views \(cached last/cls, wanted last/mean\)", TRAIN),
    "max_length": (keep, {"max_length": 20}, r"encoder\.max_length \(cached 512, wanted 20\)", TRAIN),
    "prompt": (keep, {"prompt": "书"}, r"encoder\.prompt \(cached '', wanted '书'\)", TRAIN),
    "dtype": (keep, {"dtype": "bfloat16"}, r"encoder\.dtype \(cached 'float32', wanted 'bfloat16'\)", TRAIN),
    "storage": (keep, {"storage": "float32"}, r"encoder\.storage .*wanted 'float32'", TRAIN),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSES)
def test_a_miss_says_what_differs(case: Case, name: str) -> None:
    change, changes, field, encoded = MISSES[name]
    old = case.find()
    changed = change(case)
    with pytest.raises(CacheMiss, match=field) as caught:
        changed.find(**changes)
    assert "featcache extract --split train" in (caught.value.hint or "")
    assert old.path.name in caught.value.what
    result = changed.extract(**changes)
    assert (result.cached, result.encoded, result.reused) == (False, encoded, result.rows - encoded)
    assert result.fingerprint != old.fingerprint and result.path != old.path
    found = changed.find(**changes)
    assert found.fingerprint == result.fingerprint and found.sealed.verify()
    assert_same_as_fresh(changed, **changes)


def test_only_the_fields_that_differ_are_named(case: Case) -> None:
    with pytest.raises(CacheMiss) as caught:
        case.find(prompt="书", max_length=20)
    named = caught.value.what.partition(" differs in ")[2]
    assert [part.split(" ")[0] for part in named.split("; ")] == ["encoder.max_length", "encoder.prompt"]


def test_nothing_is_found_in_an_empty_cache(case: Case) -> None:
    shutil.rmtree(case.cache)
    with pytest.raises(CacheMiss, match="no features of the train split for these settings\n"):
        case.find()
    with pytest.raises(CacheMiss):
        case.find("validation")


def test_the_held_out_rows_depend_on_the_seed(case: Case) -> None:
    (case.data / "validation.jsonl").unlink()
    first = extract_splits(case.settings(), ["train", "validation"])
    assert [(one.rows, one.encoded) for one in first] == [(54, 0), (6, 0)]  # all known by their hashes
    with pytest.raises(CacheMiss, match=r"source\.seed \(cached 0, wanted 1\)"):
        case.find(seed=1)
    second = extract_splits(case.settings(seed=1), ["train", "validation"])
    assert [(one.rows, one.encoded, one.cached) for one in second] == [(54, 0, False), (6, 0, False)]
    assert second[0].fingerprint != first[0].fingerprint
    rows = [case.find(split, seed=1).sealed.column("row_hash") for split in ("train", "validation")]
    hashes = {row.tobytes() for part in rows for row in part}
    assert hashes == {reference_hash(row["text"]) for row in case.rows()}


def requests(*known: Any) -> bytes:
    return json.dumps({"requests": list(known)}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"{", b"\xff\xfe\0", b"[]", b"null", b"{}", b'{"requests": {}}', b'{"requests": null}'),
        *(requests(), requests(1), requests(None), requests([]), requests({}), requests({"views": 1})),
        requests({"split": "train", "encoder": {}, "views": {}}),
        requests({"views": {"last/cls": "last/cls"}, "split": "train"}),
    ],
)
def test_a_lost_record_costs_no_forward_pass(case: Case, content: bytes | None) -> None:
    path = case.find().path
    record = path.with_suffix(".json")
    expected = case.features()
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content)
    with pytest.raises(CacheMiss):
        case.find()
    with counted() as passes:
        result = case.extract()
    assert (result.path, result.encoded, result.rows, passes) == (path, 0, TRAIN, [])
    assert_hit(case)
    assert (case.features() == expected).all()


def test_a_damaged_record_brings_up_nothing_else(case: Case) -> None:
    """A damaged record may be a miss; features of other settings are never served for it."""
    case.extract(max_length=20)
    right = case.find(max_length=20)
    record = right.path.with_suffix(".json")
    whole = record.read_bytes()
    assert whole.count(b'"max_length": 20') == 1
    for length in (21, 24, 60):  # one bit each
        record.write_bytes(whole.replace(b'"max_length": 20', b'"max_length": %d' % length))
        with pytest.raises(CacheMiss):
            case.find(max_length=length)
    for place in range(0, len(whole), 17):
        record.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert case.find(max_length=20).fingerprint == right.fingerprint
        except CacheMiss:
            pass


def test_the_record_of_another_file_is_not_believed(case: Case) -> None:
    case.extract(prompt="书")
    with_prompt, without = case.find(prompt="书").path, case.find().path
    expected = {"": case.features(), "书": case.features(prompt="书")}
    records = [path.with_suffix(".json") for path in (with_prompt, without)]
    contents = [record.read_bytes() for record in records]
    for record, content in zip(records, reversed(contents), strict=True):
        record.write_bytes(content)
    for prompt, values in expected.items():
        case.extract(prompt=prompt)
        assert (case.features(prompt=prompt) == values).all()


def test_the_record_says_how_it_came_to_be(case: Case) -> None:
    made = case.find().record.made
    assert made.encoded == TRAIN and made.model == str(case.model)
    assert made.tokens == int(np.sum(case.find().sealed.column("n_tokens")))
    assert {"torch", "transformers"} <= set(made.versions or ()) and made.device == "cpu"


def test_states_is_what_is_counted(case: Case, passes: list[int]) -> None:
    """The counting itself: it sees the real model, by the method every extraction goes through."""
    assert Backbone.states.__name__ == "counting"
    case.extract(prompt="书")
    assert sum(passes) == TRAIN
