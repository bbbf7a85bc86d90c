"""The HTTP session of `huggingface_hub`, with deadlines, and with bodies that are resumed after a reset.

The client looks a repository up without any timeout, resumes a file after a timeout but not after a reset,
and waits as long as a busy hub asks it to. It makes a new session after some errors, so that what is done
here is done to every session that it makes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from featcache.system.hub.errors import hub_error
from featcache.system.hub.listener import tell, tell_progress
from featcache.system.hub.timeouts import answer_timeout

BUSY = (429, 500, 502, 503, 504)
MOST_SILENCES = 3  # in a row, whatever the client would still try


@dataclass
class _State:
    """What all sessions and threads of the process share.

    Attributes:
        retries: whether a question that the hub leaves open may be asked again.
        silences: requests in a row that got no answer in time.
        counted: under which name received bytes are told; empty where they are not.
        received, announced: bytes of the files that are counted.
    """

    retries: bool = True
    silences: int = 0
    counted: str = ""
    received: int = 0
    announced: int = 0


_state = _State()


@contextmanager
def without_retries() -> Iterator[None]:
    """Within it, the first question that the hub leaves open is an error: a copy is on this disk."""
    _state.retries = False
    try:
        yield
    finally:
        _state.retries = True


@contextmanager
def counting_bytes(name: str) -> Iterator[None]:
    """Tell the listener of the bytes of `name` that are received, for a client that has no callback."""
    _state.counted, _state.received, _state.announced = name, 0, 0
    try:
        yield
    finally:
        _state.counted = ""


@cache
def set_deadlines() -> None:
    """Give every session that `huggingface_hub` makes in this process its deadlines."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    # Private, because a user's own factory (certificates, proxies) must stay in use. Without it the client
    # keeps its own timeouts.
    make: Callable[[], Any] | None = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of what it tries again
    if make is not None:
        set_client_factory(lambda: _with_deadlines(make()))


def _with_deadlines(session: Any) -> Any:
    """`session` (an `httpx.Client`) whose `send` has deadlines and tells resets from timeouts."""
    from huggingface_hub import utils

    httpx: Any = utils.httpx  # type: ignore[attr-defined]  # httpx or httpx2, as the client has it

    class Interrupted(httpx.ReadTimeout):  # type: ignore[misc, name-defined]
        """The connection broke; by its base class the client resumes the file where it broke."""

    class Body(httpx.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, pieces: Any, hub: str, *, counted: bool) -> None:
            self.pieces, self.hub, self.counted = pieces, hub, counted

        def __iter__(self) -> Iterator[bytes]:
            try:
                for piece in self.pieces:
                    _state.silences = 0
                    if self.counted:
                        _count(len(piece))
                    yield piece
            except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                tell(f"the hub at {self.hub} broke the connection off; the download goes on where it was")
                raise Interrupted(str(error)) from error
            except httpx.TimeoutException as error:
                _refuse_silence(error, self.hub)
                tell(f"the hub at {self.hub} stopped sending; the download goes on where it was")
                raise

        def close(self) -> None:
            self.pieces.close()

    send = session.send

    def send_in_time(request: Any, *, stream: bool = False, **options: Any) -> Any:
        _limit(request, stream)
        hub = f"{request.url.scheme}://{request.url.netloc.decode('ascii', 'replace')}"
        try:
            response = send(request, stream=True, **options)
        except httpx.TransportError as error:
            if not _state.retries and not stream:
                raise hub_error(error, hub, "what was asked for") from error
            if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
                raise Interrupted(str(error)) from error
            if isinstance(error, httpx.TimeoutException):
                _refuse_silence(error, hub)
            raise
        counted = stream and response.is_success and bool(_state.counted)
        if counted:
            _state.announced += int(response.headers.get("content-length") or 0)
        response.stream = Body(response.stream, hub, counted=counted)
        if not stream or response.status_code in BUSY:
            response.read()
        _refuse_long_waits(response, hub)
        return response

    session.send = send_in_time
    return session


def _count(bytes_received: int) -> None:
    _state.received += bytes_received
    tell_progress(_state.counted, _state.received, max(_state.announced, _state.received))


def _refuse_silence(error: Exception, hub: str) -> None:
    """Raise what no client tries again, if a body stands still for the last time."""
    _state.silences += 1
    if _state.silences >= (MOST_SILENCES if _state.retries else 1):
        _state.silences = 0
        raise hub_error(error, hub, "what was asked for") from error


def _limit(request: Any, stream: bool) -> None:
    """Set the timeouts of a request that has none; a question waits no longer than `answer_timeout`."""
    given, most = request.extensions.get("timeout", {}), answer_timeout()
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
    if not _state.retries or (after.isdigit() and int(after) > answer_timeout()):
        raise hub_error(_Busy(response), hub, "what was asked for")


class _Busy(Exception):
    """An answer that asks to wait."""

    def __init__(self, response: Any) -> None:
        super().__init__(str(response.status_code))
        self.response = response
