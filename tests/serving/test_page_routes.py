"""What the page is made of, and what it asks the server for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from featcache.prediction.predictor import Predictor
from featcache.serving.app import Service
from featcache.serving.examples import Example
from featcache.serving.page_routes import PAGE, language_of
from featcache.serving.request import Limits
from featcache.serving.words import WORDS
from tests.support.stock import sentence
from tests.support.tiny_predictor import tiny_predictor

LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with TestClient(Service(predictor, Limits(characters=2000)).app, base_url=LOCAL) as client:
        yield client


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["/page.css", "/page.js", "data:,"]
    assert not re.search(r"<script>|\son\w+=|\sstyle=", page.text)  # the policy would stop them
    for name in PAGE[1:]:
        part = client.get(f"/{name}")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        assert part.status_code == 200 and part.headers["content-type"].startswith(kind)
        assert part.headers["content-security-policy"] == page.headers["content-security-policy"]
        assert "://" not in part.text and "innerHTML" not in part.text and "outerHTML" not in part.text
        assert all(f"/{one}" in PAGE or one[1:] in PAGE for one in re.findall(r'from "([^"]+)"', part.text))


def test_the_words_are_those_that_the_page_says() -> None:
    said = set[str]()
    for name in PAGE:
        text = files("featcache.serving").joinpath("page", name).read_text(encoding="utf-8")
        said |= set(
            re.findall(r'data-word="([^"]+)"' if name.endswith(".html") else r'\bt\(\s*"([^"]+)"', text)
        )
    assert said == set(WORDS) and len(WORDS) == len(said) > 50


def test_words_are_chinese_for_who_asks_for_it_or_prefers_it(client: TestClient) -> None:
    english = client.get("/words").json()
    assert english == {"language": "en", "words": {word: word for word in WORDS}}
    for path, languages in (("/words?lang=zh", "en"), ("/words", "zh-CN,en;q=0.5"), ("/words?lang=xx", "zh")):
        found = client.get(path, headers={"Accept-Language": languages}).json()
        assert found["language"] == "zh" and found["words"].keys() == english["words"].keys()
        for word, translated in found["words"].items():
            assert re.search("[\u4e00-\u9fff]", translated), word
            assert sorted(re.findall(r"\{\w+\}", translated)) == sorted(re.findall(r"\{\w+\}", word))
    assert client.get("/words?lang=en", headers={"Accept-Language": "zh"}).json() == english


@pytest.mark.parametrize(
    ("asked", "language"),
    [
        ("", "en"), ("zh", "zh"), ("ZH-hant-TW", "zh"), ("fr,de;q=0.9", "en"), ("fr,zh;q=0.1", "zh"),
        ("zh;q=0", "en"), ("en;q=0.4, zh;q=0.5", "zh"), ("zh;q=x,en", "en"), ("*", "en"), (",;=,", "en"),
    ],
)  # fmt: skip
def test_language_of(asked: str, language: str) -> None:
    assert language_of([(b"accept-language", asked.encode()), (b"host", b"zh")]) == language


def tokens(client: TestClient, **content: Any) -> Any:
    reply = client.post("/tokens", json=content)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_tokens_are_counted_and_what_is_cut_off_is_named(client: TestClient) -> None:
    found = tokens(client, text="好 房间")
    assert (found["count"], found["limit"], found["truncated"], found["unread"]) == (5, 64, False, [])
    long = sentence(70)
    found = tokens(client, text=long)
    assert (found["count"], found["truncated"]) == (72, True)
    ((begin, end),) = found["unread"]
    assert end == len(long) and len(long[:begin].split()) == 62
    found = tokens(client, text="好", pair=long)
    assert found["unread"] == [] and found["unread_pair"][0][1] == len(long)
    assert tokens(client, text=" \n") is None and tokens(client, text="") is None


def test_tokens_of_parts(tiny: Callable[[str], Path]) -> None:
    predictor = tiny_predictor(tiny("bert"), long_text="chunks", overlap=4)
    with TestClient(Service(predictor).app, base_url=LOCAL) as client:
        found = tokens(client, text=sentence(150))
        assert (found["count"], found["windows"], found["truncated"]) == (152, 3, False)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"{}", 422), (b'{"text": 1}', 422), (b'{"text": "a", "more": 1}', 422),
        (b'{"text": "' + b"a" * 2001 + b'"}', 413), (b'{"text": "\\ud800"}', 400),
    ],
)  # fmt: skip
def test_tokens_refuses_what_it_cannot_count(body: bytes, status: int, client: TestClient) -> None:
    reply = client.post("/tokens", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status and reply.json()["error"]
    assert client.post("/tokens", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_examples_are_found_once_and_not_unless_they_may_be_shown(predictor: Predictor) -> None:
    calls = []

    def found() -> list[Example]:
        calls.append(1)
        return [Example("好 房间", None, "好评")]

    with TestClient(Service(predictor, examples=found).app, base_url=LOCAL) as client:
        for _ in range(3):
            assert client.get("/examples").json() == {
                "examples": [{"text": "好 房间", "pair": None, "label": "好评"}]
            }
    assert calls == [1]
    with TestClient(Service(predictor).app, base_url=LOCAL) as client:
        assert client.get("/examples").json() == {"examples": []}
