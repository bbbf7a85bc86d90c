"""The HTTP session of `huggingface_hub`, with deadlines, and with bodies that are resumed after a reset.

The client looks a repository up without any timeout, resumes a file after a timeout but not after a reset,
and waits as long as a busy hub asks it to. It makes a new session after some errors, so that what is done
here is done to every session that it makes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from featcache.system.hub.patience import patience
from featcache.system.hub.troubles import trouble_of

BUSY = (429, 500, 502, 503, 504)

_no_retries = threading.Event()


@contextmanager
def without_retries() -> Iterator[None]:
    """Within it, the first question that the hub leaves open is an error: a copy is on this disk."""
    _no_retries.set()
    try:
        yield
    finally:
        _no_retries.clear()


@cache
def set_deadlines() -> None:
    """Give every session that `huggingface_hub` makes in this process its deadlines."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    # Private, because a user's own factory (certificates, proxies) must stay in use. Without it the client
    # keeps its own timeouts.
    make: Callable[[], Any] | None = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None)
    if make is not None:
        set_client_factory(lambda: _with_deadlines(make()))


def _with_deadlines(session: Any) -> Any:
    """`session` (an `httpx.Client`) whose `send` has deadlines and tells resets from timeouts."""
    from huggingface_hub import utils

    httpx: Any = utils.httpx  # type: ignore[attr-defined]  # httpx or httpx2, as the client has it

    class Interrupted(httpx.ReadTimeout):  # type: ignore[misc, name-defined]
        """The connection broke; by its base class the client resumes the file where it broke."""

    class Body(httpx.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self.stream
            except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                raise Interrupted(str(error)) from error

        def close(self) -> None:
            self.stream.close()

    send = session.send

    def send_in_time(request: Any, *, stream: bool = False, **options: Any) -> Any:
        _limit(request, stream)
        hub = f"{request.url.scheme}://{request.url.netloc.decode('ascii', 'replace')}"
        try:
            response = send(request, stream=True, **options)
            response.stream = Body(response.stream)
            if not stream or response.status_code in BUSY:
                response.read()
        except (httpx.TransportError, Interrupted) as error:
            if _no_retries.is_set() and not stream:
                raise trouble_of(error, hub, "what was asked for") from error
            if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
                raise Interrupted(str(error)) from error
            raise
        _refuse_long_waits(response, hub)
        return response

    session.send = send_in_time
    return session


def _limit(request: Any, stream: bool) -> None:
    """Set the timeouts of a request that has none; a question waits no longer than `patience`."""
    given, most = request.extensions.get("timeout", {}), patience()
    limits = {}
    for name in ("connect", "read", "write", "pool"):
        seconds = given.get(name)
        limits[name] = most if seconds is None else seconds if stream else min(seconds, most)
    request.extensions = {**request.extensions, "timeout": limits}


def _refuse_long_waits(response: Any, hub: str) -> None:
    """Raise what a busy hub answers if the client would wait too long, or need not wait."""
    if response.status_code not in BUSY:
        return
    after = response.headers.get("retry-after", "")
    if _no_retries.is_set() or (after.isdigit() and int(after) > patience()):
        raise trouble_of(_Busy(response), hub, "what was asked for")


class _Busy(Exception):
    """An answer that asks for patience."""

    def __init__(self, response: Any) -> None:
        super().__init__(str(response.status_code))
        self.response = response
