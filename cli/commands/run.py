"""`featcache run`: extract all splits, train head and baseline on every view, compare."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featcache_cli.commands import compare, extract, train_head
from featcache_cli.console import print_json
from featcache_cli.options import Commands, add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.extraction.job import Extracted
    from featcache.runs.run import Run
    from featcache.settings import Settings


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "extract all splits, train the linear head and the baseline, compare",
        "featcache run --model bert-base-chinese --dataset lansinuote/ChnSentiCorp",
        run,
        continues=True,
    )
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    results, runs = run_all(settings_of(args), quiet=args.quiet, show=not args.json)
    if args.json:
        print_json(document(results, runs))
    return 0


def document(results: list[Extracted], runs: list[Run]) -> dict[str, Any]:
    """What `--json` prints of `run_all`."""
    return {
        "splits": [extract.record(result) for result in results],
        "runs": [train_head.record(run) for run in runs],
    }


def run_all(settings: Settings, *, quiet: bool, show: bool) -> tuple[list[Extracted], list[Run]]:
    """Extract, train and compare; prints the tables on stdout if `show`."""
    from featcache.runs.run import best_run

    results = extract.extract_splits(settings, extract.SPLITS, quiet=quiet)
    if show:
        extract.show(results, quiet=quiet)
    runs = [
        train_head.train(settings, kind, view, quiet=quiet)
        for view in settings.features.views
        for kind in ("linear", "logistic")
    ]
    if show:
        compare.show(runs, best_run(runs))
    return results, runs
