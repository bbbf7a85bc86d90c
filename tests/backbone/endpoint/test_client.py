"""Requests against a server on loopback: order, splitting, retries, limits, and what is said of errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from featcache.backbone.endpoint.answer import Vectors
from featcache.backbone.endpoint.client import Client
from featcache.backbone.endpoint.key import ApiKey
from featcache.backbone.endpoint.model import EndpointModel
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import BackboneError, BadRow, UsageError
from tests.support.endpoint_server import Behaviour, EndpointServer, vector_of

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]
TEXTS = [f"text {number}" for number in range(20)]


@contextmanager
def connected(
    behaviour: Behaviour, dimensions: int | None = None, **settings: Any
) -> Iterator[tuple[Client, EndpointServer]]:
    with EndpointServer(behaviour) as server:
        client = Client(
            EndpointModel.parse(server.model), EndpointSettings(**settings), dimensions=dimensions
        )
        try:
            yield client, server
        finally:
            client.stop()


def rows(future: Future[Vectors]) -> np.ndarray:
    return future.result(timeout=60).rows


def expected(texts: list[str], width: int = 16) -> np.ndarray:
    return np.stack([vector_of(text, width) for text in texts])


def error_of(client: Client, texts: list[str] = TEXTS[:1]) -> BackboneError:
    with pytest.raises(BackboneError) as error:
        client.submit(texts).result(timeout=60)
    return error.value


@pytest.mark.parametrize("form", ["right", "reversed", "base64"])
def test_vectors_come_in_the_order_of_the_texts(form: str) -> None:
    with connected(Behaviour(form=form)) as (client, _):
        assert np.allclose(rows(client.submit(TEXTS)), expected(TEXTS), atol=1e-6)


def test_requests_that_the_server_finds_too_large_are_split_once() -> None:
    with connected(Behaviour(most_texts=5)) as (client, server):
        assert np.allclose(rows(client.submit(TEXTS)), expected(TEXTS), atol=1e-6)
        assert client.most_texts == 5
        before = server.seen.requests
        assert np.allclose(rows(client.submit(TEXTS)), expected(TEXTS), atol=1e-6)
        assert server.seen.requests - before == 4


def test_a_text_that_the_server_refuses_is_named_by_its_row() -> None:
    with connected(Behaviour(bad_text="text 13")) as (client, _):
        error = error_of(client, TEXTS)
        assert isinstance(error, BadRow) and error.row == 13 and "too long (400)" in error.what
        assert client.most_texts == 32  # the number of texts was not the reason


def test_errors_that_pass_are_tried_again_and_no_text_is_lost() -> None:
    with connected(Behaviour(errors=0.3), connections=4) as (client, server):
        futures = [client.submit(TEXTS[n : n + 2]) for n in range(0, 20, 2)]
        assert np.allclose(np.concatenate([rows(future) for future in futures]), expected(TEXTS), atol=1e-6)
        assert server.seen.requests > 10


@pytest.mark.parametrize("form", ["half", "nothing", "reset"])
def test_half_an_answer_is_asked_for_again(form: str) -> None:
    with connected(Behaviour(form=form, times=2)) as (client, server):
        assert np.allclose(rows(client.submit(TEXTS[:3])), expected(TEXTS[:3]), atol=1e-6)
        assert server.seen.requests == 3


def test_a_server_that_is_busy_is_asked_less() -> None:
    behaviour = Behaviour(latency=0.02, most_inside=3, retry_after="0.1")
    with connected(behaviour, connections=12) as (client, server):
        futures = [client.submit([f"{n}"]) for n in range(150)]
        assert len(np.concatenate([rows(future) for future in futures])) == 150
        assert client.window.allowed <= 6
        assert server.seen.refused < 60


def test_retry_after_is_waited_for() -> None:
    behaviour = Behaviour(most_inside=0, rate=1000.0, retry_after="1")
    with connected(behaviour, connections=1) as (client, server):
        rows(client.submit(TEXTS[:1]))
        server.behaviour.rate, server.tokens = 1000.0, -1000.0 * 0.2  # refuses for 0.2 s
        began = time.monotonic()
        rows(client.submit(TEXTS[:1]))
        assert time.monotonic() - began >= 1.0 and server.seen.refused == 1


def test_a_wait_that_is_too_long_is_told() -> None:
    with connected(Behaviour(most_inside=-1, retry_after="7200")) as (client, _):
        error = error_of(client)
        assert "asks to wait 7,200 s" in error.what and "continues" in (error.hint or "")


ELSEWHERE = Behaviour(form="redirect", location="http://elsewhere/v1?key=1")


def failing(status: int, message: str) -> Behaviour:
    return Behaviour(form="error", status=status, message=message)


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(
    ("behaviour", "said", "hint"),
    [
        (Behaviour(form="html"), "web page: Sign in", "address"),
        (Behaviour(form="fewer"), "1 texts with 0 vectors", "request"),
        (Behaviour(form="null"), "another form", "embeddings"),
        (failing(401, "no such key"), "401: no such key", "FEATCACHE_API_KEY"),
        (failing(404, "no model"), "404: no model", "up to /v1"),
        (failing(429, "insufficient_quota"), "insufficient_quota", "used up"),
        (failing(418, "teapot"), "418: teapot", "server says"),
        (ELSEWHERE, "redirects to http://elsewhere/v1,", "trust"),
    ],
)
def test_an_answer_that_does_not_pass_is_a_sentence_at_once(
    behaviour: Behaviour, said: str, hint: str
) -> None:
    with connected(behaviour) as (client, server):
        error = error_of(client)
        assert said in error.what and hint in (error.hint or "")
        assert server.seen.requests == 1 and not server.seen.answered[1:]


def test_the_width_may_not_change() -> None:
    with connected(Behaviour()) as (client, server):
        rows(client.submit(TEXTS[:2]))
        server.behaviour.width = 24
        error = error_of(client)
        assert "vectors of 24 numbers; those before had 16" in error.what and "--revision" in (
            error.hint or ""
        )


def test_dimensions_are_asked_for_and_checked() -> None:
    with connected(Behaviour(), dimensions=8) as (client, server):
        assert rows(client.submit(TEXTS[:2])).shape == (2, 8)
        assert server.seen.bodies[0]["dimensions"] == 8
        server.behaviour.ignore_dimensions = True
        error = error_of(client)
        assert "asked for 8 numbers" in error.what and "vector-first8-normalized" in (error.hint or "")


def test_where_nobody_listens_is_told_at_once() -> None:
    with EndpointServer() as server:
        model = EndpointModel.parse(server.model)
    began = time.monotonic()
    error = error_of(Client(model, EndpointSettings()))
    assert "refuses connections" in error.what and "running" in (error.hint or "")
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.backbone.endpoint.client.TRIES", 2)
    with connected(Behaviour(form="silent"), request_timeout=0.2) as (client, _):
        error = error_of(client)
        assert "does not answer within 0.2 s" in error.what and "tried 2 times" in error.what


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with connected(Behaviour(form="error", status=401, message=f"bad key {secret}")) as (client, server):
        error = error_of(client)
        assert server.seen.keys == {f"Bearer {secret}"}
        shown = [error, repr(error), client.key, repr(client.key), vars(client), ApiKey.from_environment()]
        assert not any(secret in str(one) for one in shown) and "bad key [key]" in error.what
    monkeypatch.setenv("FEATCACHE_API_KEY", "other")
    assert ApiKey.from_environment().name == "FEATCACHE_API_KEY"
    monkeypatch.setenv("FEATCACHE_API_KEY", "two words")
    with pytest.raises(UsageError, match="FEATCACHE_API_KEY has characters"):
        ApiKey.from_environment()


def test_a_redirect_gets_neither_key_nor_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_API_KEY", "sk-1")
    with EndpointServer() as other:
        behaviour = Behaviour(form="redirect", location=f"{other.address}/embeddings")
        with connected(behaviour) as (client, _):
            assert "is not followed" in error_of(client).what
        assert other.seen.requests == 0


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with connected(Behaviour()) as (client, _):
        assert len(rows(client.submit(TEXTS[:1]))) == 1
