"""The process that serves: a socket of this machine, slow clients cut off, nothing accepted is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from featcache.errors import UsageError
from featcache.serving.app import Service

DRAIN_SECONDS = 0.3  # between a signal and the closed door: requests on their way still come in
HEADER_SECONDS = 10.0  # for a request's head to arrive
CONNECTIONS = 256
BACKLOG = 512


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: the address is taken, not of this machine, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it. Without it an
    # answer, whose head and body are sent apart, waits some 40 ms for the client's acknowledgement.
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
    """To be called before a model is loaded: let oneDNN forget the kernels of shapes long gone.

    Batches come in some sixty sizes; what else has a shape of its own, such as attention, is not to fill the
    1,024 places that there are by default, which would be hundreds of MB.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "384")


def serve(service: Service, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted, and return."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        service.app,
        http=_Timed,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        backlog=BACKLOG,
    )
    with _signals_heard():
        _Server(config, service).run(sockets=[listening])


@contextmanager
def _signals_heard() -> Iterator[None]:
    """uvicorn raises the signal it stopped for once more when it is done; here that ends nothing."""
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
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Every answer from now on closes its connection; then the door is closed."""
        self.service.draining = True
        await asyncio.sleep(DRAIN_SECONDS)
        await super().shutdown(sockets)


class _Timed(H11Protocol):
    """A connection that is closed where the head of a request does not arrive in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._patience is None:
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
