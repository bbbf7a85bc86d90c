"""How many requests are at a server at once: as many as the user allows, fewer while it says it is busy."""

from __future__ import annotations

import threading
import time
from collections import deque

SHORTEST, LONGEST = 0.5, 30.0  # seconds until one more request is tried
LOOK = 1.0  # seconds after which one who waits looks by itself


class RequestWindow:
    """A limit that follows the server.

    Each refusal (429) lowers the limit to the requests that the server may have taken; one burst of refusals
    halves it at the most. Without refusals it grows by one after a time that doubles where the growth is
    refused. Two refusals in a row make all requests wait as long as the server asks.

    Args:
        most: requests at a time, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = self.allowed = most
        self._least = 1  # that the present burst of refusals leaves
        self._inside = self._in_row = 0
        self._until = self._cut = self._grow = 0.0  # of `time.monotonic`
        self._patience = SHORTEST
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def enter(self, stopped: threading.Event, *, again: bool = False) -> float | None:
        """Wait for a place; places are given in the order of the calls.

        Args:
            again: the request was sent before, and the others wait for it: it comes first.

        Returns:
            When the place was given; None where `stopped` is set.
        """
        turn = threading.Event()
        with self._lock:
            (self._waiting.appendleft if again else self._waiting.append)(turn)
        while not stopped.is_set():
            with self._lock:
                now = time.monotonic()
                if now >= self._until and self._inside < self.allowed and self._waiting[0] is turn:
                    self._waiting.popleft()
                    self._inside += 1
                    self._wake_next()
                    return now
                turn.clear()
                pause = self._until - now
            turn.wait(min(pause, LOOK) if pause > 0 else LOOK)
        with self._lock:
            self._waiting.remove(turn)
        return None

    def leave(self, *, taken: bool) -> None:
        """Give a place back; `taken`: the server did not refuse for being busy."""
        with self._lock:
            self._inside -= 1
            if taken:
                self._in_row = 0
                self._let_grow()
            self._wake_next()

    def refused(self, began: float, wait: float) -> None:
        """The server is busy, and asks to wait so many seconds; `began`: when the request was sent."""
        with self._lock:
            now = time.monotonic()
            self._in_row += 1
            if self._in_row > 1:
                self._until = max(self._until, now + wait)
            if began >= self._cut:  # the first of a burst
                self._least = max(1, self.allowed // 2)
                self._cut, self._grow = now, now + self._patience
                self._patience = min(2 * self._patience, LONGEST)
            self.allowed = max(self._least, min(self.allowed, self._inside - 1))

    def wake(self) -> None:
        """Let those who wait look whether the client was stopped."""
        with self._lock:
            for turn in self._waiting:
                turn.set()

    def _wake_next(self) -> None:
        if self._waiting and self._inside < self.allowed:
            self._waiting[0].set()

    def _let_grow(self) -> None:
        now = time.monotonic()
        if self.allowed < self.most and now >= self._grow:
            self.allowed += 1
            self._patience = max(SHORTEST, self._patience / 1.5)
            self._grow = now + self._patience
