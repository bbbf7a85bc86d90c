"""Extraction by an endpoint: the rows, their order, what is asked twice, what it costs, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache.cache import Cache
from featcache.errors import BackboneError, UsageError
from featcache.extraction.api import extract_splits, find_features
from featcache.extraction.endpoint.canary import TEXTS
from featcache.settings import Settings, load_settings
from featcache.system.progress import Progress
from tests.support.endpoint_server import NAME, Behaviour, EndpointServer, vector_of
from tests.support.source_files import jsonl, write

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]
ROWS = [
    {"text": f"{word} film {number % 40}", "label": number % 2} for number in range(60) for word in ("good",)
]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer(Behaviour()) as running:
        yield running


@pytest.fixture
def ask(server: EndpointServer, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Settings for the server, with changes."""
    write(tmp_path / "data" / "train.jsonl", jsonl(ROWS))
    write(tmp_path / "data" / "validation.jsonl", jsonl(ROWS[:4]))
    write(tmp_path / "data" / "test.jsonl", jsonl([*ROWS[:10], {"text": "fine 好看", "label": 1}]))

    def settings(**changes: Any) -> Settings:
        own = {"model": server.model, "dataset": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
        return load_settings({**own, **changes}, path="/dev/null")

    return settings


def test_rows_are_the_vectors_of_the_texts(ask: Any, server: EndpointServer) -> None:
    said: list[Progress] = []
    train, test = extract_splits(ask(), ["train", "test"], said.append)
    assert (train.rows, train.encoded, test.encoded) == (60, 40, 1)
    assert sorted(server.seen.answered) == sorted([*TEXTS, *{row["text"] for row in ROWS}, "fine 好看"])
    features = find_features(ask(), "train").features("vector")
    wanted = np.stack([vector_of(row["text"]) for row in ROWS])
    assert features.x.dtype == np.float16 and np.allclose(features.x, wanted, atol=1e-3)
    notes = [one.text for one in said if one.stage == "note"]
    assert any(f"model {NAME} at {server.address}" in text for text in notes)
    assert any(f"{NAME}: 41 texts to encode, about" in text and "not known" in text for text in notes)
    counted = sum(len(row["text"]) for row in ROWS)  # by the server, for each request
    assert train.tokens == pytest.approx(counted, rel=0.01)


def test_nothing_is_asked_again(ask: Any, server: EndpointServer) -> None:
    extract_splits(ask(), ["train"])
    before = server.seen.requests
    (again,) = extract_splits(ask(), ["train"])
    (other,) = extract_splits(ask(dtype="float32", connections=3, request_texts=2), ["train"])
    assert again.cached and other.cached and server.seen.requests == before


def test_a_second_session_asks_the_canary_and_new_texts_alone(ask: Any, server: EndpointServer) -> None:
    extract_splits(ask(), ["train"])
    before = len(server.seen.answered)
    extract_splits(ask(), ["test"])
    assert server.seen.answered[before:] == [*TEXTS, "fine 好看"]


def test_other_settings_are_other_features(ask: Any, server: EndpointServer) -> None:
    first = extract_splits(ask(), ["test"])[0]
    changed = [ask(revision="v2"), ask(prompt="query: "), ask(views="vector-dimensions8")]
    made = [extract_splits(settings, ["test"])[0] for settings in changed]
    assert len({one.fingerprint for one in (first, *made)}) == 4
    assert all(one.encoded == 11 for one in made)
    assert "query: fine 好看" in server.seen.answered
    assert find_features(changed[2], "test").features("vector-dimensions8").x.shape == (11, 8)


def test_matryoshka_views_are_cut_and_scaled_here(ask: Any) -> None:
    settings = ask(views="vector,vector-first4-normalized", storage="float32")
    extract_splits(settings, ["test"])
    file = find_features(settings, "test")
    whole, cut = file.features("vector").x, file.features("vector-first4-normalized").x
    wanted = whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True)
    assert np.allclose(cut, wanted, atol=1e-6)
    with pytest.raises(BackboneError, match="sends 16 numbers a text"):
        extract_splits(ask(views="vector-first99-normalized"), ["test"])


def test_a_model_that_changed_adds_nothing(ask: Any, server: EndpointServer) -> None:
    extract_splits(ask(), ["train"])
    server.behaviour.model = "b"
    with pytest.raises(BackboneError, match="no longer gives the vectors") as error:
        extract_splits(ask(), ["test"])
    assert "--revision NAME" in (error.value.hint or "") and "cosine of" in error.value.what
    assert "fine 好看" not in server.seen.answered
    assert len(list(Cache.open(ask().paths.cache_dir).files("test"))) == 0
    (fresh,) = extract_splits(ask(revision="b"), ["test"])
    assert fresh.encoded == 11


def test_a_width_that_changed_adds_nothing(ask: Any, server: EndpointServer) -> None:
    extract_splits(ask(), ["train"])
    server.behaviour.width = 24
    with pytest.raises(BackboneError, match="vectors of 24 numbers; those before had 16"):
        extract_splits(ask(), ["test"])


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize("form", ["html", "fewer", "null", "no index"])
def test_answers_that_are_none_leave_no_file(ask: Any, server: EndpointServer, form: str) -> None:
    server.behaviour.form = form
    with pytest.raises(BackboneError) as error:
        extract_splits(ask(), ["train"])
    assert error.value.hint and not list(Path(ask().paths.cache_dir).rglob("*.h5"))


def test_a_text_that_is_refused_is_named_by_its_row(ask: Any, server: EndpointServer) -> None:
    server.behaviour.bad_text = "film 33"
    with pytest.raises(BackboneError, match="row 34 of train: the server refuses it: the text is too long"):
        extract_splits(ask(), ["train"])


def test_costs_are_told_and_refused_before_the_first_request(ask: Any, server: EndpointServer) -> None:
    said: list[Progress] = []
    with pytest.raises(UsageError, match="would cost about") as error:
        extract_splits(ask(prices={NAME: 1000.0}, max_cost=0.01), ["train"])
    assert "nothing was sent" in (error.value.hint or "") and server.seen.requests == 0
    with pytest.raises(UsageError, match="price of tiny-embedding is not known"):
        extract_splits(ask(max_cost=0.01), ["train"])
    extract_splits(ask(prices={NAME: 1000.0}, max_cost=10.0), ["train"], said.append)
    assert any("which cost about" in one.text and "(1000 a million)" in one.text for one in said)
    tokens = sum(map(len, server.seen.answered))
    assert [one.cost for one in said if one.stage == "encode"][-1] == pytest.approx(tokens / 1000)


def test_a_limit_that_is_reached_keeps_what_is_finished(
    ask: Any, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.extraction.partition.UNIT_BATCHES", 0.01)  # units of some 40 tokens
    limited = ask(prices={NAME: 1000.0}, max_cost=0.9, connections=1)
    with pytest.raises(BackboneError, match=r"--max-cost 0\.9 is reached"):
        extract_splits(limited, ["train"])
    paid = len(server.seen.answered)
    assert 16 < paid < 56 and sum(map(len, server.seen.answered)) / 1000 <= 0.95
    extract_splits(ask(prices={NAME: 1000.0}, connections=1), ["train"])
    assert len(server.seen.answered) - paid - 16 == 40 - (paid - 16)  # no text is paid twice


def test_several_workers_and_pairs_are_refused(ask: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several workers and an endpoint"):
        extract_splits(ask(), ["train"], workers=2)
    write(tmp_path / "pairs" / "train.jsonl", jsonl([{**row, "other": "film"} for row in ROWS]))
    with pytest.raises(UsageError, match="not pairs"):
        extract_splits(
            ask(dataset=str(tmp_path / "pairs"), text_column="text", pair_column="other"), ["train"]
        )
