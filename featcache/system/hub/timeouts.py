"""How long a hub may take to answer, and which hubs gave no answer a moment ago."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from featcache.errors import UsageError

T = TypeVar("T")

VARIABLE = "FEATCACHE_HUB_TIMEOUT"
SECONDS = 8.0  # with the imports of the clients, a command gives way within ten
REMEMBERED = 60.0  # seconds for which a hub that gave no answer is not asked again

_silent: dict[str, float] = {}  # address -> when it gave no answer, on the monotonic clock


def answer_timeout() -> float:
    """Seconds within which a hub must answer: `FEATCACHE_HUB_TIMEOUT`, or 8.

    Raises:
        UsageError: the variable holds no number above 0.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{VARIABLE}={text}: must be a number of seconds above 0")
    return seconds


def answer_within(seconds: float, hub: str, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises, if it does so within `seconds`.

    A timeout of sockets does not cover the look-up of a name, nor a hub that sends one byte now and then.

    Args:
        hub: its address. A hub that gave no answer in the last minute is not asked.

    Raises:
        TimeoutError: `ask` took longer; its thread is left behind, and does not keep the process alive.
    """
    when = _silent.get(hub)
    if when is not None and time.monotonic() - when < REMEMBERED:
        raise TimeoutError
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"ask {hub}")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        was_silent(hub)
        raise TimeoutError
    return done[0]


def was_silent(hub: str) -> None:
    """Remember that a hub gave no answer."""
    _silent[hub] = time.monotonic()
