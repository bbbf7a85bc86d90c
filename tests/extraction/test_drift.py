"""Fresh features compared with cached ones: they agree, differ by some amount, or cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import cosine as cosine_distance

from featcache.cache.catalog import CacheFile
from featcache.cache.record import record_path
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.errors import BackboneError, CacheError, SourceError
from featcache.extraction.api import extract_splits
from featcache.extraction.drift import Drift, Reencoder, compare
from featcache.system.progress import Progress
from tests.support.extraction import Case, counted, one_thread, write_case

VIEWS = "last/cls,last/mean"


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
    """Train and test, extracted, not to be changed."""
    case = write_case(tmp_path_factory.mktemp("made"), tiny("bert"), views=VIEWS, max_length=16)
    extract_splits(case.settings(), ["train", "test"])
    return case


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    shutil.copytree(made.folder, tmp_path / "case")
    return Case(tmp_path / "case", made.model, dict(made.asked))


def file_of(case: Case, split: str = "train") -> CacheFile:
    return CacheFile(next(case.cache.glob(f"*/*/{split}-*.h5")))


def drift(
    case: Case, count: int = 10, split: str = "train", model: str | None = None, **changes: Any
) -> list[Drift]:
    return Reencoder(case.settings(**changes), model).drift(file_of(case, split), count)


def change_rows(file: CacheFile, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Seal the file again with other features of `last/mean`, under the same fingerprint."""
    columns = []
    for name in file.sealed.names:
        if name != "meta":
            values = np.array(file.sealed.column(name))
            values = change(values).astype(values.dtype) if name == "views/last-mean" else values
            columns.append(Column(name, values.shape, values.dtype.name, [values]))
    file.path.unlink()
    write_sealed(file.path, file.sealed.description.to_json(), columns)


# ---------------------------------------------------------------- comparing


@given(
    arrays.arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=32)),
    arrays.arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=32)),
)
def test_drift_is_what_scipy_says(a: np.ndarray, b: np.ndarray) -> None:
    a, b = np.where(abs(a) < 1e-3, 1, a), np.where(abs(b) < 1e-3, 1, b)
    found = compare("last/cls", a, b)
    x, y = a.astype(float), b.astype(float)
    assert found.rows == 4 and found.absolute == pytest.approx(np.abs(x - y).max())
    lengths = np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)
    assert found.relative == pytest.approx(lengths.max())
    assert found.cosine == pytest.approx(min(1 - cosine_distance(p, q) for p, q in zip(x, y, strict=True)))
    assert compare("v", a, a) == Drift("v", 4, 0.0, 0.0, pytest.approx(1.0))


def test_rows_of_zeros_and_worse() -> None:
    zero, one = np.zeros((1, 3), np.float16), np.ones((1, 3), np.float16)
    assert compare("v", zero, zero) == Drift("v", 1, 0.0, 0.0, 1.0)
    assert compare("v", one, zero).cosine == 0 and not compare("v", zero, one).ok
    assert not compare("v", one, one * np.float16("nan")).ok
    assert not compare("v", one * np.float16("inf"), one).ok
    assert compare("v", one, one).ok and not compare("v", one, -one).ok


def test_large_halves_do_not_overflow() -> None:
    big = np.full((2, 900), 60000, np.float16)
    assert compare("v", big, big).cosine == pytest.approx(1)


# ---------------------------------------------------------------- encoding again


def test_fresh_features_agree(made: Case) -> None:
    with counted() as passes:
        found = drift(made, 10)
    assert sum(passes) == 10
    assert [one.view for one in found] == VIEWS.split(",")
    for one in found:
        assert one.ok and one.rows == 10 and one.absolute < 2e-3 and one.cosine > 0.99999
    assert {one.rows for one in drift(made, 10**6)} == {60}  # all there are
    assert {one.rows for one in drift(made, 3, "test")} == {3}


def test_the_seed_draws_the_rows(made: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.backbone.encoder import Encoder

    drawn: list[list[str]] = []
    tokenize = Encoder.tokenize
    monkeypatch.setattr(
        Encoder,
        "tokenize",
        lambda self, texts, *rest: (drawn.append(list(texts)), tokenize(self, texts, *rest))[1],
    )
    for seed in (0, 0, 1):
        drift(made, 8, seed=seed)
    texts = [batch for batch in drawn if len(batch) == 8]
    assert len(texts) == 3 and texts[0] == texts[1] != texts[2]


def test_drift_is_found_in_its_view(case: Case) -> None:
    draw = np.random.default_rng(0)
    change_rows(file_of(case), lambda x: x + 0.2 * draw.normal(size=x.shape))
    cls, mean = drift(case)
    assert cls.ok and not mean.ok and mean.view == "last/mean"
    assert mean.absolute > 0.1 and mean.cosine < 0.999 and mean.relative > 0.05


def test_a_row_in_anothers_place_is_found(case: Case) -> None:
    change_rows(file_of(case), lambda x: np.roll(x, 1, axis=0))
    assert [one.ok for one in drift(case, 60)] == [True, False]


def test_rows_are_found_by_hash_wherever_they_lie(case: Case) -> None:
    """The source was put in another order and lost rows since: those that are left still tell."""
    rows = case.rows()[::-1]
    case.write([row | {"text": "好" * 5} if number % 2 else row for number, row in enumerate(rows)])
    found = drift(case, 1000)
    assert {one.rows for one in found} == {30} and all(one.ok for one in found)


def test_a_model_that_is_another_is_said_to_be(case: Case, tiny: Callable[[str], Path]) -> None:
    other = tiny("distilbert")
    with pytest.raises(
        CacheError, match=r"was not made as .* would make it now: .*files\.model\.safetensors"
    ) as caught:
        drift(case, model=str(other))
    assert "--model" in str(caught.value)
    own = case.own_model()  # the model's own folder was changed since
    config = json.loads((own.model / "config.json").read_text())
    (own.model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    with pytest.raises(CacheError, match=r"files\.config\.json"):
        drift(case, model=str(own.model))


def test_the_model_is_that_of_the_record(case: Case) -> None:
    assert all(one.ok for one in drift(case, model=None))  # settings name the same
    elsewhere = case.settings(model="/no/such/model")
    assert all(one.ok for one in Reencoder(elsewhere).drift(file_of(case), 4))
    record_path(file_of(case).path).unlink()  # without a record it is the one of the settings
    with pytest.raises(BackboneError, match="/no/such/model"):
        Reencoder(elsewhere).drift(file_of(case), 4)
    assert all(one.ok for one in drift(case, 4))
    moved = case.own_model()
    assert all(one.ok for one in drift(case, 4, model=str(moved.model)))


def test_settings_that_change_features_are_the_files_own(case: Case) -> None:
    found = drift(
        case, 10, prompt="query: ", max_length=9, views="last/max", storage="float32", dtype="bfloat16"
    )
    assert [one.view for one in found] == VIEWS.split(",") and all(one.ok for one in found)


def test_texts_that_are_not_there(case: Case) -> None:
    case.write([{"text": f"别的{i}", "label": "good" if i else "bad", "name": "x"} for i in range(5)])
    with pytest.raises(CacheError, match=r"no row of train-.* is in the train split") as caught:
        drift(case)
    assert "--data-files" in str(caught.value)
    shutil.rmtree(case.data)
    with pytest.raises(SourceError):
        drift(case)


def test_texts_that_came_from_memory(case: Case) -> None:
    file = file_of(case)
    meta = file.sealed.description.to_json() | {"split": "texts"}
    columns = []
    for name in file.sealed.names:
        if name != "meta":
            values = np.array(file.sealed.column(name))
            columns.append(Column(name, values.shape, values.dtype.name, [values]))
    file.path.unlink()
    write_sealed(file.path, meta, columns)
    with pytest.raises(CacheError, match="came from memory"):
        Reencoder(case.settings()).drift(CacheFile(file.path), 4)


def test_files_of_one_encoder_load_it_once(made: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.backbone import load as backbone

    loads: list[int] = []
    load = backbone.load_backbone
    monkeypatch.setattr(backbone, "load_backbone", lambda *args: (loads.append(1), load(*args))[1])
    reencoder = Reencoder(made.settings())
    for split in ("train", "test", "train"):
        reencoder.drift(file_of(made, split), 4)
    assert loads == [1]


def test_progress_counts_rows(made: Case) -> None:
    events: list[Progress] = []
    Reencoder(made.settings()).drift(file_of(made), 10, events.append)
    steps = [(event.stage, event.done, event.total) for event in events]
    assert ("find rows", 60, 60) in steps and steps[-1] == ("encode", 10, 10)


def test_pairs_are_encoded_as_pairs(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    case = write_case(tmp_path, tiny("bert"), pair_column="name")
    case.extract()
    assert all(one.ok for one in drift(case, 60))
    with pytest.raises(CacheError, match="no row of"):  # the same texts without their pairs are other rows
        drift(case, 60, pair_column=None)
