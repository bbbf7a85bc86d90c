"""What a command decided itself, told to the user for the commands after it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from featcache.settings import CONFIG_FILE
from featcache.settings_file import flags_between
from featcache_cli.console import note

if TYPE_CHECKING:
    from featcache.settings import Settings
    from featcache.system.progress import OnProgress


def note_decided(args: argparse.Namespace, typed: Settings, used: Settings) -> None:
    """Print the flags that other commands need, where a command did not use the settings that were typed."""
    if flags := flags_between(typed, used):
        file = args.config or CONFIG_FILE
        note(f"the other commands need {flags}, too, or the same in {file}", quiet=args.quiet)


def notes(*, quiet: bool) -> OnProgress:
    """Prints the notes of what is done, and nothing else."""
    return lambda now: note(now.text, quiet=quiet) if now.stage == "note" else None
