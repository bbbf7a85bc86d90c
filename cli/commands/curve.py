"""`featcache curve`: the score against the number of labelled rows, and what more of them would bring."""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from featcache.cache.view_names import short_view
from featcache.errors import UsageError
from featcache.system.units import interval_text, percent_text, seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import ngettext, noted
from featcache.translation.sentences import translated
from featcache_cli.commands.train_head import HEADS
from featcache_cli.console import Mark, columns, note, out, plot, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of, whole_numbers
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.evaluation.extrapolation import Forecast
    from featcache.runs.few_labels.side_by_side import RecipeComparison, RecipeScore
    from featcache.runs.learning_curve import Curve, Plan
    from featcache.settings import Settings

SCORES = {"accuracy": noted("accuracy"), "macro_f1": noted("macro F1")}
STEPS = {"encode": "states", "download": "download", "contrastive": "contrastive step, trainings"}
TIMES = {
    2: noted("twice the labels ({rows:,} rows) would bring {gain:+.2f} points {ends}"),
    4: noted("four times the labels ({rows:,} rows) would bring {gain:+.2f} points {ends}"),
    10: noted("ten times the labels ({rows:,} rows) would bring {gain:+.2f} points {ends}"),
}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "curve",
        "score against the number of labelled rows, and what more of them would bring",
        "featcache curve\nfeatcache curve --rows-per-class 8,16,32,64\n"
        "featcache curve --head linear --sizes 100,1000,5000 --metric macro_f1",
        run,
        continues=True,
    )
    group = parser.add_argument_group("curve")
    add_flag(group, "--sizes", "train rows (default: log-spaced, up to all)", metavar="N,...")
    add_flag(group, "--points", "how many log-spaced sizes (default: 8)", kind=int)
    add_flag(group, "--seeds", "random orders of the rows", 5)
    add_flag(group, "--metric", "what is scored", "accuracy", choices=SCORES)
    add_flag(group, "--head", ", ".join(HEADS), "exact", choices=HEADS, metavar="KIND", dest="kind")
    penalties = "penalties of exact and logistic; each fit takes the best on validation"
    add_flag(group, "--C", f"{penalties} (default: 1e-4,1e-3,1e-2,0.1,1)", metavar="X,...")
    recipes = "few labels: the head recipes side by side, at so many rows of each class"
    add_flag(group, "--rows-per-class", f"{recipes} (e.g. 8,16,32,64)", metavar="N,...")
    add_flag(group, "--view", "which cached view (default: the first of --views)")
    tried = "with --rows-per-class: the contrastive step beside them, up to 64 rows a class (default: yes)"
    group.add_argument("--contrastive", action=argparse.BooleanOptionalAction, default=True, help=tried)
    no_settings = ("C", "penalty", "folds", "costs")
    add_settings(parser, "head", "backbone", "data", "features", "paths", "", without=no_settings)


def run(args: argparse.Namespace) -> int:
    if args.rows_per_class is not None:
        return _run_recipes(args)
    curve = measure(settings_of(args), _plan(args), args.view, quiet=args.quiet)
    print_result(args, curve.document, lambda: show(curve))
    note(f"saved in {curve.folder}", quiet=args.quiet or args.json)
    return 0


def _run_recipes(args: argparse.Namespace) -> int:
    for name, default in (("sizes", None), ("points", None), ("C", None), ("kind", "exact")):
        if getattr(args, name) != default:
            flag = "head" if name == "kind" else name
            raise UsageError(f"--{flag} and --rows-per-class cannot be given together")
    from featcache.runs.few_labels.side_by_side import compare_recipes

    if args.metric != "accuracy":
        raise UsageError("--rows-per-class scores accuracy", hint="leave --metric out")
    sizes = whole_numbers(args.rows_per_class, "--rows-per-class")
    settings = settings_of(args)
    with Meter(quiet=args.quiet, names=STEPS) as meter:

        def draw(done: int, total: int) -> None:
            meter.step("recipes", done, total, "draws")

        if args.contrastive:
            note("loading torch", quiet=args.quiet)
            from featcache.finetuning.few_labels.side_by_side import StepBeside

            beside = StepBeside(settings, meter)
            made = compare_recipes(settings, sizes, args.seeds, args.view, beside=beside, on_draw=draw)
        else:
            made = compare_recipes(settings, sizes, args.seeds, args.view, on_draw=draw)
    print_result(args, made.document, lambda: show_recipes(made))
    note(f"saved in {made.folder}", quiet=args.quiet or args.json)
    return 0


def show_recipes(made: RecipeComparison) -> None:
    """A line a recipe, a column a number of rows a class."""
    console = out()
    sizes = list(dict.fromkeys(one.rows_per_class for one in made.scores))
    seeds = ngettext("{count} seed", "{count} seeds", made.seeds)
    by = "{split} accuracy by rows a class, {seeds}, {seconds}"
    console.print(_(by, split=_(made.split), seeds=seeds, seconds=seconds_text(made.seconds)))
    shown = table(*columns("recipe"), *(">" + _("{size} rows", size=size) for size in sizes))
    by_recipe: dict[str, list[RecipeScore]] = {}
    for one in made.scores:
        by_recipe.setdefault(one.recipe, []).append(one)
    for name, scores in by_recipe.items():
        at = {one.rows_per_class: one for one in scores}
        shown.add_row(translated(name), *(_accuracy(at.get(size)) for size in sizes))
        if all(one.clean_accuracy is not None for one in scores):
            clean = (at[size].clean_accuracy if size in at else None for size in sizes)
            shown.add_row(_("  clean"), *("-" if one is None else f"{100 * one:.1f}" for one in clean))
    console.print(shown)
    train_it = "±: standard deviation over the seeds; train it: featcache train-head --head auto"
    console.print(_(train_it))


def _accuracy(score: RecipeScore | None) -> str:
    """In percent with its deviation; `-` where the recipe was not trained."""
    if score is None:
        return "-"
    spread = "" if score.deviation is None else f" ±{100 * score.deviation:.1f}"
    return f"{100 * score.accuracy:.1f}{spread}"


def _plan(args: argparse.Namespace) -> Plan:
    from featcache.heads.registry import KINDS
    from featcache.runs.learning_curve import PENALTIES, Plan
    from featcache.runs.sweep import parse_values

    if args.C is not None and "C" not in KINDS[args.kind].settings:
        raise UsageError(f"--C is not for the {args.kind} head")
    if args.sizes is not None and args.points is not None:
        raise UsageError("--sizes and --points cannot be given together")
    return Plan(
        kind=args.kind,
        metric=args.metric,
        sizes=None if args.sizes is None else whole_numbers(args.sizes, "--sizes"),
        points=8 if args.points is None else args.points,
        seeds=args.seeds,
        penalties=PENALTIES if args.C is None else parse_values(args.C, least=1e-12),
    )


def measure(settings: Settings, plan: Plan, view: str | None, *, quiet: bool) -> Curve:
    """Measure with a bar that counts the rows trained on."""
    from featcache.runs.learning_curve import learning_curve

    with Meter(quiet=quiet) as meter:

        def report(done: int, total: int, size: int, seed: int) -> None:
            meter.step(f"curve {plan.kind}", done, total, f"rows, {size:,} with seed {seed}")

        curve = learning_curve(settings, plan, view, progress=report)
    if curve.split != "test":
        note(
            "no cached test split: scored on validation, where choices were made too, so somewhat too high;"
            " featcache extract --split test",
            quiet=quiet,
        )
    return curve


def show(curve: Curve) -> None:
    """The table, the plot, and the extrapolation in sentences."""
    console = out()
    name, split = _(SCORES[curve.metric]), _(curve.split)
    seeds = ngettext("{count} seed", "{count} seeds", len(curve.points[0].scores))
    about = {"head": curve.kind, "view": short_view(curve.view), "seconds": seconds_text(curve.seconds)}
    reads = "{head} head on {view}, {split} {metric}, {seeds}, {seconds}"
    console.print(_(reads, split=split, metric=name, seeds=seeds, **about))
    chose = len({C for point in curve.points for C in point.penalties}) > 1
    clean = columns(">clean") if curve.points[0].clean else ()
    rows, *ends = columns(">rows", ">95 % interval")
    growth = columns(">sd", ">per doubling")
    shown = table(rows, f">{name}", *ends, *clean, *growth, *([">C"] if chose else []))
    for point in curve.points:
        between = percent_text(point.deviation)
        gain = "-" if point.per_doubling is None else f"{100 * point.per_doubling:+.2f}"
        interval = _("{low} to {high}", low=percent_text(point.low), high=percent_text(point.high))
        chosen = [f"{statistics.median(point.penalties):g}"] if chose else []
        without = [percent_text(point.clean.score)] if point.clean else []
        cells = [f"{point.rows:,}", percent_text(point.score), interval, *without, between, gain, *chosen]
        shown.add_row(*cells)
    console.print(shown)
    if clean:
        without_leaks = (
            "clean: without the {rows:,} {split} rows whose text an earlier split has; featcache inspect "
            "lists them"
        )
        console.print(_(without_leaks, rows=curve.leaked, split=split))
    console.print()
    for line in _drawing(curve, min(console.width, 80) - 2, console.encoding):
        console.print(line)
    console.print()
    for line in sentences(curve):
        console.print(line)


def _drawing(curve: Curve, width: int, encoding: str) -> list[str]:
    marks = [Mark(point.rows, point.score, point.low, point.high) for point in curve.points]
    forecasts = curve.outlook.forecasts
    marks += [Mark(one.rows, one.score, one.low, one.high, "beyond") for one in forecasts]
    line = []
    if forecasts:
        first, last, steps = curve.points[0].rows, forecasts[-1].rows, 2 * width
        places = [first * (last / first) ** (step / steps) for step in range(steps + 1)]
        line = list(zip(places, curve.outlook.score_at(places).tolist(), strict=True))
    return plot(marks, line, width=width, encoding=encoding)


def sentences(curve: Curve) -> list[str]:
    """What more labels would bring, how it is extrapolated, and what speaks against it."""
    outlook = curve.outlook
    lines = [_sentence(one) for one in outlook.forecasts]
    if lines:
        law = (
            "This is an extrapolation, with 95 % intervals: it holds if the curve goes on as a power law, "
            "error = {limit:.2f} + {scale:.2f} * (rows / {base:,})^-{rate:.2f} (in points)."
        )
        ends = {"limit": 100 * (outlook.limit or 0), "scale": 100 * (outlook.scale or 0)}
        lines.append(_(law, base=outlook.base, rate=outlook.rate, **ends))
    if outlook.doubts:
        lines += [_("Do not rely on it:") if outlook.forecasts else _("No extrapolation:")]
        lines += [f"- {translated(doubt)}" for doubt in outlook.doubts]
    return lines


def _sentence(one: Forecast) -> str:
    ends, gain = interval_text(one.gain_low, one.gain_high), 100 * one.gain
    return _(TIMES[one.factor], rows=one.rows, gain=gain, ends=ends)
