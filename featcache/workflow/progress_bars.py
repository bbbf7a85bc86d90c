"""Progress of long work as bars in a notebook or on a terminal, for callers from Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.system.progress import Progress

STAGES = {"encode": "extract", "download": "download", "states": "states", "train": "train heads"}


class ProgressBars:
    """A callback for `report` and `on_progress`: draws bars of tqdm, and the notes between them.

    In a notebook they are widgets (text where ipywidgets is not installed). Elsewhere they are drawn on a
    terminal, and nowhere else.

    Args:
        shown: draw; by default in a notebook and where stderr is a terminal.
    """

    def __init__(self, *, shown: bool | None = None) -> None:
        self.shown = "ipykernel" in sys.modules or sys.stderr.isatty() if shown is None else shown
        self._bars: dict[str, Any] = {}

    def __call__(self, now: Progress) -> None:
        """Draw one event."""
        if not self.shown:
            return
        if now.stage == "note":
            from tqdm.auto import tqdm

            tqdm.write(now.text, file=sys.stderr)
        elif now.stage in STAGES and now.total:
            self._step(f"{STAGES[now.stage]} {now.split}".rstrip(), now.done, now.total)

    def _step(self, name: str, done: int, total: int) -> None:
        bar = self._bars.get(name)
        if bar is None:
            from tqdm.auto import tqdm

            bar = self._bars[name] = tqdm(total=total, desc=name)
        elif bar.n >= bar.total:
            return  # complete, and closed
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
