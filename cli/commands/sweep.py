"""`featcache sweep`: many linear heads at once."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.system.units import percent_text, seconds_text
from featcache_cli.commands.train_head import record
from featcache_cli.commands.train_head import show as show_run
from featcache_cli.console import note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of
from featcache_cli.progress import LiveMeter

if TYPE_CHECKING:
    from rich.table import Table

    from featcache.heads.fit import Epoch, Member
    from featcache.runs.sweep import Grid, Sweep
    from featcache.settings import Settings

SHOWN = 8  # trials in the table at the end
LEADERS = 5  # heads in the table while they train
GRID = ("lr", "weight_decay", "label_smoothing", "class_weight")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "sweep",
        "train a grid of heads at once, keep the best by validation",
        "featcache sweep --lr 1e-4..1e-1 --weight-decay 0,0.01 --seeds 5\n"
        "featcache sweep --view last/cls,last/mean,-4/mean --lr 1e-3,1e-2",
    )
    group = parser.add_argument_group("grid", "lists (0,0.01), or ranges (1e-4..1e-1, log-spaced; :N for N)")
    group.add_argument("--lr", metavar="X,...", help="AdamW learning rates (default: 1e-4..1e-1)")
    group.add_argument("--weight-decay", metavar="X,...", help="AdamW weight decays (default: 0,0.01)")
    group.add_argument("--label-smoothing", metavar="X,...", help="default: 0")
    group.add_argument("--class-weight", metavar="A,...", help="none, balanced, or both (default: none)")
    group.add_argument("--view", metavar="A,...", help="cached views (default: all of --views)")
    group.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="random beginnings of each setting (default: 1, from zero)",
    )
    add_settings(parser, "head", "backbone", "data", "features", "paths", "", without=GRID)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    asked = {name: getattr(args, name) for name in GRID}
    for name in GRID:  # a list here, a single value in the settings
        setattr(args, name, None)
    settings = settings_of(args)
    grid = _grid(asked, args.view, args.seeds, settings)
    made = train(settings, grid, quiet=args.quiet)
    if args.json:
        print_json(document(made))
    else:
        show(made)
        note(f"saved in {made.best.folder}; next: featcache compare, featcache predict", quiet=args.quiet)
    return 0


def _grid(asked: dict[str, str | None], view: str | None, seeds: int, settings: Settings) -> Grid:
    from featcache.runs.sweep import Grid, parse_values

    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: at least 1")
    weights = tuple(dict.fromkeys((asked["class_weight"] or "none").split(",")))
    if not set(weights) <= {"none", "balanced"}:
        raise UsageError(f"--class-weight {asked['class_weight']}: none, balanced, or both")
    views = settings.features.views if view is None else tuple(part.strip() for part in view.split(","))
    smoothing = parse_values(asked["label_smoothing"] or "0")
    if max(smoothing) >= 1:
        raise UsageError("--label-smoothing: numbers from 0 to below 1 are needed")
    return Grid(
        lr=parse_values(asked["lr"] or "1e-4..1e-1", least=1e-12),
        weight_decay=parse_values(asked["weight_decay"] or "0,0.01"),
        label_smoothing=smoothing,
        class_weight=weights,
        views=tuple(dict.fromkeys(views)),
        seeds=seeds,
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
    if "test" not in made.best.record.metrics:
        note("no cached test split, so no test score: featcache extract --split test", quiet=quiet)
    return made


def _leaders(members: Sequence[Member], lines: list[Epoch]) -> Table:
    """The heads that lead by validation now."""
    shown = table(
        [("view", "left"), ("lr", "right"), ("decay", "right"), ("valid.", "right"), ("loss", "right")]
    )
    order = sorted(range(len(lines)), key=lambda n: (-lines[n].validation_accuracy, lines[n].validation_loss))
    for number in order[:LEADERS]:
        member, line = members[number], lines[number]
        shown.add_row(
            member.view, f"{member.lr:.3g}", f"{member.weight_decay:g}",
            percent_text(line.validation_accuracy), f"{line.validation_loss:.4f}",
        )  # fmt: skip
    return shown


def document(made: Sweep) -> dict[str, Any]:
    return {
        "heads": len(made.trials),
        "seconds": made.seconds,
        "trials": [dataclasses.asdict(trial) for trial in made.trials],
        "best_by_view": {view: dataclasses.asdict(best) for view, best in made.best_by("view").items()},
        "best": record(made.best),
    }


def show(made: Sweep) -> None:
    """The best trials by validation, the best of each view, and the one that was kept."""
    console = out()
    console.print(f"{len(made.trials)} heads in {seconds_text(made.seconds)}, best first by validation")
    columns = [("view", "left"), ("lr", "right"), ("decay", "right"), ("smooth", "right")]
    columns += [("weights", "left"), ("seed", "right"), ("ep.", "right"), ("valid.", "right")]
    shown = table([*columns, ("loss", "right")])
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
        ranking = ", ".join(f"{view} {score}" for view, score in scores.items())
        console.print(f"views by their best validation accuracy: {ranking}", soft_wrap=True)
    console.print()
    show_run(made.best)
