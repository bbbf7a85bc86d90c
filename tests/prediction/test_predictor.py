"""Backbone and head together: what is predicted is what the cached features say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.backbone.encoder import Encoder
from featcache.errors import BackboneError, FeatcacheError, HeadError, SourceError
from featcache.extraction.api import extract_splits, find_features
from featcache.heads.head import Head
from featcache.heads.scorers import Linear
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run
from featcache.runs.train import train_head
from featcache.settings import FeatureSettings, Settings, load_settings
from tests.support.source_files import jsonl, write
from tests.support.stock import WORDS, encoder, loaded, one_thread, sentence, stock
from tests.support.tiny_predictor import tiny_predictor

NAMES = ("neutral 中", "差评, bad", "好评/good")  # as they sort
SPLITS = {"train": 60, "validation": 20, "test": 25}


@dataclass(frozen=True)
class Trained:
    """A run with what it was made of."""

    settings: Settings
    run: Run
    rows: dict[str, list[dict[str, str]]]

    def cached(self, split: str = "test") -> np.ndarray:
        """The predictions of the head for the cached features."""
        head = self.run.head()
        return head.predict_proba(find_features(self.settings, split).features(head.view).x)

    def texts(self, split: str = "test") -> list[str]:
        return [row["text"] for row in self.rows[split]]


def review_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Reviews of 2 to 90 tokens, a word for each class among others; some are cut at 64."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % 3
        words = [*draw.choice(WORDS[:40], draw.integers(1, 89 if number % 5 == 0 else 30))]
        words[int(draw.integers(0, min(len(words), 20)))] = ("time", "差", "好")[label] * 2
        title = " ".join(draw.choice(WORDS, 3))
        rows.append({"text": f"{number} " + " ".join(words), "title": title, "label": NAMES[label]})
    return rows


@pytest.fixture(autouse=True, scope="module")
def on_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its Arrow files in a folder of the tests."""
    import datasets

    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        yield


@pytest.fixture(scope="module")
def trained(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """`trained("bert", prompt="x")`: extracted and trained once a module."""
    known: dict[Any, Trained] = {}

    def make(family: str = "bert", kind: str = "linear", **asked: Any) -> Trained:
        key = (family, kind, *sorted(asked.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("trained")
            rows = {split: review_rows(count, len(split)) for split, count in SPLITS.items()}
            for split, lines in rows.items():
                write(folder / "reviews" / f"{split}.jsonl", jsonl(*lines))
            model = shutil.copytree(tiny(family), folder / "model")
            own = {
                "model": str(model),
                "dataset": str(folder / "reviews"),
                "cache_dir": str(folder / "cache"),
                "reports_dir": str(folder / "reports"),
                "epochs": 15,
                "device": "cpu",
                "dtype": "float32",
                "storage": "float32",
            }
            settings = load_settings(own | asked)
            extract_splits(settings, list(SPLITS))
            known[key] = Trained(settings, train_head(settings, kind), rows)
        return known[key]

    return make


def predictor_of(made: Trained, **options: Any) -> Predictor:
    return Predictor.from_run(made.run, **({"device": "cpu"} | options))


# ---------------------------------------------------------------- the same as the cache


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("bert", {}),
        ("bert", {"kind": "logistic", "views": "last/mean,last/cls"}),
        ("bert", {"prompt": "very good: ", "max_length": 20, "views": "-2/max"}),
        ("llama", {"views": "last/last"}),
        ("mpnet", {"views": "last/mean"}),
        ("mistral", {"views": "-2/mean,last/cls"}),
    ],
    ids=str,
)
def test_predictions_are_those_of_the_cached_features(
    family: str, asked: dict[str, Any], trained: Callable[..., Trained]
) -> None:
    made = trained(family, **asked)
    predictor = predictor_of(made)
    for split in ("test", "train"):
        found = predictor.predict_proba(made.texts(split))
        np.testing.assert_allclose(found, made.cached(split), rtol=0, atol=1e-5)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-12)
    assert found.std(axis=0).min() > 1e-3  # the head does tell texts apart


@pytest.mark.parametrize(
    ("dtype", "storage", "tolerance"), [("float32", "float16", 2e-3), ("bfloat16", "float16", 3e-2)]
)
def test_predictions_of_rounded_features(
    dtype: str, storage: str, tolerance: float, trained: Callable[..., Trained]
) -> None:
    made = trained(dtype=dtype, storage=storage)
    predictor = predictor_of(made)
    assert predictor.encoder.backbone.dtype_name == dtype  # whatever --dtype auto means here
    assert predictor.encoder.storage == np.dtype(storage)
    found = predictor.predict_proba(made.texts())
    np.testing.assert_allclose(found, made.cached(), rtol=0, atol=tolerance)


def test_predictions_of_pairs(trained: Callable[..., Trained]) -> None:
    made = trained(pair_column="title")
    titles = [row["title"] for row in made.rows["test"]]
    found = predictor_of(made).predict_proba(made.texts(), titles)
    np.testing.assert_allclose(found, made.cached(), rtol=0, atol=1e-5)
    assert abs(predictor_of(made).predict_proba(made.texts()) - found).max() > 1e-3


def test_predictions_equal_a_computation_by_hand(trained: Callable[..., Trained]) -> None:
    """Stock transformers, pooling, W, b and softmax, one text at a time."""
    made = trained(views="last/mean")
    head = made.run.head()
    predictor = predictor_of(made)
    for text in made.texts()[:6]:
        model = stock(Path(made.settings.backbone.model))
        x = model.features("last/mean", text, truncation=True, max_length=64)
        logits = head.scorer.weight.astype(np.float64) @ x + head.scorer.bias
        powers = np.exp(logits / head.temperature)
        found = predictor.predict_proba([text])[0]
        np.testing.assert_allclose(found, powers / powers.sum(), rtol=0, atol=1e-4)


def test_the_saved_predictions_are_those_of_the_predictor(trained: Callable[..., Trained]) -> None:
    import pyarrow.parquet as pq

    made = trained()
    table = pq.read_table(made.run.folder / "predictions-test.parquet").to_pydict()
    found = predictor_of(made).predict(made.texts())
    assert table["prediction"] == [one.label for one in found]
    assert table["label"] == [row["label"] for row in made.rows["test"]]
    for name in NAMES:
        wanted = [one.probabilities[name] for one in found]
        np.testing.assert_allclose(table[f"probability:{name}"], wanted, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what comes out


def test_label_names_are_kept_to_the_end(trained: Callable[..., Trained]) -> None:
    made = trained()
    predictor = predictor_of(made)
    assert sorted(predictor.label_names) == sorted(NAMES)
    assert predictor.label_names == made.run.head().label_names == tuple(made.run.record.label_names)
    matrix = predictor.predict_proba(made.texts())
    for row, one, text in zip(matrix, predictor.predict(made.texts()), made.texts(), strict=True):
        assert one.text == text
        assert tuple(one.probabilities) == predictor.label_names
        assert list(one.probabilities.values()) == pytest.approx(row, abs=1e-6)
        assert one.label == predictor.label_names[int(row.argmax())]
        assert one.probability == one.probabilities[one.label] == max(one.probabilities.values())
        assert {type(one.probability), *map(type, one.probabilities.values())} == {float}
    json.dumps([vars(one) for one in predictor.predict(made.texts())])


def test_predictions_are_the_labels_that_were_learned(trained: Callable[..., Trained]) -> None:
    """Names go with their classes: on its own train rows a trained head is mostly right."""
    made = trained(views="last/mean", epochs=200, lr=0.05)
    rows = made.rows["train"]
    found = predictor_of(made).predict([row["text"] for row in rows])
    right = sum(one.label == row["label"] for one, row in zip(found, rows, strict=True))
    assert right / len(rows) > 0.8


def test_truncated_texts_are_marked(trained: Callable[..., Trained]) -> None:
    predictor = predictor_of(trained())
    texts = [sentence(62), sentence(63), "good", sentence(200)]
    found = predictor.predict(texts)
    assert [one.truncated for one in found] == [False, True, False, True]
    assert {type(one.truncated) for one in found} == {bool}
    assert [one.text for one in found] == texts  # whole, nevertheless


def test_texts_in_any_order_and_number(trained: Callable[..., Trained]) -> None:
    made = trained()
    texts = [*made.texts("train"), *made.texts("test"), *made.texts("test")] * 3
    expected = predictor_of(made).predict_proba(texts)
    head, features = made.run.head(), made.settings.features
    small = Predictor(Encoder(loaded(Path(made.settings.backbone.model)), features, 100), head)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(texts))
        found = small.predict_proba([texts[i] for i in order])
        np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-5)
    assert expected.shape == (len(texts), 3)
    np.testing.assert_allclose(expected[60:85], expected[85:110], rtol=0, atol=1e-5)


def test_no_texts(trained: Callable[..., Trained]) -> None:
    predictor = predictor_of(trained())
    assert predictor.predict([]) == []
    assert predictor.predict_proba([]).shape == (0, 3)


@pytest.mark.parametrize("kind", [tuple, np.array, lambda texts: np.array(texts, dtype=object)])
def test_sequences_of_other_kinds(kind: Callable[[list[str]], Any], trained: Callable[..., Trained]) -> None:
    made = trained()
    found = predictor_of(made).predict_proba(kind(made.texts()))
    np.testing.assert_allclose(found, made.cached(), rtol=0, atol=1e-5)
    assert [one.label for one in predictor_of(made).predict(kind(["good", "bad"]))]


# ---------------------------------------------------------------- texts that are none


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("", "empty"),
        (" \n\u3000", "empty"),
        (None, "NoneType"),
        (5, "int"),
        (b"good", "bytes"),
        (["good"], "list"),
        (float("nan"), "float"),
        ("good \ud800", "Unicode"),
    ],
)
def test_predict_names_a_text_that_cannot_be_used(
    bad: Any, why: str, trained: Callable[..., Trained]
) -> None:
    predictor = predictor_of(trained())
    for ask in (predictor.predict, predictor.predict_proba):
        with pytest.raises(SourceError, match=f"text 2 .*{why}"):
            ask(["good", bad, "book"])
    with pytest.raises(SourceError, match=why):
        predictor.predict(["good", "book"], ["room", bad])


def test_predict_names_a_second_text_that_cannot_be_used(trained: Callable[..., Trained]) -> None:
    """There is no text 4 among two."""
    with pytest.raises(SourceError, match="pair 2"):
        predictor_of(trained()).predict(["good", "book"], ["room", ""])


def test_predict_refuses_a_single_string(trained: Callable[..., Trained]) -> None:
    predictor = predictor_of(trained())
    for ask in (predictor.predict, predictor.predict_proba):
        with pytest.raises(SourceError, match=r"list of texts[\s\S]*predict\(\[text\]\)"):
            ask("好房间")


def test_predict_refuses_a_single_string_of_pairs(trained: Callable[..., Trained]) -> None:
    with pytest.raises(SourceError):
        predictor_of(trained()).predict(["好", "坏"], "房间")


@pytest.mark.parametrize("pairs", [["room"], ["room", "book", "very"], []])
def test_predict_refuses_another_number_of_pairs(pairs: list[str], trained: Callable[..., Trained]) -> None:
    with pytest.raises(SourceError):
        predictor_of(trained()).predict(["good", "bad"], pairs)


# ---------------------------------------------------------------- the wrong backbone


def test_from_run_by_path_and_name(trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained()
    expected = made.cached()
    for run in (made.run.folder, str(made.run.folder)):
        found = Predictor.from_run(run, device="cpu").predict_proba(made.texts())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    monkeypatch.chdir(made.run.folder.parents[1])
    found = Predictor.from_run(made.run.name, device="cpu").predict_proba(made.texts())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(HeadError, match=f"no run 'nothing'[\\s\\S]*{made.run.name}"):
        Predictor.from_run("nothing")


def test_from_run_with_a_moved_backbone(trained: Callable[..., Trained], tmp_path: Path) -> None:
    made = trained()
    moved = shutil.copytree(made.settings.backbone.model, tmp_path / "elsewhere")
    found = predictor_of(made, model=str(moved)).predict_proba(made.texts())
    np.testing.assert_allclose(found, made.cached(), rtol=0, atol=1e-5)


def moved_run(made: Trained, **backbone: Any) -> Run:
    """The run as it would be had its backbone been another."""
    record = made.run.record
    return Run(made.run.folder, replace(record, backbone=replace(record.backbone, **backbone)))


def test_from_run_without_the_backbone(trained: Callable[..., Trained], tmp_path: Path) -> None:
    gone = moved_run(trained(), model=str(tmp_path / "gone"))
    with pytest.raises(BackboneError, match="gone"):
        Predictor.from_run(gone)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[:-4] + b"\x00\x00\x80\x3f"),
        ("config.json", lambda content: content.replace(b'"gelu"', b'"relu"')),
        ("tokenizer.json", lambda content: content.replace(b'"lowercase": true', b'"lowercase": false')),
    ],
)
def test_a_head_of_another_model_file_is_refused(
    name: str, change: Callable[[bytes], bytes], trained: Callable[..., Trained], tmp_path: Path
) -> None:
    made = trained()
    other = shutil.copytree(made.settings.backbone.model, tmp_path / "other")
    content = (other / name).read_bytes()
    assert change(content) != content
    (other / name).write_bytes(change(content))
    for run, model in ((made.run, str(other)), (moved_run(made, model=str(other)), None)):
        with pytest.raises(HeadError, match=f"files.{name}") as caught:
            Predictor.from_run(run, model=model, device="cpu")
        assert "--model" in str(caught.value)
        others = {"model.safetensors", "config.json", "tokenizer.json"} - {name}
        assert not [one for one in others if f"files.{one}" in str(caught.value)]


def test_another_model_is_refused_before_its_weights_are_loaded(
    trained: Callable[..., Trained], tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.backbone import load as backbone

    monkeypatch.setattr(backbone, "load_backbone", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(HeadError, match=r"files\.model\.safetensors"):
        predictor_of(trained(), model=str(tiny("electra")))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "query: "}, "prompt"),
        ({"max_length": 32}, "max_length"),
        ({"storage": "float16"}, "dtype.storage"),
    ],
    ids=str,
)
def test_a_head_of_other_features_is_refused(
    changes: dict[str, Any], field: str, trained: Callable[..., Trained]
) -> None:
    made = trained()
    backbone = loaded(Path(made.settings.backbone.model))
    assert Predictor(encoder(backbone, "last/cls"), made.run.head())
    with pytest.raises(HeadError, match=field) as caught:
        Predictor(encoder(backbone, "last/cls", **changes), made.run.head())
    assert "files" not in str(caught.value)


def test_a_head_of_another_dtype_is_refused(trained: Callable[..., Trained]) -> None:
    made = trained()
    backbone = loaded(Path(made.settings.backbone.model), dtype="bfloat16")
    with pytest.raises(HeadError, match=r"dtype\.compute"):
        Predictor(encoder(backbone, "last/cls"), made.run.head())


def test_a_head_of_another_view_is_refused(trained: Callable[..., Trained]) -> None:
    """Layer and pooling change a feature as much as the rest does."""
    made = trained()
    backbone = loaded(Path(made.settings.backbone.model))
    with pytest.raises(HeadError, match="last/cls"):
        Predictor(encoder(backbone, "last/mean"), made.run.head())


def test_a_head_with_an_encoder_of_more_views(trained: Callable[..., Trained]) -> None:
    made = trained()
    backbone = loaded(Path(made.settings.backbone.model))
    predictor = Predictor(encoder(backbone, "last/mean", "last/cls"), made.run.head())
    found = predictor.predict_proba(made.texts())
    np.testing.assert_allclose(found, made.cached(), rtol=0, atol=1e-5)


def test_a_head_of_another_width_is_refused(trained: Callable[..., Trained]) -> None:
    made = trained()
    head = made.run.head()
    wide = Head(
        Linear(np.zeros((3, 64), np.float32), head.scorer.bias), NAMES, head.view, head.encoder, head.kind
    )
    predictor = Predictor(Encoder(loaded(Path(made.settings.backbone.model)), made.settings.features), wide)
    with pytest.raises(FeatcacheError, match=r"\[N, 64\]"):
        predictor.predict(["good"])


def test_the_predictor_takes_the_head_of_the_best_epoch(trained: Callable[..., Trained]) -> None:
    """`head` is the best epoch's, `last` the last one's; the predictor takes the best."""
    made = trained(views="last/mean", epochs=60, lr=0.05)
    assert made.run.record.best_epoch < 60
    assert not np.array_equal(made.run.head("last").scorer.weight, made.run.head().scorer.weight)
    np.testing.assert_array_equal(predictor_of(made).head.scorer.weight, made.run.head().scorer.weight)


def test_from_run_takes_the_settings_of_the_run(trained: Callable[..., Trained]) -> None:
    made = trained(prompt="very ", max_length=30, batch_tokens=77)
    used = predictor_of(made).encoder
    assert (used.prompt, used.max_length, used.batch_tokens) == ("very ", 30, 77)
    assert [view.name for view in used.views] == ["last/cls"]
    assert used.document == made.run.head().encoder
    assert FeatureSettings().prompt != "very "


def test_unknown_tokens_of_a_text(tiny: Callable[[str], Path]) -> None:
    found = tiny_predictor(tiny("bert")).predict(["good book", "good สวัสดี", "สวัสดี"])
    assert [one.unknown_tokens for one in found] == [0.0, 0.5, 1.0]
    assert tiny_predictor(tiny("bert")).predict([]) == []
