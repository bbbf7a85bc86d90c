"""`--help` in the language that is spoken: texts are translated, and broken into lines, when shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich_argparse import RawDescriptionRichHelpFormatter

from featcache_cli.help import EXAMPLE, USAGE, help_text, in_help
from featcache_cli.line_breaks import broken

if TYPE_CHECKING:
    from rich.containers import Lines
    from rich.text import Text


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Of every parser."""

    def start_section(self, heading: str | None) -> None:
        super().start_section(in_help(heading) if heading else heading)

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None = None
    ) -> None:
        first = in_help(USAGE)
        wider = cell_len(first) - len(first)  # argparse counts characters
        self._width -= wider
        super().add_usage(usage, actions, groups, first if prefix is None else prefix)
        self._width += wider

    def add_text(self, text: Any) -> None:
        if isinstance(text, str) and text != argparse.SUPPRESS:
            example = text.startswith(f"{EXAMPLE}\n")
            text = in_help(EXAMPLE) + text.removeprefix(EXAMPLE) if example else in_help(text)
        super().add_text(text)

    def _get_help_string(self, action: argparse.Action) -> str:
        return help_text(action).replace("%", "%%")

    def _rich_split_lines(self, text: Text, width: int) -> Lines:
        return broken(self._rich_whitespace_sub(text), width).wrap(self.console, width)
