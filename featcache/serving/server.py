"""The process that serves: slow clients are disconnected, and every accepted request is answered."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from featcache.errors import UsageError

DRAIN_SECONDS = 0.3  # between a signal and the end of listening: requests under way are still accepted
HEADER_SECONDS = 10.0  # in which the head of a request must arrive
ANSWER_SECONDS = 10.0  # in which a client must take an answer, or the next 48 kB of a long one
CONNECTIONS = 256
BACKLOG = 512


class Served(Protocol):
    """An application, told when the process stops: `draining` is set before it stops to listen."""

    app: FastAPI
    draining: bool


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: the address is taken, not of this machine, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets with an explicit protocol. Without it an answer, whose head and
    # body are sent apart, waits some 40 ms for the acknowledgement of the client.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host} port {port}: {reason}", hint="try --port 0") from None
    return bound


def keep_few_kernels() -> None:
    """Limit the kernels that oneDNN keeps; to be called before a model is loaded.

    Batches have some sixty sizes. Other operations with a shape of their own, such as attention, would fill
    the default of 1,024 kernels, which are hundreds of MB.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "384")


def serve(service: Served, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, answer what was accepted, and return; a second one ends the process."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        service.app,
        http=_Deadlines,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        backlog=BACKLOG,
    )
    with _signals_ignored():
        _Server(config, service).run(sockets=[listening])


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignore the signal that uvicorn raises once more after it has stopped for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Served) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; at the second end at once: there is nothing on disk to be finished."""
        if self.should_exit:
            os._exit(128 + sig)  # as a shell reports a process that a signal ended
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let every answer close its connection, and stop listening after DRAIN_SECONDS."""
        self.service.draining = True
        await asyncio.sleep(DRAIN_SECONDS)
        await super().shutdown(sockets)


class _Deadlines(H11Protocol):
    """A connection that is closed if the head of a request is late, or an answer is not taken."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._start("head", HEADER_SECONDS, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("head")
        elif "head" not in self._timers:
            self._start("head", HEADER_SECONDS, self._close)

    def pause_writing(self) -> None:
        """More is to be sent than the client takes."""
        super().pause_writing()
        self._start("answer", ANSWER_SECONDS, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("answer")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop("head")
        if self.transport.get_write_buffer_size():
            self._start("answer", ANSWER_SECONDS, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def _start(self, name: str, seconds: float, end: Callable[[], None]) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, end)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _close(self) -> None:
        del self._timers["head"]
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def _abort(self) -> None:
        """End the connection and drop what the client has not taken: `close` would wait for it."""
        del self._timers["answer"]
        if self.transport.get_write_buffer_size():
            self.transport.abort()
