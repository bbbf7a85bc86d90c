"""Where things are printed: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    from featcache.errors import FeatcacheError


def out() -> Console:
    """Results for people, on stdout; rich leaves colour out off a terminal and under NO_COLOR."""
    return _console()


def err() -> Console:
    """Progress, notes and errors, on stderr."""
    return _console(stderr=True)


def _console(**where: Any) -> Console:
    """A console that prints texts as they are: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Whoever read our output has left: nobody is told, nothing is wrong."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return Plain(highlight=False, markup=False, emoji=False, **where)


def print_json(document: Any) -> None:
    """One JSON document on stdout; texts stay readable, whatever stdout's encoding is."""
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
    sys.stdout.buffer.flush()


def print_error(error: FeatcacheError) -> None:
    """What was wrong in bold, what to do below it."""
    console = err()
    console.print("error: ", end="", style="bold red")
    console.print(error.what, soft_wrap=True, style="bold")
    for line in (error.hint or "").splitlines():
        console.print("       " + line, soft_wrap=True)


def note(text: str, *, quiet: bool = False) -> None:
    """One line to stderr."""
    if not quiet:
        err().print(text, soft_wrap=True, style="dim")


def table(columns: Sequence[tuple[str, str]]) -> Table:
    """A plain table of (header, justification) columns; names fold, numbers never do."""
    from rich.table import Table

    made = Table(box=_rule_below_head(), padding=0, pad_edge=False, header_style="bold")
    for header, justify in columns:
        numeric = justify == "right"
        made.add_column(header, justify=justify, no_wrap=numeric, overflow="fold")  # type: ignore[arg-type]
    return made


def _rule_below_head() -> Box:
    """Columns one blank apart, a line under the head, nothing else."""
    from rich.box import Box

    return Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
