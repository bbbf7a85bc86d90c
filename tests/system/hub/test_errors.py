"""Every exception of the clients and of the HTTP libraries is one sentence with a hint."""

from __future__ import annotations

import errno
import importlib
import inspect
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import SourceError
from featcache.system.hub.errors import HubError, Kind, hub_error
from featcache.system.stores import opened
from tests.support.loopback_hub import LoopbackHub, Silence, Status

pytestmark = pytest.mark.bad_input

HUB, NAME = "http://127.0.0.1:1", "the model a/b"
LIBRARIES = (
    "requests.exceptions", "urllib3.exceptions", "httpx", "aiohttp", "http.client", "ssl", "socket", "json",
    "huggingface_hub.errors", "huggingface_hub.utils", "datasets.exceptions", "modelscope_hub.errors",
)  # fmt: skip


def exceptions() -> Iterator[type[Exception]]:
    """Every class of exception that the libraries export."""
    for name in LIBRARIES:
        module = importlib.import_module(name)
        modules = [module, *filter(inspect.ismodule, vars(module).values())]
        for one in [each for holder in modules for each in vars(holder).values()]:
            if inspect.isclass(one) and issubclass(one, Exception):
                yield one


def test_every_exception_of_the_libraries_is_one_line() -> None:
    found = list(dict.fromkeys(exceptions()))
    assert len(found) > 150
    for kind in found:
        made = type(kind.__name__, (kind,), {"__str__": lambda _: "what it says"})
        found = hub_error(made.__new__(made), HUB, NAME)
        assert "\n" not in found.what and found.what.strip()
        for word in ("unexpected", "defect"):
            assert word not in (found.what + found.hint).lower()


@given(
    st.text(), st.sampled_from([ValueError, OSError, RuntimeError, ConnectionError, TimeoutError, KeyError])
)
def test_any_text_stays_on_one_printable_line(text: str, kind: type[Exception]) -> None:
    found = hub_error(kind(text), HUB, NAME)
    assert found.what.isprintable() and len(found.what) < 400


@pytest.mark.parametrize(
    ("number", "words", "kind"),
    [
        (errno.ENOSPC, "the disk is full (/hub/x)", Kind.DISK),
        (errno.EDQUOT, "the disk is full", Kind.DISK),
        (errno.EROFS, "cannot be written (/hub/x)", Kind.DISK),
        (errno.EACCES, "cannot be written", Kind.DISK),
        (errno.EIO, "the disk: Input/output error", Kind.DISK),
        (errno.ECONNRESET, "breaks the connection off", Kind.UNREACHABLE),
        (errno.ECONNREFUSED, "refuses connections", Kind.UNREACHABLE),
        (errno.ETIMEDOUT, "does not answer", Kind.UNREACHABLE),
    ],
)
def test_numbers_of_the_system(number: int, words: str, kind: Kind) -> None:
    found = hub_error(OSError(number, "what it says", "/hub/x"), HUB, NAME)
    assert words in found.what and found.kind is kind


def test_the_cause_is_found_below_an_exception_that_says_nothing() -> None:
    try:
        try:
            raise socket.gaierror(-2, "Name or service not known")
        except OSError as error:
            raise RuntimeError("it failed") from error
    except RuntimeError as error:
        assert "its name cannot be resolved" in hub_error(error, HUB, NAME).what
    own = HubError("said already")
    assert hub_error(own, HUB, NAME) is own


def test_a_fault_of_our_own_code_is_not_put_down_to_the_hub() -> None:
    try:
        Path(3)  # type: ignore[arg-type]
    except TypeError as error:
        assert "no hub's" in hub_error(error, HUB, NAME).what
    try:
        opened("::")
    except Exception as error:
        assert "no hub's" not in hub_error(error, HUB, NAME).what


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [(Silence(), "does not answer within 0.5 s"), (Status(503), "(503"), (Status(404), "no such file")],
    ids=["silent", "503", "404"],
)
def test_a_file_of_a_web_server(answer: Status, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HUB_TIMEOUT", "0.5")
    with LoopbackHub() as server:
        server.fail(".", answer)
        with pytest.raises(SourceError, match=r"train\.csv") as caught:
            opened(f"{server.url}/train.csv", SourceError).read()
    assert words in str(caught.value)
