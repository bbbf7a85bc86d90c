"""How many requests are at a server at once: as many as the user allows, fewer while it says it is busy."""

from __future__ import annotations

import threading
import time

SHORTEST, LONGEST = 0.5, 30.0  # seconds until one more request is tried


class RequestWindow:
    """A limit that follows the server.

    A refusal (429) lowers the limit to the requests that the server has taken, by half at the most; of one
    burst of refusals the first alone counts. Without refusals it grows by one after a time that doubles
    where the growth is refused. Two refusals in a row make all requests wait as long as the server asks.

    Args:
        most: requests at a time, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = self.allowed = most
        self._inside = self._in_row = 0
        self._until = self._cut = self._grow = 0.0  # of `time.monotonic`
        self._patience = SHORTEST
        self._changed = threading.Condition()

    def enter(self, stopped: threading.Event) -> float | None:
        """Wait for a place; returns when it was given, None where the client was stopped meanwhile."""
        with self._changed:
            while not stopped.is_set():
                pause = self._until - time.monotonic()
                if pause <= 0 and self._inside < self.allowed:
                    self._inside += 1
                    return time.monotonic()
                self._changed.wait(min(pause, 1.0) if pause > 0 else 1.0)
        return None

    def leave(self, *, taken: bool) -> None:
        """Give a place back; `taken`: the server did not refuse for being busy."""
        with self._changed:
            self._inside -= 1
            if taken:
                self._in_row = 0
                self._let_grow()
            self._changed.notify_all()

    def refused(self, began: float, wait: float) -> None:
        """The server is busy, and asks to wait so many seconds; `began`: when the request was sent."""
        with self._changed:
            now = time.monotonic()
            self._in_row += 1
            if self._in_row > 1:
                self._until = max(self._until, now + wait)
            if began >= self._cut:
                self.allowed = max(1, self._inside - 1, self.allowed // 2)
                self._cut, self._grow = now, now + self._patience
                self._patience = min(2 * self._patience, LONGEST)

    def wake(self) -> None:
        """Let those who wait look whether the client was stopped."""
        with self._changed:
            self._changed.notify_all()

    def _let_grow(self) -> None:
        now = time.monotonic()
        if self.allowed < self.most and now >= self._grow:
            self.allowed += 1
            self._patience = max(SHORTEST, self._patience / 1.5)
            self._grow = now + self._patience
