"""`featcache extract`: the features of one or more splits, into the cache."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cluster.cluster import Engine
from featcache.errors import UsageError
from featcache.settings import CONFIG_FILE
from featcache.system.text import readable
from featcache.system.units import seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.decided import note_decided, notes
from featcache_cli.engine import add_engine, engine_of
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import EXTRACTION, Meter

if TYPE_CHECKING:
    from featcache.extraction.extracted import Extracted
    from featcache.settings import Settings

BEGIN = """three ways to begin:
  featcache run reviews.csv                 one file with texts and labels: everything
  featcache demo                            reviews and an encoder without any hub
  featcache init --model M --dataset D      then: featcache extract --all-splits"""
SHOWN_LABELS = 12
SPLITS = ("train", "validation", "test")
SHOWN_UNKNOWN = 0.0005  # share of unknown tokens from which on it is said: 0.1 %


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "extract",
        "run the backbone once over the splits and cache the features",
        "featcache extract --split train --split test\n"
        "featcache extract --all-splits --views last/cls,last/mean,-4/mean",
        run,
        continues=True,
    )
    split_help = "train, validation or test; may be repeated"
    parser.add_argument("--split", action="append", choices=SPLITS, metavar="SPLIT", help=split_help)
    parser.add_argument("--all-splits", action="store_true", help="train, validation and test")
    parser.add_argument("--force", action="store_true", help="encode again what is cached already")
    wait = "wait for another process that writes the file, instead of failing at once; --workers join it"
    add_flag(parser, "--wait", wait, 0.0, metavar="SECONDS")
    workers = "processes at work: a number, or auto: one for each GPU, or for every few cores"
    add_flag(parser, "--workers", f"{workers} (default: 1; with --engine ray: auto)", metavar="N")
    add_engine(parser)
    add_settings(parser, "backbone", "data", "features", "endpoint", "paths", "")


def run(args: argparse.Namespace) -> int:
    if bool(args.split) == args.all_splits:
        if not args.split and _nothing_named(args):
            raise UsageError("nothing says which texts to extract", hint=BEGIN)
        what = "--split and --all-splits cannot be given together" if args.split else "no splits are named"
        raise UsageError(what, hint="--split train [--split test ...] or --all-splits")
    splits = SPLITS if args.all_splits else list(dict.fromkeys(args.split))
    results = _extract(args, splits)
    document = {"splits": [record(result) for result in results]}
    print_result(args, document, lambda: show(results, quiet=args.quiet))
    return 0


def _extract(args: argparse.Namespace, splits: Sequence[str]) -> list[Extracted]:
    """With the embedded encoder where the default model is not to be had, as `featcache run` does."""
    from featcache.workflow.embedded import with_embedded_model

    typed, engine = settings_of(args), engine_of(args)

    def work(settings: Settings) -> list[Extracted]:
        return extract_splits(
            settings, splits, quiet=args.quiet, force=args.force, wait=args.wait, engine=engine
        )

    used, results = with_embedded_model(
        typed, work, named=args.model is not None, on_progress=notes(quiet=args.quiet)
    )
    note_decided(args, typed, used)
    return results


def _nothing_named(args: argparse.Namespace) -> bool:
    """No data on the command line, and no settings file."""
    named = args.config or args.dataset or args.data_files
    return not named and not Path(CONFIG_FILE).exists()


def extract_splits(
    settings: Settings,
    splits: Sequence[str],
    *,
    quiet: bool,
    force: bool = False,
    wait: float = 0.0,
    engine: Engine | None = None,
) -> list[Extracted]:
    """Extract with a progress bar; notes on stderr say where the result is not what was asked for.

    Args:
        engine: by default one process on this machine.
    """
    from featcache.cluster.extract import extract_by

    with Meter(quiet=quiet, names=EXTRACTION) as meter:
        results = extract_by(
            engine or Engine(), settings, splits, None if quiet else meter, force=force, wait=wait
        )
    for text in dict.fromkeys(text for result in results for text in result.notes):
        if text not in meter.noted:  # said before the work began
            note(text, quiet=quiet)
    return results


def record(result: Extracted) -> dict[str, Any]:
    """One split as `--json` shows it."""
    return {
        "split": result.split,
        "rows": result.rows,
        "seconds": round(result.seconds, 3),
        "loading_seconds": round(result.loading_seconds, 3),
        "cached": result.cached,
        "encoded": result.encoded,
        "truncated": result.truncated,
        "tokens": result.tokens,
        "unknown_tokens": result.unknown_tokens,
        "views": list(result.views),
        "fingerprint": result.fingerprint,
        "path": str(result.path),
        "labels": dict(result.labels),
    }


def show(results: Sequence[Extracted], *, quiet: bool = False) -> None:
    """A table of the splits, how many texts were truncated, and what the vocabulary does not have."""
    from featcache.backbone.tokens.unknown_tokens import unknown_text

    shown = table(*columns("split", ">rows", ">encoded", ">tokens", ">seconds", "file"))
    for result in results:
        shown.add_row(
            _(result.split),
            f"{result.rows:,}",
            _("cached") if result.cached else f"{result.encoded:,}",
            f"{result.tokens:,}",
            seconds_text(result.seconds - result.loading_seconds),
            result.path.name,
        )
    out().print(shown)
    if loading := sum(result.loading_seconds for result in results):
        apart = "loading: {seconds} for libraries and the model, not among the seconds above"
        out().print(_(apart, seconds=seconds_text(loading)), soft_wrap=True)
    for result in results:
        counts = _counts(result.labels)
        if result.numbers is not None:
            low, high = result.numbers
            counts = _("numbers from {low:g} to {high:g}", low=low, high=high)
        text = _("labels of {split}: {counts}", split=_(result.split), counts=counts)
        out().print(text, soft_wrap=True, markup=False, highlight=False)
    for result in results:
        if result.truncated:
            longer = (
                "{split}: {truncated:,} of {rows:,} texts ({share:.1%}) were longer than {longest} tokens "
                "and were truncated"
            )
            about = {"rows": result.rows, "truncated": result.truncated, "longest": result.max_length}
            share = result.truncated / result.rows
            note(_(longer, split=_(result.split), share=share, **about), quiet=quiet)
        if (result.unknown_tokens or 0.0) >= SHOWN_UNKNOWN:
            note(unknown_text(_(result.split), result.unknown_tokens or 0.0), quiet=quiet)


def _counts(labels: Mapping[str, int]) -> str:
    """The most frequent labels with their rows, e.g. `1 (4,801), 0 (4,799)`."""
    ordered = sorted(labels.items(), key=lambda item: -item[1])
    shown = listed(f"{readable(name)} ({rows:,})" for name, rows in ordered[:SHOWN_LABELS])
    if len(ordered) > SHOWN_LABELS:
        return _("{shown}, and {count} more labels", shown=shown, count=len(ordered) - SHOWN_LABELS)
    return shown or _("no labels")
