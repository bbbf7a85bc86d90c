"""Progress of long work on stderr: a bar while a stage runs on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from featcache.system.hub.listener import listening
from featcache.system.units import cost_text, seconds_text, short_count_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted, pgettext
from featcache.translation.sentences import translated
from featcache_cli.console import err

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from featcache.system.progress import Progress

FIRST_BAR = 2.0  # seconds before a stage has a bar
FIRST_LINE = 2.0  # seconds before the first line off a terminal
LINE_EVERY = 10.0  # seconds between lines
DOWNLOAD = {"download": "download"}
EXTRACTION = {"encode": "extract", **DOWNLOAD}  # stages of an extraction that have a bar

STAGES = (
    noted("extract", "stage"),
    noted("download", "stage"),
    noted("train", "stage"),
    noted("states", "stage"),
    noted("count n-grams", "stage"),
    noted("cross-validation of the contrastive step", "stage"),
    noted("cross-validation", "stage"),
    noted("contrastive step", "stage"),
    noted("folds", "stage"),
    noted("trainings", "stage"),
    noted("train top blocks", "stage"),
    noted("predict", "stage"),
    noted("reading texts", "stage"),
    noted("comparing texts", "stage"),
    noted("out-of-fold heads", "stage"),
    noted("fitting a head", "stage"),
    noted("scoring", "stage"),
    noted("map by", "stage"),
    noted("drawing", "stage"),
    noted("epochs", "stage"),
    noted("words", "stage"),
    noted("penalties", "stage"),
    noted("view scales", "stage"),
    noted("solve", "stage"),
)  # how names of bars begin; then a split or a head may follow


class Meter:
    """Draws `Progress` and counts of work as bars; use as a context manager.

    A bar is there while its stage runs, from its third second on; afterwards the line is free again. A stage
    without a count, or of one step, has no numbers, and ends when another one begins.

    Args:
        quiet: draw nothing at all.
        names: stage -> name of its bar; a stage that is not in it has none. By default each stage has a bar
            of its own name.
    """

    def __init__(self, *, quiet: bool, names: Mapping[str, str] | None = None) -> None:
        self.console = err()
        self.quiet = quiet
        self.names = names
        self.bars: Bars | None = None
        self.noted: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic() - max(0.0, LINE_EVERY - FIRST_LINE)
        self._began: dict[str, tuple[float, int]] = {}
        self._lines: set[str] = set()  # tasks that have a line off a terminal

    def __enter__(self) -> Self:
        self._hubs = listening(self)
        self._hubs.__enter__()
        if self.console.is_terminal and not self.quiet:
            self.bars = _bars(self.console)
            self.bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bars:
            self.bars.stop()
        self._hubs.__exit__(*error)

    def __call__(self, event: Progress) -> None:
        """Draw one event: a note, or the bar of its stage and split with its rates."""
        if event.stage in ("note", "load"):
            self.note(event.text if event.stage == "note" else f"loading {event.text}")
            return
        name = event.stage if self.names is None else self.names.get(event.stage)
        if name is not None:
            name = f"{name} {event.split}".rstrip()
            self.step(name, event.done, event.total, self._rates(name, event))

    def note(self, text: str) -> None:
        self.noted.add(text)
        if not self.quiet:
            self.console.print(translated(text), style="dim", soft_wrap=True)

    def step(self, name: str, done: int, total: int, info: str = "") -> None:
        """Draw `done` of `total` in the task `name`; a total of 0 is not known."""
        if self.quiet:
            return
        self._began.setdefault(name, (time.monotonic(), done))
        counted = total != 1 and bool(total or done)
        if self.bars:
            self._draw(name, done, total if counted else 0, info)
        elif self._line_is_due(name, done == total and counted):
            self._last_line = time.monotonic()
            self._lines.add(name)
            count = f" {done:,}/{total:,}" if total else f" {done:,}"
            said = f"{_stage_text(name)}{count if counted else ''} {info}".rstrip()
            self.note(said + (self._time_left(name, done, total) if done < total else ""))

    def _draw(self, name: str, done: int, total: int, info: str) -> None:
        assert self.bars
        if name not in self._tasks:
            for task in list(self.bars.tasks):
                if task.total is None:
                    self.bars.remove_task(self._tasks.pop(task.fields["name"]))
            shown = _stage_text(name)
            self._tasks[name] = self.bars.add_task(shown, total=None, info="", count="", name=name)
        count = f"{short_count_text(done)}/{short_count_text(total)}" if total else ""
        if done and not total:
            count = short_count_text(done)
        self.bars.update(self._tasks[name], total=total or None, completed=done, info=info, count=count)  # type: ignore[arg-type]

    def _line_is_due(self, name: str, ended: bool) -> bool:
        """A line now and then, and the last one of a task that has lines."""
        return time.monotonic() - self._last_line >= LINE_EVERY or (ended and name in self._lines)

    def rate(self, name: str, done: int) -> float:
        """Units a second since the first step of the task."""
        began, first = self._began.setdefault(name, (time.monotonic(), done))
        elapsed = time.monotonic() - began
        return (done - first) / elapsed if elapsed > 0.2 else 0.0

    def _rates(self, name: str, event: Progress) -> str:
        """Texts and tokens a second, and the share of the peak, of a stage that counts tokens."""
        texts, tokens = self.rate(name, event.done), self.rate(f"{name} tokens", event.tokens)
        if not texts or not tokens:
            return ""
        share = _(" {share:.0%} of peak", share=event.share) if event.share else ""
        cost = _(" cost {cost}", cost=cost_text(event.cost)) if event.cost is not None else ""
        rates = "{texts} texts/s {tokens} tokens/s{share}"
        return _(rates, texts=short_count_text(texts), tokens=short_count_text(tokens), share=share + cost)

    def _time_left(self, name: str, done: int, total: int) -> str:
        rate = self.rate(name, done)
        if rate <= 0 or not total:
            return ""
        return _(", {seconds} left", seconds=seconds_text((total - done) / rate))


def _stage_text(name: str) -> str:
    """The name of a bar in the language that is spoken; the head in it stays."""
    parts = []
    for part in name.split(", "):
        stage = next((one for one in STAGES if f"{part} ".startswith(f"{one} ")), "")
        rest = part.removeprefix(stage)
        rest = f" {_(rest.strip())}" if rest.strip() in ("train", "validation", "test") else rest
        parts.append(pgettext("stage", stage) + rest if stage else part)
    return listed(parts)


class LiveMeter(Meter):
    """A bar with something that changes above it, drawn by `show`."""

    def __enter__(self) -> Self:
        from rich.live import Live

        self.live: Live | None = None
        if self.console.is_terminal and not self.quiet:
            self.bars = _bars(self.console)
            self.live = Live(self.bars, console=self.console, transient=True, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, above: Callable[[], RenderableType]) -> None:
        """Draw `above()` over the bar, where there is a terminal."""
        from rich.console import Group

        if self.live and self.bars:
            self.live.update(Group(above(), self.bars))


def _bars(console: Console) -> Bars:
    """Task, bar, count, rates, time left on one line; on a narrow terminal the bar yields first.

    Tasks that have just begun, or have ended, are not drawn.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    class RunningBars(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            running = [task for task in self.tasks if not task.finished]
            yield self.make_tasks_table([task for task in running if (task.elapsed or 0.0) >= FIRST_BAR])

    return RunningBars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[info]}", style="dim"),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
    )
