"""Progress of long work on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from featcache.system.units import seconds_text, short_count_text
from featcache_cli.console import err

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars

    from featcache.heads.fit import Epoch
    from featcache.system.progress import Progress

LINE_EVERY = 10.0  # seconds between lines off a terminal


class Meter:
    """A bar with count, rate and time left; use as a context manager.

    Args:
        quiet: draw nothing at all.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.console = err()
        self.quiet = quiet
        self.bars: Bars | None = None
        self._tasks: dict[str, int] = {}
        self._last_line = time.monotonic()
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self.bars = _bars(self.console)
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars:
            self.bars.stop()

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, style="dim", soft_wrap=True)

    def step(self, name: str, done: int, total: int, info: str = "") -> None:
        """Say that `done` of `total` are done in the task `name`."""
        if self.quiet:
            return
        self._began.setdefault(name, (time.monotonic(), done))
        if self.bars:
            if name not in self._tasks:
                self._tasks[name] = self.bars.add_task(name, total=total, info="", count="")
            count = f"{short_count_text(done)}/{short_count_text(total)}"
            self.bars.update(self._tasks[name], completed=done, total=total, info=info, count=count)  # type: ignore[arg-type]
        elif time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            left = self._time_left(name, done, total)
            self.note(f"{name} {done:,}/{total:,} {info}".rstrip() + left)

    def rate(self, name: str, done: int) -> float:
        """Units a second since the first step of the task."""
        began, first = self._began.setdefault(name, (time.monotonic(), done))
        elapsed = time.monotonic() - began
        return (done - first) / elapsed if elapsed > 0.2 else 0.0

    def _time_left(self, name: str, done: int, total: int) -> str:
        rate = self.rate(name, done)
        return f", {seconds_text((total - done) / rate)} left" if rate > 0 else ""


class ExtractionMeter(Meter):
    """Draws what `featcache.extraction.api.extract` reports."""

    def __call__(self, event: Progress) -> None:
        if event.stage == "note":
            self.note(event.text)
        elif event.stage == "load":
            self.note(f"loading {event.text}")
        elif event.stage == "encode":
            texts = self.rate(event.split, event.done)
            tokens = self.rate(f"{event.split} tokens", event.tokens)
            info = f"{short_count_text(texts)} texts/s {short_count_text(tokens)} tokens/s" if texts else ""
            info += f" {event.share:.0%} of peak" if texts and event.share else ""
            self.step(f"extract {event.split}", event.done, event.total, info)


def _bars(console: Console) -> Bars:
    """Task, bar, count, rates, time left on one line; on a narrow terminal the bar yields first."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[info]}", style="dim"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        console=console,
    )


class LiveMeter(Meter):
    """A bar with something that changes above it; `show` says what."""

    def __enter__(self) -> Self:
        from rich.live import Live

        self.live: Live | None = None
        if self.console.is_terminal and not self.quiet:
            self.bars = _bars(self.console)
            self.live = Live(self.bars, console=self.console, transient=True, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, above: Callable[[], RenderableType]) -> None:
        """Draw `above()` over the bar, where there is a terminal."""
        from rich.console import Group

        if self.live and self.bars:
            self.live.update(Group(above(), self.bars))


class TrainingMeter(Meter):
    """Draws the epochs of a head."""

    def __init__(self, name: str, epochs: int, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.name, self.epochs = name, epochs

    def __call__(self, line: Epoch) -> None:
        info = f"loss {line.train_loss:.4f} validation {line.validation_accuracy:.4f}"
        self.step(f"train {self.name}", line.epoch, self.epochs, info)
