"""`featcache train-head`: a head on the cached features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.heads.distributed import ALONE, ProcessGroup, environment_group
from featcache.system.text import sparkline
from featcache.system.units import percent_text, seconds_text
from featcache.system.workers import Worker
from featcache_cli.console import note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of
from featcache_cli.progress import TrainingMeter

if TYPE_CHECKING:
    from featcache.runs.run import Run
    from featcache.settings import Settings

HEADS = {
    "linear": "a linear layer by AdamW",
    "logistic": "scikit-learn's LogisticRegression",
    "exact": "the same to its optimum, faster",
    "mlp": "one hidden layer by AdamW",
    "ridge": "least squares",
    "discriminant": "linear discriminant analysis",
    "centroid": "nearest centroid",
    "neighbours": "k nearest neighbours",
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "train-head",
        "train a head on the cached train features, choose on validation, report on test",
        "featcache train-head --epochs 100\nfeatcache train-head --head logistic --view last/mean\n"
        "featcache train-head --head exact --workers 4",
    )
    parser.add_argument(
        "--head",
        dest="kind",
        default="linear",
        choices=tuple(HEADS),
        metavar="KIND",
        help="; ".join(f"{kind}: {what}" for kind, what in HEADS.items()) + " (default: linear)",
    )
    parser.add_argument("--view", help="which cached view (default: the first of --views)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the rows, linear and exact heads (default: 1); under torchrun, its own",
    )
    add_settings(parser, "head", "backbone", "data", "features", "paths", "")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.workers != 1 and Worker.from_environment():
        raise UsageError(
            "--workers where RANK and WORLD_SIZE are set",
            hint="under torchrun leave it away; elsewhere unset the two",
        )
    with environment_group(settings.backbone.device) as group:
        quiet = args.quiet or group.rank > 0
        made = train(settings, args.kind, args.view, quiet=quiet, workers=args.workers, group=group)
    if group.rank > 0:
        return 0
    if args.json:
        print_json(record(made))
    else:
        show(made)
        note(f"saved in {made.folder}; next: featcache compare, featcache predict", quiet=args.quiet)
    return 0


def train(
    settings: Settings,
    kind: str,
    view: str | None,
    *,
    quiet: bool,
    workers: int = 1,
    group: ProcessGroup = ALONE,
) -> Run:
    """Train with a progress bar: as one of `group`, or by processes of its own."""
    from featcache.runs.train import train_head

    name = f"{kind} {view or settings.features.views[0]}"
    with TrainingMeter(name, settings.head.epochs, quiet=quiet) as meter:
        if workers == 1:
            made = train_head(settings, kind, view, progress=meter, group=group)
        else:
            from featcache.runs.train_workers import train_with_workers

            made = train_with_workers(settings, workers, kind, view, progress=meter)
    if "test" not in made.record.metrics:
        note("no cached test split, so no test score: featcache extract --split test", quiet=quiet)
    return made


def record(run: Run) -> dict[str, Any]:
    """A run as `--json` shows it."""
    keys = (
        "run", "head", "view", "fingerprint", "seconds", "metrics", "epochs", "best_epoch",
        "parameters", "rows", "extraction_seconds", "bytes_cached", "label_names", "task",
        "intervals", "calibration", "solver",
    )  # fmt: skip
    found = run.record.to_json()
    return {key: found[key] for key in keys} | {"path": str(run.folder)}


def show(run: Run) -> None:
    """Scores by split, and the course of the training."""
    console = out()
    about = run.record
    console.print(f"{run.name}: {about.head} head on {about.view}, {seconds_text(about.seconds)}")
    numbers = [("rows", "right"), ("accuracy", "right"), ("macro F1", "right"), ("log loss", "right")]
    shown = table([("split", "left"), *numbers])
    if about.settings.get("penalty", "fixed") != "fixed":
        console.print(f"C = {about.solver['C']:g}, chosen by {about.settings['penalty']}")
    for split, metrics in about.metrics.items():
        shares = (percent_text(metrics[name]) for name in ("accuracy", "macro_f1"))
        shown.add_row(split, f"{about.rows[split]:,}", *shares, f"{metrics['log_loss']:.4f}")
    console.print(shown)
    show_honesty(run)
    show_history(run)


def show_honesty(run: Run) -> None:
    """The interval of the test score, and what calibration did; runs of earlier versions have neither."""
    console = out()
    interval = run.record.intervals.get("test", {}).get("accuracy")
    if interval:
        low, high = (percent_text(end) for end in interval)
        console.print(f"test accuracy: 95 % interval {low} to {high} (bootstrap over rows)", style="dim")
    found = run.record.calibration
    if found:
        console.print(
            f"temperature {found.temperature:.2f} from validation: calibration error "
            f"{percent_text(found.ece_before)} -> {percent_text(found.ece_after)}",
            style="dim",
        )


def show_history(run: Run) -> None:
    """Loss and accuracy by epoch as sparklines, with their ends and the best epoch."""
    lines = run.history
    if len(lines) < 2:
        return
    console = out()
    shown = table(
        [("", "left"), ("first", "right"), (f"epochs 1 to {len(lines)}", "left"), ("last", "right")]
    )
    for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
        values = [getattr(line, name) for line in lines]
        shown.add_row(name.replace("_", " "), f"{values[0]:.4f}", sparkline(values, 36), f"{values[-1]:.4f}")
    console.print(shown)
    console.print(
        f"best epoch by validation: {run.record.best_epoch} (kept as head; the last is kept as last)",
        style="dim",
    )
