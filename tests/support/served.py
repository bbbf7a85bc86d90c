"""A service on a port of this machine, for clients that need one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from featcache.serving.server import Served, bind


@contextmanager
def served(service: Served) -> Iterator[str]:
    """The address of the server, which runs in a thread."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(service.app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
