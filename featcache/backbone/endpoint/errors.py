"""What goes wrong with an endpoint: errors for the user, and what may pass if a request is sent again."""

from __future__ import annotations

from featcache.errors import BackboneError

KEPT = "what is finished is kept, and the same command continues from it"


class CostReached(BackboneError):
    """`--max-cost` would be exceeded; what is finished is kept."""


class HalfAnswer(Exception):
    """The body ends in the middle; the same request may succeed."""


class BadAnswer(BackboneError):
    """A server answers, but not with the vectors of the texts."""


class Passing(Exception):
    """A request failed in a way that may pass.

    Args:
        refuses: nobody takes connections at this address.
    """

    def __init__(self, what: str, *, refuses: bool = False) -> None:
        super().__init__(what)
        self.what, self.refuses = what, refuses

    def error(self, tries: int) -> BackboneError:
        """For the user, after so many tries."""
        tried = f" (tried {tries} times)" if tries > 1 else ""
        hint = "is the server running, and the address right?" if self.refuses else f"once it works: {KEPT}"
        return BackboneError(f"{self.what}{tried}", hint=hint)


class ServerBusy(Exception):
    """The server takes no more requests at the moment; `wait`: seconds that it asks to wait, or None."""

    def __init__(self, said: str, wait: float | None) -> None:
        super().__init__(said)
        self.said, self.wait = said, wait

    def error(self, address: str, wait: float) -> BackboneError:
        """For the user, where the wait is too long."""
        return BackboneError(
            f"{address} takes no more requests (429): {self.said}; it asks to wait {wait:,.0f} s",
            hint=f"use fewer --connections, or wait; {KEPT}",
        )
