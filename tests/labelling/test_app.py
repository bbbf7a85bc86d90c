"""The page's requests: what it may send, what it gets, and what is refused."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.app import BODY_BYTES, LabelService
from featcache.labelling.encoding import BackgroundEncoding, EncodingState
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.words import WORDS
from featcache.settings import Settings
from tests.support.chinese import english_words


@pytest.fixture
def session(tmp_path: Path) -> LabelSession:
    texts = TextsToLabel.of([f"<b>text {number}</b>" for number in range(200)])
    session = LabelSession(texts, AnswersFile(tmp_path / "a.jsonl", AnswersHeader(labels=("x", "y"))), "me")
    draw = np.random.default_rng(0)
    sign = np.arange(200)[:, None] % 2 * 2 - 1
    session.use_features((sign * 6 + draw.standard_normal((200, 40))).astype(np.float32))
    return session


@pytest.fixture
def client(session: LabelSession) -> Iterator[TestClient]:
    service = LabelService(session, BackgroundEncoding(session, Settings()))
    with TestClient(service.app, base_url="http://127.0.0.1") as client:
        yield client


def label_of(row: int) -> str:
    return "xy"[row % 2]


def test_a_person_labels_undoes_and_goes_on(client: TestClient, session: LabelSession) -> None:
    state = client.get("/state").json()
    for _ in range(30):
        row = state["asked"]["row"]
        state = client.post("/answer", json={"row": row, "labels": [label_of(row)], "note": "n"}).json()
    assert (state["mine"], state["labelled"]) == (30, 30)
    assert state["estimate"]["rows"] == 6 and state["estimate"]["accuracy"] > 0.5
    points = client.get("/curve").json()["points"]
    assert [point["labels"] for point in points] == [20, 24]
    back = client.post("/undo", json={}).json()
    assert back["asked"]["row"] == row and back["labelled"] == 29
    skipped = client.post("/skip", json={"row": row, "unsure": True}).json()
    assert skipped["asked"]["row"] != row
    added = client.post("/label", json={"name": "z"}).json()
    assert added["labels"] == ["x", "y", "z"]
    assert [line.answer for line in session.answers.lines[-3:]] == ["undo", "unsure", "new label"]


def test_guesses_and_many_at_once(client: TestClient, session: LabelSession) -> None:
    state = client.get("/state").json()
    for _ in range(120):
        row = state["asked"]["row"]
        state = client.post("/answer", json={"row": row, "labels": [label_of(row)]}).json()
    row = int(session._open_rows()[0])
    guesses = client.post("/guess", json={"row": row}).json()["guesses"]
    assert {one["label"] for one in guesses} == {"x", "y"}
    assert client.post("/guess", json={"row": 10**6}).status_code == 409
    likely = client.post("/likely", json={}).json()["likely"]
    assert likely and likely[0]["text"].startswith("<b>text")
    labels = {str(one["row"]): one["label"] for one in likely}
    after = client.post("/confirm", json={"labels": labels}).json()
    assert after["labelled"] == 120 + len(likely)
    assert client.post("/confirm", json={"labels": {"1.5": "x"}}).status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/answer", {"row": -5, "labels": ["x"]}, 409),
        ("/answer", {"row": "0", "labels": ["x"]}, 422),
        ("/answer", {"row": 0, "labels": []}, 422),
        ("/answer", {"row": 0, "labels": ["x"], "more": 1}, 422),
        ("/answer", {"row": 0, "labels": ["x"], "note": "n" * 3000}, 422),
        ("/label", {"name": ""}, 409),
        ("/label", {"name": "n" * 300}, 409),
        ("/undo", {}, 409),
        ("/nowhere", {}, 404),
    ],
)
def test_odd_requests_are_refused_and_write_nothing(
    client: TestClient, session: LabelSession, path: str, body: dict[str, object], status: int
) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == status, reply.text
    assert status == 404 or reply.json()["error"]
    assert session.answers.lines == []


def test_an_unknown_label_is_refused(client: TestClient, session: LabelSession) -> None:
    row = client.get("/state").json()["asked"]["row"]
    reply = client.post("/answer", json={"row": row, "labels": ["w"]})
    assert (reply.status_code, reply.json()["hint"]) == (409, "there are: x, y")
    assert session.answers.lines == []


def test_other_sites_cannot_answer(client: TestClient, session: LabelSession) -> None:
    row = client.get("/state").json()["asked"]["row"]
    content = f'{{"row": {row}, "labels": ["x"]}}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/answer", content=content, headers={"content-type": kind}).status_code == 415
    assert client.get("/state", headers={"host": "evil.example"}).status_code == 400
    large = client.post("/answer", json={"row": row, "labels": ["x"], "note": "n" * BODY_BYTES})
    assert large.status_code == 413
    assert session.answers.lines == []
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers


def test_a_file_that_was_broken_by_hand_is_told_and_the_answer_can_be_given_again(
    client: TestClient, session: LabelSession
) -> None:
    row = client.get("/state").json()["asked"]["row"]
    path = session.answers.path
    whole = path.read_bytes()
    path.write_bytes(whole + b"oops\n")
    reply = client.post("/answer", json={"row": row, "labels": ["x"]})
    assert reply.status_code == 500 and "line 2" in reply.json()["error"]
    path.write_bytes(whole)
    assert client.post("/answer", json={"row": row, "labels": ["x"]}).json()["labelled"] == 1


def test_a_full_disk_is_told_and_the_answer_can_be_given_again(
    client: TestClient, session: LabelSession
) -> None:
    row = client.get("/state").json()["asked"]["row"]
    path, limits = session.answers.path, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
    try:
        full = client.post("/answer", json={"row": row, "labels": ["x"]})
        again = client.post("/answer", json={"row": row, "labels": ["x"]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {full.status_code, again.status_code} == {500} and path.name in full.json()["error"]
    state = client.get("/state").json()
    assert (state["asked"]["row"], state["labelled"]) == (row, 0)
    assert client.post("/answer", json={"row": row, "labels": ["y"]}).json()["labelled"] == 1
    assert [line.labels for line in AnswersFile(path, session.answers.header).lines] == [("y",)]


def test_the_words_are_those_that_the_page_says() -> None:
    said = set[str]()
    for name, pattern in (("index.html", r'data-word="([^"]+)"'), ("label.js", r'\bt\(\s*"([^"]+)"')):
        text = files("featcache.labelling").joinpath("page", name).read_text(encoding="utf-8")
        said |= set(re.findall(pattern, text))
    assert said == set(WORDS) and len(said) > 25


def test_the_server_speaks_the_language_of_the_page(session: LabelSession) -> None:
    encoding = BackgroundEncoding(session, Settings())
    encoding.state = EncodingState(stage="encode", done=1200, total=3000, model="bert")
    with TestClient(LabelService(session, encoding, "zh").app, base_url="http://127.0.0.1") as client:
        words = client.get("/words").json()
        assert words["language"] == "zh" and words["words"].keys() >= set(WORDS)
        assert client.get("/words?lang=en").json()["words"]["Undo"] == "Undo"
        chinese = {"Accept-Language": "zh"}
        for path, body in (("/undo", {}), ("/answer", {"row": 10**6, "labels": ["x"]}), ("/answer", {})):
            error = client.post(path, json=body, headers=chinese).json()
            assert english_words(" ".join(filter(None, error.values()))) == []
        state = client.get("/state", headers=chinese).json()
        said = [*state["sentences"].values(), state["asked"]["why"]]
        assert english_words(" ".join(said), "bert a jsonl mixed me") == []
        assert "1,200" in state["sentences"]["encoding"] and "3,000" in state["sentences"]["encoding"]
        assert client.get("/state").json()["asked"]["why"] == "one of the first texts, spread over the whole"


@pytest.mark.parametrize("path", ["/", "/page.css", "/label.css", "/label.js", "/words.js"])
def test_the_page_is_complete(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 200 and reply.text
    assert "http://" not in reply.text and "https://" not in reply.text  # nothing from elsewhere
