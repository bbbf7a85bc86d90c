"""`featcache blend`: the heads of several runs as one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.system.units import percent_text
from featcache.translation.language import gettext as _
from featcache_cli.chosen_run import add_name_flag, check_name, named_runs, with_name
from featcache_cli.commands.train_head import note_missing_test, note_saved, record
from featcache_cli.commands.train_head import show as show_run
from featcache_cli.console import out, print_result
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.runs.run import Run


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "blend",
        "average the heads of several runs into one, as validation says",
        "featcache blend exact-8-views-1 no-backbone-1\n"
        "featcache blend linear-last-cls-1 mlp-8-views-1 exact-8-views-1",
        run,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="runs of the same rows, by name or folder")
    most = "heads that are taken one after another, repeated ones included"
    add_flag(parser, "--most", most, 20, least=2)
    add_name_flag(parser)
    add_settings(parser, "abstention", "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    from featcache.runs.blend import blend_runs

    settings = settings_of(args)
    check_name(args)
    runs = named_runs(args.runs, Path(settings.paths.reports_dir))
    made = with_name(blend_runs(settings, runs, args.most), args)
    note_missing_test(made, quiet=args.quiet)
    print_result(args, record(made), lambda: show(made, runs))
    note_saved(made, args)
    return 0


def show(made: Run, runs: list[Run]) -> None:
    """How much each head counts, and the scores of the blend."""
    console, shares = out(), made.record.solver["shares"]
    console.print(_("share of each run in the mean of the logits, and its accuracy on validation:"))
    width = max(len(run.name) for run in runs)
    for run in sorted(runs, key=lambda run: -shares.get(run.name, 0.0)):
        accuracy = run.metric("validation", "accuracy", clean=True)
        console.print(
            f"  {run.name:{width}} {percent_text(shares.get(run.name, 0.0)):>7} {percent_text(accuracy):>7}"
        )
    console.print()
    show_run(made)
