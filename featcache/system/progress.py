"""Progress of long work: one dataclass and one type of callback for the whole library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The state of long work, for the caller to display.

    Attributes:
        stage: what is being done now, for example `hash`, `load`, `encode`, `seal`; `note` has only `text`.
        split: the split it is done for; empty where there is none.
        done, total: in the unit of the stage: texts, rows or bytes.
        tokens: tokens encoded so far.
        text: a message for the user.
        share: of the machine's GEMM peak that encoding has reached, 0 to 1; None while it is not known.
        cost: of an endpoint so far; None where its price is not known, and for all else.
    """

    stage: str
    split: str = ""
    done: int = 0
    total: int = 0
    tokens: int = 0
    text: str = ""
    share: float | None = None
    cost: float | None = None


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """The callback that does nothing."""
