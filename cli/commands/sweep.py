"""`featcache sweep`: many linear heads at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.system.units import percent_text, seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed
from featcache_cli.chosen_run import add_name_flag, check_name, with_name
from featcache_cli.commands.train_head import note_missing_test, note_saved, record
from featcache_cli.commands.train_head import show as show_run
from featcache_cli.console import columns, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import LiveMeter

if TYPE_CHECKING:
    from rich.table import Table

    from featcache.heads.fit import Epoch, Member
    from featcache.runs.sweep import Grid, Sweep
    from featcache.settings import Settings

SHOWN = 8  # trials in the table at the end
LEADERS = 5  # heads in the table while they train
GRID = ("lr", "weight_decay", "label_smoothing", "class_weight")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        "train a grid of heads at once, keep the best by validation",
        "featcache sweep --lr 1e-4..1e-1 --weight-decay 0,0.01 --seeds 5\n"
        "featcache sweep --view last/cls,last/mean,-4/mean --lr 1e-3,1e-2\n"
        "featcache sweep --view depth,lexical --subsets greedy --blend 8",
        run,
    )
    group = parser.add_argument_group("grid", "lists (0,0.01), or ranges (1e-4..1e-1, log-spaced; :N for N)")
    add_flag(group, "--lr", "AdamW learning rates", "1e-4..1e-1", metavar="X,...")
    add_flag(group, "--weight-decay", "AdamW weight decays", "0,0.01", metavar="X,...")
    add_flag(group, "--label-smoothing", "label smoothings", "0", metavar="X,...")
    add_flag(group, "--class-weight", "none, balanced, or both", "none", metavar="A,...")
    views = "cached views (default: all of --views); lexical adds the words of the texts to the best head"
    add_flag(group, "--view", views, metavar="A,...")
    subsets = (
        "each: heads read one view; greedy: views are added while validation gets better; all: every subset"
    )
    add_flag(group, "--subsets", subsets, "each", choices=("each", "greedy", "all"))
    add_flag(group, "--seeds", "random beginnings of each setting; 1 begins at zero", 1, least=1)
    blend = "average up to N of the heads, of any views, into one where validation is better for it"
    add_flag(group, "--blend", blend, 1, least=1)
    add_name_flag(parser)
    add_settings(parser, "head", "abstention", "backbone", "data", "features", "paths", "", without=GRID)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_name(args)
    made = train(settings, _grid(args, settings), quiet=args.quiet)
    made = replace(made, best=with_name(made.best, args))
    print_result(args, document(made), lambda: show(made))
    note_saved(made.best, args)
    return 0


def _grid(args: argparse.Namespace, settings: Settings) -> Grid:
    from featcache.runs.sweep import Grid, parse_values

    weights = tuple(dict.fromkeys(args.class_weight.split(",")))
    if not set(weights) <= {"none", "balanced"}:
        raise UsageError(f"--class-weight {args.class_weight}: none, balanced, or both")
    views = settings.features.views if args.view is None else [part.strip() for part in args.view.split(",")]
    smoothing = parse_values(args.label_smoothing)
    if max(smoothing) >= 1:
        raise UsageError("--label-smoothing: numbers from 0 to below 1 are needed")
    return Grid(
        lr=parse_values(args.lr, least=1e-12),
        weight_decay=parse_values(args.weight_decay),
        label_smoothing=smoothing,
        class_weight=weights,
        views=tuple(dict.fromkeys(views)),
        seeds=args.seeds,
        blend=args.blend,
        subsets=args.subsets,
    )


def train(settings: Settings, grid: Grid, *, quiet: bool) -> Sweep:
    """Sweep with a bar and, on a terminal, a table of the heads that lead."""
    from featcache.runs.sweep import sweep

    with LiveMeter(quiet=quiet) as meter:

        def report(number: int, members: Sequence[Member], lines: list[Epoch]) -> None:
            leader = max(range(len(lines)), key=lambda n: lines[n].validation_accuracy)
            best, member = lines[leader], members[leader]
            info = f"leads {percent_text(best.validation_accuracy)} {member.view} lr {member.lr:g}"
            meter.step(f"sweep {len(members)} heads", number, settings.head.epochs, info)
            meter.show(lambda: _leaders(members, lines))

        made = sweep(settings, grid, progress=report)
    note_missing_test(made.best, quiet=quiet)
    return made


def _leaders(members: Sequence[Member], lines: list[Epoch]) -> Table:
    """The heads that lead by validation now."""
    shown = table(*columns("view", ">lr", ">decay", ">valid.", ">loss"))
    order = sorted(range(len(lines)), key=lambda n: (-lines[n].validation_accuracy, lines[n].validation_loss))
    for number in order[:LEADERS]:
        member, line = members[number], lines[number]
        shown.add_row(
            member.view, f"{member.lr:.3g}", f"{member.weight_decay:g}",
            percent_text(line.validation_accuracy), f"{line.validation_loss:.4f}",
        )  # fmt: skip
    return shown


def document(made: Sweep) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "heads": len(made.trials),
        "seconds": made.seconds,
        "trials": made.trials,
        "best_by_view": made.best_by("view"),
        "best": record(made.best),
    }


def _choice(made: Sweep) -> str:
    clean = made.best.record.clean
    leaks = clean is not None and "validation" in clean.metrics
    return _("the clean rows of validation") if leaks else _("validation")


def show(made: Sweep) -> None:
    """The best trials by validation, the best of each view, and the one that was kept."""
    console = out()
    first, seconds = "{heads} heads in {seconds}, best first by {rows}", seconds_text(made.seconds)
    console.print(_(first, heads=len(made.trials), seconds=seconds, rows=_choice(made)))
    settings = columns("view", ">lr", ">decay", ">smooth", "weights", ">seed")
    shown = table(*settings, *columns(">ep.", ">valid.", ">loss"))
    for number, trial in enumerate(made.trials[:SHOWN]):
        shown.add_row(
            trial.view, f"{trial.lr:.3g}", f"{trial.weight_decay:g}", f"{trial.label_smoothing:g}",
            trial.class_weight, "-" if trial.seed is None else str(trial.seed), str(trial.best_epoch),
            percent_text(trial.validation_accuracy),
            f"{trial.validation_loss:.4f}", style="bold green" if number == 0 else None,
        )  # fmt: skip
    console.print(shown)
    views = made.best_by("view")
    if len(views) > 1:
        scores = {view: percent_text(best.validation_accuracy) for view, best in views.items()}
        ranking = listed(f"{view} {score}" for view, score in scores.items())
        best = _("views by their best validation accuracy: {ranking}", ranking=ranking)
        console.print(best, soft_wrap=True)
    solver = made.best.record.solver
    if heads := solver.get("blended_heads"):
        kept = "kept: the mean of {heads:g} of them, as one head on {view}"
        console.print(_(kept, heads=heads, view=made.best.record.short_view))
    if made.words:
        beside = "the words of the texts are beside it"
        alone = "the words of the texts are not: validation is no better for them beside it"
        console.print(_(beside if "factor_of_words" in solver else alone))
    console.print()
    show_run(made.best)
