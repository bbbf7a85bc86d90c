"""The scikit-learn estimators: its own checks, the cache by rows, and searches over both."""

from __future__ import annotations

import hashlib
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

import featcache
from featcache import FeatureExtractor, LinearHead
from featcache.cache.catalog import CacheFile
from featcache.errors import BackboneError, CorruptCache, HeadError, SourceError, UsageError
from featcache.system import hashes
from tests.support.extraction import counted, some_texts, write_case
from tests.support.stock import stock
from tests.support.tiny import build

Folder = Callable[[str], Path]
TEXTS = some_texts(24, seed=5)


@pytest.fixture
def extractor(tiny: Folder, tmp_path: Path) -> FeatureExtractor:
    """A tiny BERT with an empty cache."""
    return FeatureExtractor(str(tiny("bert")), dtype="float32", cache_dir=tmp_path / "cache")


def sealed(extractor: FeatureExtractor) -> list[CacheFile]:
    return [CacheFile(path) for path in sorted(Path(extractor.cache_dir).rglob("*.h5"))]


def sealed_rows(extractor: FeatureExtractor) -> int:
    return sum(file.rows for file in sealed(extractor))


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, loading a backbone is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a backbone was loaded")

    return lambda: monkeypatch.setattr("featcache.backbone.load.load_backbone", refuse)


def reviews(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts, some of them equal, and labels that their words give away."""
    draw = random.Random(seed)
    labels = [draw.choice(["good", "bad"]) for _ in range(count)]
    words = {"good": "好喜欢干净便宜快", "bad": "坏差失望慢贵"}
    texts = ["".join(draw.choices(words[label], k=draw.randint(3, 12))) for label in labels]
    return texts + texts[:4], labels + labels[:4]


# ---------------------------------------------------------------- FeatureExtractor: what it makes


@pytest.mark.parametrize("view", ["last/cls", "-2/mean"])
def test_features_are_those_of_stock_transformers(
    tiny: Folder, extractor: FeatureExtractor, view: str
) -> None:
    extractor.set_params(view=view, storage="float32")
    expected = stock(tiny("bert")).matrix(TEXTS, views=(view,))[view]
    x = extractor.fit_transform(TEXTS)
    assert x.dtype == np.float32
    assert_allclose(x, expected, rtol=0, atol=1e-5)


def test_texts_in_another_language_are_warned_of(extractor: FeatureExtractor) -> None:
    with pytest.warns(UserWarning, match=r"^2 texts: .*% of the tokens are unknown .* the language of these"):
        extractor.fit_transform(["สวัสดี", "ขอบคุณ"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* unknown")
        extractor.fit_transform(["很好", "สวัสดี"])  # the second one is cached


def test_any_kind_of_list_of_texts(extractor: FeatureExtractor) -> None:
    expected = extractor.fit_transform(TEXTS)
    for texts in (
        tuple(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array(TEXTS),
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype=object, index=range(100, 100 + len(TEXTS))),
    ):
        assert_array_equal(extractor.fit(texts).transform(texts), expected)


def test_a_column_of_a_frame(extractor: FeatureExtractor) -> None:
    frame = pd.DataFrame({"stars": range(len(TEXTS)), "text": TEXTS})
    both = make_column_transformer((extractor, "text"), ("passthrough", ["stars"])).fit_transform(frame)
    assert_array_equal(both[:, :-1], extractor.transform(TEXTS))
    assert_array_equal(both[:, -1], frame["stars"])


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("好", "a single one"),
        (b"good", "a single one"),
        (["好", 3], "text 2 is int"),
        (["好", None], "text 2 is NoneType"),
        (pd.Series(["好", None]), "text 2 is"),
        (["好", "坏", " \n"], "text 3 is empty"),
        (["\ud800"], "text 1 is no valid Unicode"),
        (np.array([["好"], ["坏"]]), r"ndarray of shape \(2, 1\)"),
        (pd.DataFrame({"text": ["好"]}), r"DataFrame of shape \(1, 1\)"),
        (np.array("好"), r"shape \(\)"),
        ((text for text in TEXTS), "generator"),  # fit would use it up
        ({"好", "坏"}, "set"),
        (None, "NoneType"),
    ],
    ids=lambda value: type(value).__name__,  # repr differs from process to process
)
def test_values_that_are_no_list_of_texts_are_refused(
    extractor: FeatureExtractor, wrong: Any, words: str
) -> None:
    for method in (extractor.fit, extractor.transform):
        with pytest.raises(SourceError, match=words):
            method(wrong)
    assert not sealed(extractor)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_no_rows(
    tiny: Folder, extractor: FeatureExtractor, family: str, unloadable: Callable[[], None]
) -> None:
    extractor.set_params(model=str(tiny(family)))
    width = extractor.transform(TEXTS[:1]).shape[1]
    unloadable()
    none = clone(extractor).transform([])
    assert none.shape == (0, width)
    assert none.dtype == np.float32
    assert extractor.fit([]).n_features_out_ == width


def test_names_of_the_features(extractor: FeatureExtractor) -> None:
    with pytest.raises(NotFittedError):
        extractor.get_feature_names_out()
    names = extractor.fit(TEXTS).get_feature_names_out()
    assert list(names) == [f"featureextractor{i}" for i in range(32)]
    frame = extractor.set_output(transform="pandas").transform(TEXTS)
    assert list(frame.columns) == list(names)


def test_a_width_that_the_config_does_not_have(extractor: FeatureExtractor, tmp_path: Path) -> None:
    model = build("bert", tmp_path / "model")
    config = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(config.replace('"hidden_size"', '"breadth"'), encoding="utf-8")
    extractor.set_params(model=str(model)).fit(TEXTS)
    assert not hasattr(extractor, "n_features_out_")
    with pytest.raises(BackboneError, match="width of model is not known"):
        extractor.transform([])
    (model / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"cannot read .*config\.json"):
        extractor.fit(TEXTS)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"max_length": 0}, UsageError, "max-length"),
        ({"max_length": "long"}, UsageError, "max-length"),
        ({"dtype": "float64"}, UsageError, "float64"),
        ({"storage": "int8"}, UsageError, "int8"),
        ({"batch_tokens": 0}, UsageError, "batch-tokens"),
        ({"view": ("last/cls", "last/mean")}, UsageError, "view wants a text"),
        ({"model": "./nowhere"}, BackboneError, "nowhere"),
        ({"dtype": "auto", "device": "quantum"}, UsageError, "quantum"),
    ],
)
def test_fit_refuses_settings(
    extractor: FeatureExtractor, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        extractor.set_params(**changes).fit(TEXTS)


@pytest.mark.parametrize("view", ["last/median", "7/cls", "last/cls,last/mean"])
def test_views_the_backbone_does_not_have(extractor: FeatureExtractor, view: str) -> None:
    with pytest.raises(UsageError, match="view"):
        extractor.set_params(view=view).fit_transform(TEXTS)


# ---------------------------------------------------------------- FeatureExtractor: the cache


def test_each_text_is_encoded_once(extractor: FeatureExtractor, unloadable: Callable[[], None]) -> None:
    with counted() as passes:
        first = extractor.transform([*TEXTS[:10], *TEXTS[:3]])
        assert sum(passes) == 10
        second = extractor.transform([*TEXTS[5:15], TEXTS[12]])
        assert sum(passes) == 15
    assert_array_equal(first[10:], first[:3])
    assert_array_equal(second[:5], first[5:10])
    assert_array_equal(second[10], second[7])
    assert sorted(file.rows for file in sealed(extractor)) == [5, 10]
    unloadable()
    again = clone(extractor).fit(TEXTS[:15]).transform(TEXTS[14::-1])
    assert_array_equal(again, np.concatenate([first[:10], second[5:10]])[::-1])


@pytest.fixture(scope="module")
def law(tiny: Folder) -> FeatureExtractor:
    return FeatureExtractor(str(tiny("bert")), dtype="float32")


@settings(max_examples=20)
@given(calls=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_text_has_the_same_bits_in_every_call(law: FeatureExtractor, calls: list[list[int]]) -> None:
    known: dict[int, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        law.set_params(cache_dir=folder)
        for rows in calls:
            x = law.transform([TEXTS[row] for row in rows])
            assert x.shape == (len(rows), 32)
            for row, features in zip(rows, x, strict=True):
                assert_array_equal(known.setdefault(row, features), features)
        assert sealed_rows(law) == len(known)


def test_rows_of_extracted_splits_are_used(
    tiny: Folder, tmp_path: Path, unloadable: Callable[[], None]
) -> None:
    case = write_case(tmp_path, tiny("bert"), views="last/mean,-1/cls")
    for split in ("train", "test"):
        case.extract(split)
    unloadable()
    texts = [row["text"] for split in ("test", "train") for row in case.rows(split)]
    extractor = FeatureExtractor(str(case.model), dtype="float32", cache_dir=case.cache)
    for view, known in (("last/mean", "last/mean"), ("-1/cls", "last/cls"), ("last/cls", "last/cls")):
        expected = np.concatenate([case.features(known, "test"), case.features(known, "train")])
        assert_array_equal(extractor.set_params(view=view).fit_transform(texts), expected)


def test_second_texts_make_other_rows(tiny: Folder, tmp_path: Path) -> None:
    case = write_case(tmp_path, tiny("bert"), pair_column="name")
    case.extract("test")
    extractor = FeatureExtractor(str(case.model), dtype="float32", cache_dir=case.cache)
    texts = [row["text"] for row in case.rows("test")]
    with counted() as passes:
        extractor.transform(texts)
    assert sum(passes) == len(texts)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "好"},
        {"max_length": 9},
        {"storage": "float32"},
        {"view": "last/mean"},
        {"view": "-2/cls"},
        {"dtype": "bfloat16"},
        {"model": "another"},
    ],
    ids=str,
)
def test_other_settings_never_share_rows(
    extractor: FeatureExtractor, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "model" in changes:
        changes = {"model": str(build("bert", tmp_path / "another", seed=1))}
    before = extractor.transform(TEXTS)
    other = clone(extractor).set_params(**changes)
    with counted() as passes:
        x = other.transform(TEXTS)
    assert sum(passes) == len(TEXTS)
    alone = clone(other).set_params(cache_dir=tmp_path / "alone").transform(TEXTS)
    assert_array_equal(x, alone)
    assert not np.array_equal(x, before)
    assert_array_equal(extractor.transform(TEXTS), before)


def test_ways_to_write_a_view_share_rows(extractor: FeatureExtractor) -> None:
    x = extractor.transform(TEXTS)
    for view in ("-1/cls", "3/cls", " last/cls"):
        with counted() as passes:
            assert_array_equal(clone(extractor).set_params(view=view).transform(TEXTS), x)
        assert not passes, view


def test_a_length_the_model_does_not_have_is_its_limit(
    extractor: FeatureExtractor, unloadable: Callable[[], None]
) -> None:
    x = extractor.set_params(max_length=500).transform(TEXTS)
    assert {file.max_length for file in sealed(extractor)} == {64}
    with counted() as passes:
        assert_array_equal(clone(extractor).set_params(max_length=64).transform(TEXTS), x)
    assert not passes
    unloadable()
    clone(extractor).set_params(max_length=500).transform(TEXTS)


def test_lost_records_need_no_forward_pass(extractor: FeatureExtractor) -> None:
    x = extractor.transform(TEXTS)
    for path in Path(extractor.cache_dir).rglob("*.json"):
        path.unlink()
    with counted() as passes:
        assert_array_equal(clone(extractor).transform(TEXTS), x)
    assert not passes


def test_features_of_an_older_format_are_not_used(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor.transform(TEXTS)
    for module in ("extraction.text_features", "fingerprint"):
        monkeypatch.setattr(f"featcache.{module}.FEATURE_FORMAT", 999)
    with counted() as passes:
        clone(extractor).transform(TEXTS)
    assert sum(passes) == len(TEXTS)


def test_auto_is_what_this_machine_resolves_it_to(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch, unloadable: Callable[[], None]
) -> None:
    here = {"dtype": "bfloat16"}
    monkeypatch.setattr(
        "featcache.backbone.load.resolve_dtype",
        lambda name, _: here["dtype"] if name == "auto" else name,
    )
    extractor.set_params(dtype="auto")
    narrow = extractor.fit_transform(TEXTS)
    assert extractor.dtype_ == "bfloat16"
    here["dtype"] = "float32"  # as if the cache, and a pickle, had moved to another machine
    moved = pickle.loads(pickle.dumps(extractor))
    wide = clone(extractor).fit_transform(TEXTS)
    assert {file.document.encoder.dtype.compute for file in sealed(extractor)} == {
        "bfloat16",
        "float32",
    }
    assert not np.array_equal(narrow, wide)
    unloadable()
    assert_array_equal(moved.transform(TEXTS), narrow)
    assert_array_equal(extractor.set_params(dtype="float32").transform(TEXTS), wide)


def test_a_changed_model_folder_is_another_model(extractor: FeatureExtractor, tmp_path: Path) -> None:
    model = build("bert", tmp_path / "model")
    extractor.set_params(model=str(model))
    before = extractor.transform(TEXTS)
    build("bert", model, seed=1)
    with counted() as passes:
        after = extractor.transform(TEXTS)
    assert sum(passes) == len(TEXTS)
    assert not np.allclose(before, after, atol=1e-2)


def test_the_files_of_a_model_are_hashed_once(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extractor.set_params(model=str(build("bert", tmp_path / "model")))
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        read.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        clone(extractor).fit(TEXTS).transform(TEXTS)
    assert len(read) == len(set(read)) >= 3


def test_a_damaged_column_is_not_used(extractor: FeatureExtractor) -> None:
    extractor.transform(TEXTS)
    (file,) = sealed(extractor)
    values = np.ascontiguousarray(file.sealed.column("views/last-cls")).tobytes()
    content = bytearray(file.path.read_bytes())
    content[content.index(values) + 7] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(CorruptCache, match="last-cls"):
        extractor.transform(TEXTS)


def test_a_text_that_cannot_be_encoded_is_named(tiny: Folder, extractor: FeatureExtractor) -> None:
    extractor.set_params(model=str(tiny("llama")))
    extractor.transform(["good"])
    with pytest.raises(BackboneError, match=r"row 3 of texts.*no token"):
        extractor.transform(["good", "bad", "\u200b", "room"])


def test_threads_share_the_work(extractor: FeatureExtractor) -> None:
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = clone(extractor).transform(TEXTS[number * 4 : number * 4 + 12])

    with counted() as passes:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(passes) == len(TEXTS)
    whole = extractor.transform(TEXTS)
    for number in range(4):
        assert_array_equal(found[number], whole[number * 4 : number * 4 + 12])


# ---------------------------------------------------------------- FeatureExtractor: scikit-learn's rules


@parametrize_with_checks([FeatureExtractor()])
def test_extractor_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "name",
    [
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_mixin_order",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
    ],
)
def test_checks_without_data(name: str) -> None:
    """`parametrize_with_checks` leaves estimators of texts alone; these are the checks they can be put to."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(estimator_checks, name)("FeatureExtractor", FeatureExtractor())


def test_tags() -> None:
    tags = get_tags(FeatureExtractor())
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert not tags.requires_fit


def test_the_model_is_not_pickled(extractor: FeatureExtractor) -> None:
    extractor.fit(TEXTS)
    before, size = dict(vars(extractor)), len(pickle.dumps(extractor))
    x = extractor.transform(TEXTS)
    assert vars(extractor) == before
    assert len(pickle.dumps(extractor)) == size < 2000
    assert_array_equal(pickle.loads(pickle.dumps(extractor)).transform(TEXTS), x)
    assert set(extractor.get_params()) == set(clone(extractor).get_params())


def test_the_model_is_loaded_once_and_freed_with_its_extractor(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    from featcache.backbone import load as backbone

    loads: list[Any] = []
    load = backbone.load_backbone
    monkeypatch.setattr(backbone, "load_backbone", lambda *args: loads.append(args) or load(*args))
    mine = clone(extractor)
    for text in TEXTS[:3]:
        mine.transform([text])
    assert len(loads) == 1
    mine.set_params(view="last/mean").transform(TEXTS[:1])
    assert len(loads) == 2
    from featcache.prediction.sklearn_api import _loaded

    model = weakref.ref(_loaded[mine][1].backbone.model)
    del mine
    gc.collect()
    assert model() is None


# ---------------------------------------------------------------- both together


def pipeline(extractor: FeatureExtractor, **head: Any) -> Pipeline:
    return Pipeline([("features", extractor), ("head", LinearHead(**{"epochs": 20, "lr": 1e-2, **head}))])


@pytest.mark.parametrize("solver", ["adamw", "exact"])
def test_a_pipeline_learns(extractor: FeatureExtractor, solver: str) -> None:
    texts, labels = reviews(60)
    more, truth = reviews(40, seed=1)
    model = pipeline(extractor, solver=solver).fit(texts, labels)
    assert list(model.classes_) == ["bad", "good"]
    assert model.score(more, truth) > 0.9
    kept = pickle.loads(pickle.dumps(model))
    assert_array_equal(kept.predict_proba(more), model.predict_proba(more))


SECOND = """
import sys
from sklearn.model_selection import cross_val_score
from featcache import FeatureExtractor
from tests.prediction.test_sklearn_api import pipeline, reviews
import featcache.backbone.load
def refuse(*_): raise AssertionError("a backbone was loaded")
featcache.backbone.load.load_backbone = refuse
extractor = FeatureExtractor({model!r}, dtype="float32", cache_dir={cache!r})
print(*cross_val_score(pipeline(extractor), *reviews(40), cv=4, error_score="raise"))
"""


def test_cross_validation_encodes_each_text_once_and_a_second_process_none(
    extractor: FeatureExtractor, tmp_path: Path
) -> None:
    texts, labels = reviews(40)
    with counted() as passes:
        scores = cross_val_score(pipeline(extractor), texts, labels, cv=4, error_score="raise")
    assert sum(passes) == len(set(texts)) < len(texts)
    assert scores.mean() > 0.9
    script = SECOND.format(model=extractor.model, cache=str(extractor.cache_dir))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [float(score) for score in done.stdout.split()] == scores.tolist()
    assert sealed_rows(extractor) == len(set(texts))


@pytest.mark.slow
def test_grid_search_in_two_processes(extractor: FeatureExtractor) -> None:
    texts, labels = reviews(30)
    grid = {"features__view": ["last/cls", "last/mean"], "head__C": [0.01, 1.0]}
    search = GridSearchCV(pipeline(extractor, solver="exact"), grid, cv=3, n_jobs=2, error_score="raise")
    search.fit(texts, labels)
    assert sealed_rows(extractor) == 2 * len(set(texts))  # each view of each text once
    alone = GridSearchCV(pipeline(extractor, solver="exact"), grid, cv=3, error_score="raise").fit(
        texts, labels
    )
    assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert search.best_estimator_.score(texts, labels) > 0.9


# ---------------------------------------------------------------- LinearHead


@parametrize_with_checks([LinearHead(), LinearHead(solver="exact")])
def test_head_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def blobs(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in features of very different scale."""
    x, y = make_blobs(120, 6, centers=classes, cluster_std=6.0, random_state=seed)
    return (x * np.logspace(-2, 2, 6) + 5).astype(np.float32), np.array(["c", "a", "d", "b"])[y]


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 5.0, "c": 0.5}])
def test_exact_is_logistic_regression_on_standardised_features(classes: int, class_weight: Any) -> None:
    x, y = blobs(classes)
    x, y = x[10:], y[10:]
    expected = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.3, class_weight=class_weight, tol=1e-8, max_iter=1000)
    ).fit(x.astype(np.float64), y)
    head = LinearHead(solver="exact", C=0.3, class_weight=class_weight).fit(x, y)
    assert list(head.classes_) == list(expected.classes_)
    assert_allclose(head.predict_proba(x), expected.predict_proba(x.astype(np.float64)), atol=2e-3)
    assert 1 <= head.n_iter_ <= 1000


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, {"a": 3.0, "c": 0.5}])
def test_adamw_is_torchs_from_zero(classes: int, class_weight: Any) -> None:
    x, y = blobs(classes)
    names, labels = np.unique(y, return_inverse=True)
    inputs = torch.from_numpy(StandardScaler().fit_transform(x.astype(np.float64))).float()
    layer = torch.nn.Linear(6, classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    loss = torch.nn.CrossEntropyLoss(torch.tensor([(class_weight or {}).get(name, 1.0) for name in names]))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3, weight_decay=0.1)
    order = torch.Generator().manual_seed(3)
    for _ in range(7):
        for rows in torch.randperm(len(x), generator=order).split(16):
            optimizer.zero_grad()
            loss(layer(inputs[rows]), torch.from_numpy(labels)[rows]).backward()
            optimizer.step()
    head = LinearHead(
        epochs=7, lr=3e-3, weight_decay=0.1, batch_size=16, random_state=3, class_weight=class_weight
    ).fit(x, y)
    assert list(head.classes_) == list(names)
    assert head.n_iter_ == 7
    assert_allclose(head.predict_proba(x), layer(inputs).softmax(1).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "solver"),
    [pytest.param(2, "adamw", marks=pytest.mark.slow), (3, "adamw"), (2, "exact"), (3, "exact")],
)
def test_class_weights_in_any_form(classes: int, solver: str) -> None:
    x, y = blobs(classes)
    x, y = x[30:], y[30:]
    y[::3] = np.roll(y[::3], 1)  # hopeless labels keep the best weights small
    names, counts = np.unique(y, return_counts=True)
    balanced = dict(zip(names, len(y) / (classes * counts), strict=True))
    assert len(set(counts)) > 1
    for one, other in ((None, dict.fromkeys(names, 1.0)), ("balanced", balanced)):
        # Full batches, and enough of them: where it starts is of no account.
        head = LinearHead(solver, epochs=800, lr=0.03, batch_size=90, weight_decay=0.0)
        heads = [clone(head).set_params(class_weight=weight).fit(x, y) for weight in (one, other)]
        assert_allclose(*(head.predict_proba(x) for head in heads), atol=5e-3)
    with pytest.raises(ValueError, match="balance"):
        LinearHead(solver, class_weight="balance").fit(x, y)


@pytest.mark.parametrize("solver", ["adamw", "exact"])
def test_a_class_weight_moves_its_share(solver: str) -> None:
    x, y = blobs(2)
    shares = [
        (LinearHead(solver, epochs=20, class_weight={y[0]: weight}).fit(x, y).predict(x) == y[0]).mean()
        for weight in (0.05, 1.0, 20.0)
    ]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("solver", ["adamw", "exact"])
def test_attributes_fit_the_predictions(solver: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(classes)
    head = LinearHead(solver, epochs=5).fit(x, y)
    columns = 1 if classes == 2 else classes
    assert head.coef_.shape == (columns, 6)
    assert head.intercept_.shape == (columns,)
    assert head.coef_.dtype == head.intercept_.dtype == np.float64
    assert head.n_features_in_ == 6
    logits = x.astype(np.float64) @ head.coef_.T + head.intercept_
    monkeypatch.setattr("featcache.prediction.sklearn_api.PREDICT_ROWS", 7)  # in several products
    decision = head.decision_function(x)
    assert_allclose(decision, logits[:, 0] if classes == 2 else logits, rtol=1e-12)
    probabilities = head.predict_proba(x)
    assert probabilities.shape == (len(x), classes)
    assert_allclose(probabilities.sum(axis=1), 1)
    assert_array_equal(head.predict(x), head.classes_[probabilities.argmax(axis=1)])
    if classes == 2:
        assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-decision)))


@settings(max_examples=15)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), solver=st.sampled_from(["adamw", "exact"]))
def test_scale_and_origin_of_the_features_do_not_matter(scale: float, shift: float, solver: str) -> None:
    x = make_blobs(80, 4, centers=3, cluster_std=4.0, random_state=0)[0]
    y = make_blobs(80, 4, centers=3, cluster_std=4.0, random_state=0)[1]
    head = LinearHead(solver, epochs=3)
    plain = head.fit(x, y).predict_proba(x)
    moved = (x + shift) * scale
    assert_allclose(head.fit(moved, y).predict_proba(moved), plain, atol=2e-3)


def test_random_state_orders_the_rows() -> None:
    x, y = blobs(3)

    def fit(state: Any) -> np.ndarray:
        return LinearHead(epochs=3, random_state=state).fit(x, y).coef_

    assert_array_equal(fit(0), fit(0))
    assert_array_equal(fit(np.int64(0)), fit(0))
    assert_array_equal(fit(np.random.RandomState(4)), fit(np.random.RandomState(4)))
    assert not np.array_equal(fit(0), fit(1))
    assert not np.array_equal(fit(None), fit(None))


def test_half_precision_features() -> None:
    x, y = blobs(3)
    half = (x / 100).astype(np.float16)
    head = LinearHead("exact").fit(half, y)
    assert_array_equal(head.predict_proba(half), head.predict_proba(half.astype(np.float32)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"solver": "newton"}, "'newton'"),
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"batch_size": 2.5}, "batch-size"),
        ({"weight_decay": -1}, "weight-decay"),
        ({"C": 0}, "C"),
    ],
)
def test_parameters_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LinearHead(**changes).fit(*blobs(2))


def test_a_single_class_is_both_kinds_of_error() -> None:
    x, _ = blobs(2)
    for kind in (ValueError, HeadError):
        with pytest.raises(kind, match="one class, a;"):
            LinearHead().fit(x, ["a"] * len(x))


def test_a_loss_that_diverges() -> None:
    x, y = blobs(2)
    for class_weight in (None, "balanced", {"a": 2.0}):
        with pytest.raises(HeadError, match="diverged"):
            LinearHead(lr=1e37, class_weight=class_weight).fit(x, y)


def test_public_names() -> None:
    assert {"FeatureExtractor", "LinearHead"} <= set(featcache.__all__)
    assert featcache.FeatureExtractor is FeatureExtractor
