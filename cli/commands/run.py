"""`featcache run SOURCE`: extract all splits, train heads of rising depth and their baselines, compare."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featcache.data.test_split import with_test_split
from featcache.errors import UsageError
from featcache.fingerprint import REGRESSION
from featcache.settings import CONFIG_FILE
from featcache.settings_file import to_toml
from featcache.system.durable import write_file
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted
from featcache_cli.commands import extract, train_head
from featcache_cli.console import note, out, print_json
from featcache_cli.decided import note_decided, notes
from featcache_cli.number_runs import show_number_runs
from featcache_cli.options import Commands, add_command, add_settings, settings_of
from featcache_cli.run_table import show as show_runs

if TYPE_CHECKING:
    from rich.table import Table

    from featcache.extraction.extracted import Extracted
    from featcache.runs.compare import Comparisons
    from featcache.settings import Settings
    from featcache.workflow.run import AllRuns

NEXT = {
    'featcache predict "TEXT"': noted("the labels of new texts, by the best run"),
    "featcache report": noted("a page about the runs and the data, to show"),
    "featcache curve": noted("what more labels would bring"),
}  # commands that work as typed after a run


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "extract all splits, train heads and their baselines, compare",
        "featcache run reviews.csv\nfeatcache run lansinuote/ChnSentiCorp --model bert-base-chinese",
        run,
        continues=True,
    )
    about = "file, folder, URL or hub id, as --dataset; featcache.toml is then written for the other commands"
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=about)
    add_settings(parser, "backbone", "data", "features", "endpoint", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    from featcache.workflow.run import read_files

    if args.source is not None and (args.dataset is not None or args.data_files is not None):
        raise UsageError("SOURCE and --dataset or --data-files cannot be given together")
    typed = settings_of(args, {} if args.source is None else {"dataset": args.source})
    data, decided = with_test_split(typed.data)
    if decided is not None:
        note(decided, quiet=args.quiet)
    settings = replace(typed, data=data)
    read_files(settings)
    made = run_all(
        settings,
        quiet=args.quiet,
        show=not args.json,
        named=args.model is not None,
        on_extracted=lambda used: _write_settings(args, typed, used),
    )
    if args.json:
        print_json(document(made))
    return 0


def _write_settings(args: argparse.Namespace, typed: Settings, used: Settings) -> None:
    """Write the settings of a SOURCE down, which the other commands read; not before it could be read."""
    file = Path(args.config or CONFIG_FILE)
    if args.source is not None and not file.exists():
        write_file(file, to_toml(used).encode("utf-8"))
        note(f"wrote {file}: the other commands work here as typed", quiet=args.quiet)
    else:
        note_decided(args, typed, used)


def document(made: AllRuns) -> dict[str, Any]:
    """What `--json` prints of `run_all`."""
    return {
        "splits": [extract.record(result) for result in made.extracted],
        "runs": [train_head.record(run) for run in made.runs],
        "checks": list(made.checks),
        "verdict": made.verdict,
    }


def run_all(
    settings: Settings,
    *,
    quiet: bool,
    show: bool,
    named: bool = True,
    on_extracted: Callable[[Settings], None] = lambda _: None,
) -> AllRuns:
    """Extract, train, compare and check the data; prints the tables and the verdict on stdout if `show`.

    Args:
        named: somebody named the model.
        on_extracted: called once the features are in the cache, with the settings for other commands.
    """
    from featcache.runs.words import CountedWords
    from featcache.workflow.embedded import with_embedded_model
    from featcache.workflow.run import conclude, extract_with_depth, heads_to_train

    report = notes(quiet=quiet)

    def extract_all(wanted: Settings) -> tuple[Settings, list[Extracted]]:
        return extract_with_depth(
            wanted, lambda views: extract.extract_splits(views, extract.SPLITS, quiet=quiet), report
        )

    used, (settings, results) = with_embedded_model(settings, extract_all, named=named, on_progress=report)
    on_extracted(used)
    if show:
        extract.show(results, quiet=quiet)
    words = CountedWords()  # counted and fitted once for both heads that read them
    runs = [
        train_head.train(settings, kind, view, quiet=quiet, words=words)
        for kind, view in heads_to_train(settings)
    ]
    made = conclude(settings, results, runs)
    if show and settings.data.task == REGRESSION:
        show_number_runs(runs)
    elif show:
        show_runs(runs, made.best, cast("Comparisons | None", made.compared), words=False)
    if show:
        _conclude(made, quiet=quiet)
    return made


def _conclude(made: AllRuns, *, quiet: bool) -> None:
    """What each data check found, the verdict, and the next commands."""
    from rich.text import Text

    console = out()
    good = [_(check.name) for check in made.checks if check.state == "good"]
    console.print("\n" + _("data checks"), style="bold")
    lines = _grid()
    if good:
        lines.add_row(Text(f"  {_('good')}", style="green"), listed(good))
    for check in made.checks:
        if check.state != "good":
            state = Text(f"  {_(check.state)}", style="bold red" if check.state == "bad" else "yellow")
            lines.add_row(
                state, Text(_("{sentence}: ", sentence=check.sentence)) + Text(check.hint, style="dim")
            )
    console.print(lines)
    if made.verdict:
        console.print("\n" + _("verdict"), style="bold")
        lines = _grid()
        for sentence in made.verdict.sentences:
            lines.add_row("  -", sentence)
        console.print(lines)
    note(_("next:"), quiet=quiet)
    for command, what in NEXT.items():
        note(f"  {command:26}  {_(what)}", quiet=quiet)


def _grid() -> Table:
    """Two columns; the second is folded where it is too wide."""
    from rich.table import Table

    made = Table.grid(padding=(0, 1))
    made.add_column()
    made.add_column(overflow="fold")
    return made
