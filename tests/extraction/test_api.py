"""Each text goes through the backbone once: what is a hit, what is a miss, and what is in the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.backbone.model import Backbone
from featcache.errors import BackboneError, CacheError, CacheMiss, CorruptCache, FeatcacheError, SourceError
from featcache.extraction.api import extract_splits
from tests.support.extraction import COUNTS, Case, counted, one_thread, reference_hash, some_texts, write_case
from tests.support.source_files import write, write_rows

TRAIN = COUNTS["train"]


@pytest.fixture(scope="module", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its Arrow files in one folder for all tests here."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        with one_thread():
            yield


@pytest.fixture(scope="module")
def made(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Train and test, extracted; not to be changed."""
    case = write_case(tmp_path_factory.mktemp("made"), tiny("bert"))
    first = extract_splits(case.settings(), ["train", "test"])
    assert [(one.rows, one.encoded, one.cached) for one in first] == [(60, 60, False), (20, 20, False)]
    return case


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    """A copy of `made` in the test's own folder: data and cache moved, that is."""
    shutil.copytree(made.folder, tmp_path / "case")
    return Case(tmp_path / "case", made.model, dict(made.asked))


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """Texts of each forward pass of the test."""
    with counted() as counts:
        yield counts


def assert_hit(case: Case, **changes: Any) -> None:
    """Both ways of asking are answered, and no forward pass is run."""
    with counted() as passes:
        case.find(**changes)
        result = case.extract(**changes)
    assert (result.cached, result.encoded, result.rows, passes) == (True, 0, TRAIN, [])


# ---------------------------------------------------------------- hits


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


# ---------------------------------------------------------------- misses


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


def assert_same_as_fresh(case: Case, split: str = "train", **changes: Any) -> None:
    """What the cache serves is what an extraction without any cache gives."""
    fresh = case.fresh(**changes)
    made = fresh.extract(split)
    one, two = case.find(split, **changes), fresh.find(split)
    assert one.fingerprint == made.fingerprint == two.fingerprint
    for view in two.views:
        a, b = one.features(view), two.features(view)
        assert a.label_names == b.label_names and (a.y == b.y).all()
        np.testing.assert_allclose(a.x.astype("f4"), b.x.astype("f4"), rtol=2e-3, atol=2e-3)
    for name in ("row_hash", "labels", "n_tokens", "truncated"):
        assert (one.sealed.column(name) == two.sealed.column(name)).all()


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


# ---------------------------------------------------------------- the record


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


# ---------------------------------------------------------------- only what is new


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


# ---------------------------------------------------------------- forward passes


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


# ---------------------------------------------------------------- what is in the file


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


# ---------------------------------------------------------------- texts at the edge


def test_a_text_of_a_megabyte(case: Case) -> None:
    rows = case.rows()
    rows[3]["text"] = "好书" * 170_000
    case.write(rows)
    result = case.extract()
    assert (result.encoded, result.truncated) == (1, 1)
    file = case.find()
    assert file.sealed.column("n_tokens")[3] == 64 and file.sealed.column("truncated").sum() == 1
    assert file.sealed.column("row_hash")[3].tobytes() == reference_hash(rows[3]["text"])


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000", None])
def test_an_empty_text_is_named_before_any_work(case: Case, text: str | None, passes: list[int]) -> None:
    rows = case.rows()
    rows[5]["text"] = text
    case.write(rows)
    before = sorted(case.cache.rglob("*"))
    with pytest.raises(SourceError, match=r"row 6 of train has no .*text"):
        case.extract()
    assert sorted(case.cache.rglob("*")) == before and passes == []
    result = case.extract(skip_bad_rows=True)
    assert (result.rows, result.encoded) == (TRAIN - 1, 0)
    assert any("row 6 of train" in note for note in result.notes)
    hashes = case.find(skip_bad_rows=True).sealed.column("row_hash")
    assert hashes[5].tobytes() == reference_hash(rows[6]["text"])


@pytest.mark.parametrize("text", ["\u200b", "\x01\x02", "\u200d\ufeff"])
def test_a_text_without_any_token_is_named(case: Case, tiny: Callable[[str], Path], text: str) -> None:
    """Not blank, yet nothing is left of it for a model that puts no special tokens around."""
    rows = case.rows()
    rows[5]["text"] = text
    case.write(rows)
    with pytest.raises(FeatcacheError, match="row 6 of train"):
        case.extract(model=str(tiny("gpt2")))
    case.extract()  # [CLS] and [SEP] are tokens


def test_unusual_texts(case: Case) -> None:
    rows = case.rows()
    odd = ["\0", "\u202e好", "👩‍👩‍👧", "[CLS] [SEP] [PAD]", "a\r\nb", "\ufeff好", "[UNK]", "e\u0301"]
    case.write([*rows, *({"text": text, "label": "good"} for text in odd)])
    assert case.extract().encoded == len(odd)
    hashes = case.find().sealed.column("row_hash")[TRAIN:]
    assert [row.tobytes() for row in hashes] == [reference_hash(text) for text in odd]
    assert np.isfinite(case.features()).all()


# ---------------------------------------------------------------- what cannot be stored


def with_weights(case: Case, name: str, change: Callable[[Any], None]) -> Case:
    from safetensors.torch import load_file, save_file

    mine = case.own_model()
    weights = load_file(mine.model / "model.safetensors")
    change(weights[name])
    save_file(weights, mine.model / "model.safetensors", metadata={"format": "pt"})
    return mine


def test_nan_names_the_row(case: Case) -> None:
    from tests.support.tiny import VOCABULARY

    token = VOCABULARY.index("地")
    mine = with_weights(
        case, "embeddings.word_embeddings.weight", lambda values: values[token].fill_(float("nan"))
    )
    rows = mine.rows()
    assert not any("地" in row["text"] for row in rows)
    rows[41]["text"] = "好地"
    rows[2]["text"] = ""
    mine.write(rows)
    with pytest.raises(BackboneError, match="row 42 of train: its last/cls features are NaN") as caught:
        mine.extract(skip_bad_rows=True)
    assert "--dtype float32" in (caught.value.hint or "")
    assert len(mine.files()) == 2


def test_too_large_for_float16(case: Case) -> None:
    def scale(values: Any) -> None:
        values.mul_(1e6)

    mine = with_weights(case, "encoder.layer.2.output.LayerNorm.weight", scale)
    with pytest.raises(BackboneError, match=r"row \d+ of train: .* too large for float16") as caught:
        mine.extract()
    assert caught.value.hint == "try --storage float32"
    mine.extract(storage="float32")
    values = mine.features(storage="float32")
    assert np.isfinite(values).all() and np.abs(values).max() > 65504


def test_a_view_that_overflows_is_named(case: Case) -> None:
    mine = with_weights(case, "encoder.layer.1.output.LayerNorm.weight", lambda values: values.mul_(1e6))
    mine.extract()
    with pytest.raises(BackboneError, match="-2/mean features are too large"):
        mine.extract(views="last/cls,-2/mean")


def test_a_full_disk_is_said_before_anything_is_encoded(
    case: Case, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(case.cache)
    free = shutil.disk_usage(case.folder)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CacheError, match=r"the cache of train needs .* has 100\.0 kB free"):
        case.extract()
    assert passes == [] and case.files() == []
    # What can be known without the model is said before it is loaded.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=100))
    monkeypatch.setattr(
        "featcache.backbone.load.load_backbone", lambda *_: pytest.fail("the model was loaded")
    )
    with pytest.raises(CacheError, match=r"the cache of train needs .* has 100 B free"):
        case.extract()
    monkeypatch.undo()
    assert case.extract().encoded == TRAIN


# ---------------------------------------------------------------- damaged cache files


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


def test_states_is_what_is_counted(case: Case, passes: list[int]) -> None:
    """The counting itself: it sees the real model, by the method every extraction goes through."""
    assert Backbone.states.__name__ == "counting"
    case.extract(prompt="书")
    assert sum(passes) == TRAIN
