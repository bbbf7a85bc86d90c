"""Texts are encoded in the background, once, and labelling does not depend on it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import BackboneError
from featcache.extraction.endpoint.canary import TEXTS as CANARY_TEXTS
from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.encoding import BackgroundEncoding, EncodeWith, EncodingState, features_of
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.words import encoding_sentences
from featcache.settings import Settings, build_settings
from featcache.system.progress import OnProgress, Progress
from tests.support.endpoint_server import EndpointServer, vectors_of

TEXTS = TextsToLabel.of([f"{word} {number}" for number in range(30) for word in ("好房间", "坏房间", "服务")])


def session_in(folder: Path, descriptions: dict[str, list[str]] | None = None) -> LabelSession:
    file = AnswersFile(folder / "a.jsonl", AnswersHeader(labels=("good", "bad")))
    return LabelSession(TEXTS, file, "me", descriptions=descriptions)


def ended(encoding: BackgroundEncoding) -> EncodingState:
    encoding.start()
    encoding.wait(120)
    return encoding.state


def settings_of(model: Path, folder: Path) -> Settings:
    return build_settings({"model": str(model), "views": ("last/mean",), "cache_dir": str(folder / "cache")})


def test_features_come_from_the_cache_the_second_time(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tiny("bert"), tmp_path)
    first = session_in(tmp_path, {"good": ["很好"], "bad": ["很差", "失望"]})
    state = ended(BackgroundEncoding(first, settings))
    assert state.ready and state.problem is None
    assert first.pool is not None and first.pool.x.shape == (90, 32)
    row = int(first._open_rows()[0])
    assert {one.label for one in first.guesses(row)} == {"good", "bad"}  # of the descriptions
    monkeypatch.setattr("featcache.backbone.encoder.Encoder.load", lambda *_: pytest.fail("loaded again"))
    second = session_in(tmp_path)
    assert ended(BackgroundEncoding(second, settings)).ready
    assert second.pool is not None and (second.pool.x == first.pool.x).all()


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_endpoint_encodes_each_text_once(tmp_path: Path) -> None:
    with EndpointServer() as server:
        settings = build_settings({"model": server.model, "cache_dir": str(tmp_path / "cache")})
        first = session_in(tmp_path, {"good": ["很好"], "bad": ["很差", "失望"]})
        state = ended(BackgroundEncoding(first, settings))
        assert state.ready and state.problem is None
        assert first.pool is not None and first.pool.x.shape == (90, 16)
        assert Counter(server.seen.answered) == Counter([*TEXTS.texts, "很好", "很差", "失望", *CANARY_TEXTS])
        before, second = server.seen.requests, session_in(tmp_path)
        assert ended(BackgroundEncoding(second, settings)).ready
        np.testing.assert_allclose(features_of(TEXTS.texts, settings), vectors_of(TEXTS.texts), atol=1e-3)
        assert server.seen.requests == before
    assert second.pool is not None and (second.pool.x == first.pool.x).all()


def test_labelling_goes_on_where_texts_cannot_be_encoded(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    (tmp_path / "empty").mkdir()
    state = ended(BackgroundEncoding(session, settings_of(tmp_path / "empty", tmp_path)))
    assert not state.ready and state.problem and "empty" in state.problem
    asked = session.question()
    assert asked is not None and asked.chosen == "random"
    session.answer(asked.row, ["good"])


def test_labelling_begins_while_a_model_is_looked_for_and_what_is_taken_is_told(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    session, go_on = session_in(tmp_path), threading.Event()

    def with_model(settings: Settings, work: EncodeWith, report: OnProgress) -> np.ndarray:
        with pytest.raises(BackboneError):
            work(settings)
        assert go_on.wait(60)
        report(Progress("note", text="another model is used instead"))
        return work(settings_of(tiny("bert"), tmp_path))

    encoding = BackgroundEncoding(session, settings_of(tmp_path / "none", tmp_path), with_model)
    encoding.start()
    asked = session.question()
    assert asked is not None
    session.answer(asked.row, ["good"])
    assert "Until all are encoded" in encoding_sentences(encoding.state)[0]
    go_on.set()
    encoding.wait(120)
    assert encoding.state.ready and encoding.state.model == tiny("bert").name
    assert encoding_sentences(encoding.state) == ["another model is used instead"]
    assert session.counted.labels == {asked.row: {"good"}}


def test_nothing_is_encoded_without_settings(tmp_path: Path) -> None:
    encoding = BackgroundEncoding(session_in(tmp_path), None)
    encoding.start()
    assert encoding.state.ready and not encoding.running
