"""`featcache runs ls | show | rename | rm`: the trained runs on this disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.system.units import percent_text, size_text
from featcache.translation.language import gettext as _
from featcache_cli.chosen_run import named_runs
from featcache_cli.commands import train_head
from featcache_cli.console import err, note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_settings, settings_of
from featcache_cli.run_columns import RunColumn, fitting

if TYPE_CHECKING:
    from featcache.runs.run import Run

ACTIONS = {
    "ls": ("list the runs, the newest first", "featcache runs ls"),
    "show": ("the scores and settings of one run", "featcache runs show linear-last-mean-1"),
    "rename": ("give a run another name", "featcache runs rename linear-last-mean-1 baseline"),
    "rm": ("remove runs with their heads and predictions", "featcache runs rm linear-last-mean-1 --yes"),
}


def add(commands: Commands) -> None:
    parser = add_command(commands, "runs", "list, show, rename or remove runs", "featcache runs ls")
    actions = parser.add_subparsers(metavar="{" + ",".join(ACTIONS) + "}", required=True)
    for name, (what, example) in ACTIONS.items():
        does = {"ls": ls, "show": show, "rename": rename, "rm": rm}[name]
        action = add_command(actions, name, what, example, does)
        if name == "rm":
            action.add_argument("runs", nargs="+", metavar="RUN", help="names or folders of runs")
            action.add_argument("--yes", action="store_true", help="do not ask")
        elif name != "ls":
            action.add_argument("run_name", metavar="RUN", help="name or folder of a run")
        if name == "rename":
            action.add_argument("name", metavar="NAME", help="its new name")
        add_settings(action, "paths")


def ls(args: argparse.Namespace) -> int:
    runs = list(reversed(named_runs([], _reports(args))))

    def show_all() -> None:
        about = [run.record for run in runs]
        columns = [
            RunColumn("run", [run.name for run in runs], right=False),
            RunColumn("head", [one.head for one in about], 3, right=False),
            RunColumn("view", [one.short_view for one in about], 2, right=False),
            RunColumn("val.", [_score(run, "validation") for run in runs]),
            RunColumn("test", [_score(run, "test") for run in runs]),
            RunColumn("made", [one.created[:16].replace("T", " ") for one in about], 1),
            RunColumn("size", [size_text(_size(run.folder)) for run in runs], 1),
        ]
        columns = fitting(columns, out().width)
        shown = table(*(column.title for column in columns))
        for cells in zip(*(column.cells for column in columns), strict=True):
            shown.add_row(*cells)
        out().print(shown)
        out().print(_("val., test: accuracy in %; of numbers the RMSE in their unit"), style="dim")

    document = [train_head.record(run) | {"created": run.record.created} for run in runs]
    print_result(args, {"runs": document}, show_all)
    return 0


def show(args: argparse.Namespace) -> int:
    from featcache.runs.run import load_run

    run = load_run(_reports(args), args.run_name)

    def show_run() -> None:
        train_head.show(run)
        about = run.record
        settings = {"seed": about.seed, **about.settings, "model": about.backbone.model}
        settings |= {"dataset": about.data.dataset if about.data and not about.data.data_files else None}
        said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
        made = _("made {date}; {settings}", date=about.created[:16].replace("T", " "), settings=said)
        out().print(made, soft_wrap=True, style="dim")
        out().print(str(run.folder), soft_wrap=True, style="dim")

    print_result(args, train_head.record(run), show_run)
    return 0


def rename(args: argparse.Namespace) -> int:
    from featcache.runs.run import load_run, rename_run

    made = rename_run(load_run(_reports(args), args.run_name), args.name)
    note(f"{args.run_name} is now {made.name}", quiet=args.quiet or args.json)
    print_result(args, {"run": made.name, "path": str(made.folder)}, lambda: None)
    return 0


def rm(args: argparse.Namespace) -> int:
    from featcache.runs.run import load_run, remove_run

    reports = _reports(args)
    runs = {(found := load_run(reports, name)).folder.resolve(): found for name in args.runs}
    names = ", ".join(run.name for run in runs.values())
    if not args.yes and not _agreed(names):
        note("nothing was removed", quiet=args.quiet)
        return 0
    removed: list[dict[str, Any]] = []
    for run in runs.values():
        removed.append({"run": run.name, "path": str(run.folder), "bytes": _size(run.folder)})
        remove_run(run)
    note(f"removed {names}", quiet=args.quiet or args.json)
    print_result(args, {"removed": removed}, lambda: None)
    return 0


def _agreed(names: str) -> bool:
    """Ask on the terminal.

    Raises:
        UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"remove {names}? There is no terminal to ask on", hint="say so with --yes")
    err().print(_("remove {names}? [y/N] ", names=names), end="", soft_wrap=True)
    return input().strip().lower() in ("y", "yes")


def _reports(args: argparse.Namespace) -> Path:
    return Path(settings_of(args).paths.reports_dir)


def _score(run: Run, split: str) -> str:
    if run.record.numbers:
        found = run.metric(split, "rmse")
        return f"{found:.4g}" if found == found else "-"
    return percent_text(run.metric(split, "accuracy"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
