"""`featcache train-head`: a head on the cached features."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featcache.backbone.model_files.kinds import VECTORS, kind_of
from featcache.backbone.token_rows import ATTENTIVE
from featcache.cache.view_names import LEXICAL, cached_views
from featcache.errors import UsageError
from featcache.heads.distributed import ALONE, ProcessGroup, environment_group
from featcache.system.units import percent_text, seconds_text
from featcache.system.workers import Worker
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated
from featcache_cli.chosen_run import add_name_flag, check_name, with_name
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.number_runs import show_number_run
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import Meter
from featcache_cli.run_details import show_history

if TYPE_CHECKING:
    from rich.table import Table

    from featcache.finetuning.tuning import TrainingStep
    from featcache.heads.fit import Epoch
    from featcache.runs.record import RunRecord
    from featcache.runs.run import Run
    from featcache.runs.words import CountedWords
    from featcache.settings import Settings

BEFORE = {"encode": "states", "download": "download", "count": "count n-grams"}  # stages with a bar
INSTEAD = {"words": "words", "penalties": "penalties", "scales": "view scales", "solve": "solve"}  # of epochs
AUTO = "auto"  # in the place of a kind of head: chosen for few labels
HEADS = {
    "linear": "a linear layer by AdamW",
    "lexical": "no backbone: logistic regression on the n-grams of the texts",
    "logistic": "scikit-learn's LogisticRegression, its penalty chosen on validation",
    "exact": "the same to its optimum, faster",
    "mlp": "one hidden layer by AdamW",
    "ridge": "least squares; with --task regression its penalty is chosen on validation",
    "discriminant": "linear discriminant analysis",
    "centroid": "nearest centroid",
    "neighbours": "k nearest neighbours",
    "attentive": "learned queries over the token states of several layers",
}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train-head",
        "train a head on the cached train features, choose on validation, report on test",
        "featcache train-head --epochs 100\nfeatcache train-head --head logistic --view last/mean\n"
        "featcache train-head --head exact --workers 4",
        run,
    )
    kinds = "; ".join(f"{kind}: {what}" for kind, what in HEADS.items())
    kinds += (
        "; auto: for few labels, chosen by cross-validation on train: ridge, its views and penalty, or a "
    )
    kinds += "contrastive step on the highest blocks"
    add_flag(parser, "--head", kinds, "linear", choices=(*HEADS, AUTO), metavar="KIND", dest="kind")
    add_flag(
        parser, "--view",
        "which cached view, or several joined: A,B; lexical adds the words of the texts (default: the first "
        "of --views); of the attentive head layers: last,-3 (default: those of depth)",
    )  # fmt: skip
    add_flag(parser, "--rows-per-class", "train on so many rows of each class, drawn by --seed", kind=int)
    tried = "whether --head auto tries the contrastive step, up to 64 rows a class (default: yes)"
    parser.add_argument("--contrastive", action=argparse.BooleanOptionalAction, default=True, help=tried)
    workers = "processes that share the rows, linear and exact heads; under torchrun, its own"
    add_flag(parser, "--workers", workers, 1)
    add_name_flag(parser)
    add_settings(parser, "head", "abstention", "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_name(args)
    if args.workers != 1 and Worker.from_environment():
        raise UsageError(
            "--workers where RANK and WORLD_SIZE are set",
            hint="under torchrun leave it away; elsewhere unset the two",
        )
    with environment_group(settings.backbone.device) as group:
        quiet = args.quiet or group.rank > 0
        if args.kind == AUTO:
            if group.size > 1 or args.workers != 1:
                raise UsageError("--head auto is for few labels, and one worker", hint="leave --workers out")
            made = train_auto(
                settings, args.view, args.rows_per_class, contrastive=args.contrastive, quiet=quiet
            )
        else:
            made = train(
                settings, args.kind, args.view, quiet=quiet, rows_per_class=args.rows_per_class,
                workers=args.workers, group=group,
            )  # fmt: skip
    if group.rank > 0:
        return 0
    made = with_name(made, args)
    print_result(args, record(made), lambda: show(made))
    note_saved(made, args)
    return 0


def note_saved(made: Run, args: argparse.Namespace) -> None:
    """Print where the run is, unless `--json` has printed it."""
    note(
        f"saved in {made.folder}; next: featcache compare, featcache predict",
        quiet=args.quiet or args.json,
    )


def train(
    settings: Settings,
    kind: str,
    view: str | None,
    *,
    quiet: bool,
    rows_per_class: int | None = None,
    workers: int = 1,
    group: ProcessGroup = ALONE,
    words: CountedWords | None = None,
) -> Run:
    """Train with a progress bar: as one of `group`, or by processes of its own.

    Args:
        words: n-grams that several heads share.
    """
    from featcache.runs.train import train_head

    alone = kind in (LEXICAL, ATTENTIVE) and view in (None, LEXICAL)
    name = kind if alone else f"{kind} {view or settings.features.views[0]}"
    epochs = settings.head.passes if kind == ATTENTIVE else settings.head.epochs
    stages = BEFORE | {stage: f"train {name}, {said}" for stage, said in INSTEAD.items()}
    with Meter(quiet=quiet, names=stages) as meter:

        def draw(line: Epoch) -> None:
            said = "loss {loss:.4f} validation {accuracy:.4f}"
            info = _(said, loss=line.train_loss, accuracy=line.validation_accuracy)
            meter.step(f"train {name}, epochs", line.epoch, epochs, info)

        if workers == 1:
            if words is not None:
                words.on_progress = meter
            made = train_head(
                settings, kind, view, rows_per_class=rows_per_class, progress=draw, report=meter, group=group,
                words=words,
            )  # fmt: skip
        else:
            if rows_per_class is not None:
                raise UsageError("--rows-per-class is for one worker", hint="leave --workers out")
            from featcache.runs.train_workers import train_with_workers

            made = train_with_workers(settings, workers, kind, view, progress=draw)
    note_missing_test(made, quiet=quiet)
    return made


def train_auto(
    settings: Settings, view: str | None, rows_per_class: int | None, *, contrastive: bool, quiet: bool
) -> Run:
    """Train the recipe that cross-validation chooses, with a bar over its fits and trainings."""
    stages = BEFORE | {"contrastive": "cross-validation of the contrastive step, folds"}
    with Meter(quiet=quiet, names=stages) as meter:

        def draw(done: int, total: int) -> None:
            meter.step("cross-validation", done, total, "fits")

        if contrastive:
            note("loading torch", quiet=quiet)
            from featcache.finetuning.few_labels.train import train_few_labels

            def train(step: TrainingStep) -> None:
                meter.step("train top blocks", step.step, step.steps)

            made = train_few_labels(
                settings, view, rows_per_class=rows_per_class, on_fit=draw, report=meter, progress=train
            )
        else:
            from featcache.runs.few_labels.train import train_few

            made = train_few(settings, view, rows_per_class=rows_per_class, on_fit=draw)
    note_missing_test(made, quiet=quiet)
    return made


def note_missing_test(made: Run, *, quiet: bool) -> None:
    """Print why a run has no test score, if it has none."""
    if "test" not in made.record.metrics and kind_of(made.record.backbone.model) == VECTORS:
        note("no imported test split, so no test score: featcache import --split test", quiet=quiet)
    elif "test" not in made.record.metrics:
        note("no cached test split, so no test score: featcache extract --split test", quiet=quiet)


def record(run: Run) -> dict[str, Any]:
    """A run as `--json` shows it."""
    keys = (
        "run", "head", "view", "fingerprint", "seconds", "metrics", "epochs", "best_epoch",
        "parameters", "rows", "extraction_seconds", "bytes_cached", "label_names", "task",
        "intervals", "calibration", "solver",
    )  # fmt: skip
    found = run.record.to_json()
    shown = {key: found[key] for key in keys} | {
        key: found.get(key) for key in ("clean", "abstention", "interval", "interval_covered")
    }
    return shown | {"path": str(run.folder)}


def show(run: Run) -> None:
    """Scores by split, and the course of the training."""
    if run.record.numbers:
        show_number_run(run)
        show_shares(run.record)
        show_history(run)
        return
    console = out()
    about = run.record
    alone = "{run}: {head} head without a backbone, {seconds}"
    reads = "{run}: {head} head on {view}, {seconds}"
    values = {"run": run.name, "head": about.head, "seconds": seconds_text(about.seconds)}
    console.print(_(alone if about.view == LEXICAL else reads, view=about.short_view, **values))
    if kind_of(about.backbone.model) == VECTORS:
        console.print(source_sentence(run), style="dim", soft_wrap=True)
    if "recipe" in about.solver or "contrastive" in about.solver:
        from featcache.runs.few_labels.train import choice_sentence

        console.print(choice_sentence(about))
    costs = columns(">mean cost") if any("cost" in metrics for metrics in about.metrics.values()) else ()
    shown = table(*columns("split", ">rows", ">accuracy", ">macro F1", ">log loss"), *costs)
    if about.settings.get("penalty", "fixed") != "fixed":
        console.print(_("C = {c:g}, chosen by {how}", c=about.solver["C"], how=_(about.settings["penalty"])))
    clean = about.clean.metrics if about.clean else {}
    for split, metrics in about.metrics.items():
        _add_scores(shown, _(split), about.rows[split], metrics)
        if about.clean and split in clean:
            _add_scores(shown, _("  clean"), about.rows[split] - about.clean.leaked[split], clean[split])
    console.print(shown)
    if about.about_leaks:
        console.print(about.about_leaks)
    show_shares(about)
    show_honesty(run)
    show_abstention(run)
    show_history(run)


def source_sentence(run: Run) -> str:
    """What the vectors are that a head was trained on, where they were imported."""
    part = run.head().encoder.vectors
    if part is None:  # words alone
        return _("trained on the words of the texts")
    made = _(", made by {model}", model=part.model) if part.model else ""
    said = "trained on imported vectors {name}, {width:,} numbers each{made}"
    return _(said, name=part.name, width=part.width, made=made)


def show_shares(about: RunRecord) -> None:
    """Which views carry the labels, one a line with a bar, and how much each counts where that was chosen."""
    shares, chosen = about.view_shares, about.solver.get("view_scales", ())
    scales = dict(zip(cached_views(about.view), chosen, strict=False))
    if not shares:
        return
    from rich.text import Text

    console, width = out(), max(map(len, shares))
    console.print(_("what each view adds to the logits, as a share of their variance:"))
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        bar = Text("█" * round(30 * max(share, 0)), style="cyan")
        scale = _(" (counts {scale:g})", scale=scales[name]) if name in scales else ""
        console.print(Text(f"  {name:{width}} {percent_text(share):>6} ") + bar + Text(scale, style="dim"))


def _add_scores(shown: Table, what: str, rows: int, metrics: Mapping[str, float]) -> None:
    shares = (percent_text(metrics[name]) for name in ("accuracy", "macro_f1"))
    numbers = (f"{metrics[name]:.4f}" for name in ("log_loss", "cost") if name in metrics)
    shown.add_row(what, f"{rows:,}", *shares, *numbers)


def show_honesty(run: Run) -> None:
    """The interval of the test score, and what calibration did; runs of earlier versions have neither."""
    console = out()
    interval = run.record.intervals.get("test", {}).get("accuracy")
    if interval:
        low, high = (percent_text(end) for end in interval)
        how = _how_made(run.metric("test", "accuracy"), interval)
        line = _("test accuracy: 95 % interval {low} to {high} ({how})", low=low, high=high, how=how)
        if run.record.clean and "test" in run.record.clean.intervals:
            interval = run.record.clean.intervals["test"]["accuracy"]
            low, high = (percent_text(end) for end in interval)
            how = _how_made(run.metric("test", "accuracy", clean=True), interval)
            line += _(", clean {low} to {high} ({how})", low=low, high=high, how=how)
        console.print(line, style="dim")
    found = run.record.calibration
    if found:
        moved = "temperature {temperature:.2f} from validation: calibration error {before} -> {after}"
        kept = "calibration error of validation {before}: no temperature makes it smaller"
        ends = (percent_text(error) for error in (found.ece_before, found.ece_after))
        about = {"temperature": found.temperature, "before": next(ends), "after": next(ends)}
        console.print(_(kept if found.temperature == 1.0 else moved, **about), style="dim")


def _how_made(accuracy: float, interval: tuple[float | None, float | None]) -> str:
    """How the interval of an accuracy was made."""
    from featcache.evaluation.bootstrap import is_exact

    if not is_exact(accuracy, interval):
        return _("bootstrap over rows")
    return _("exact binomial: every row is right") if accuracy else _("exact binomial: every row is wrong")


def show_abstention(run: Run) -> None:
    """When the head gives no answer, on what rows that was found, and what it does on each split."""
    found, console = run.record.abstention, out()
    if found is None:
        return
    shown = table(
        *columns("split", ">rows", ">answered", ">wrong answers", ">without abstaining", ">out of scope")
    )
    for split, one in found.splits.items():
        shown.add_row(
            _(split), f"{one.rows:,}", f"{one.coverage:.1%}", percent_text(one.risk),
            percent_text(one.wrong_in_all / one.rows if one.rows else None), f"{one.out_of_scope:,}",
        )  # fmt: skip
    console.print()
    held = "no answer below probability {threshold:.4f}: {promise}"
    promise = translated(found.promise)
    console.print(_(held, threshold=found.threshold, promise=promise), style="bold")
    console.print(shown)
    console.print(translated(found.guarantee), style="dim")
