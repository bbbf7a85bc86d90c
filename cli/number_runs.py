"""Runs that predict numbers: one run in detail, and several compared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.errors import HeadError
from featcache.system.units import seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed
from featcache.translation.sentences import translated
from featcache_cli.console import columns, note, out, table
from featcache_cli.run_columns import RunColumn, fitting

if TYPE_CHECKING:
    from rich.text import Text

    from featcache.evaluation.paired import ScoreDifference
    from featcache.runs.numbers.compare import ErrorChange, ErrorTests, NumberComparison, NumberComparisons
    from featcache.runs.run import Run


def show_number_run(run: Run) -> None:
    """Scores by split, how the penalty was chosen, and the interval."""
    console, about = out(), run.record
    reads, seconds = "{run}: {head} head on {view}, {seconds}", seconds_text(about.seconds)
    console.print(_(reads, run=run.name, head=about.head, view=about.short_view, seconds=seconds))
    if "alpha" in about.solver:
        how, alpha = about.settings.get("penalty", "fixed"), about.solver["alpha"]
        given, chosen = "alpha = {alpha:g}, as given", "alpha = {alpha:g}, chosen by {how}"
        console.print(_(given if how == "fixed" else chosen, alpha=alpha, how=_(how)))
    shown = table(*columns("split", ">rows", ">MAE", ">RMSE", ">R²", ">rank corr."))
    clean = about.clean.metrics if about.clean else {}
    for split, metrics in about.metrics.items():
        shown.add_row(_(split), f"{about.rows[split]:,}", *_scores(metrics))
        if about.clean and split in clean:
            rows = about.rows[split] - about.clean.leaked[split]
            shown.add_row(_("  clean"), f"{rows:,}", *_scores(clean[split]))
    console.print(shown)
    if about.about_leaks:
        console.print(about.about_leaks)
    if ends := about.intervals.get("test"):
        spans = listed(f"{name} {_ends(ends[key])}" for name, key in (("MAE", "mae"), ("R²", "r2")))
        said = "test, 95 % intervals (bootstrap over rows): {intervals}"
        console.print(_(said, intervals=spans), style="dim")
    show_interval(run)


def show_interval(run: Run) -> None:
    """The interval around each predicted number, what it contained, and what is promised."""
    about, console = run.record, out()
    if about.interval is None:
        console.print(_("no interval around predicted numbers: too few validation rows"), style="dim")
        return
    contains = "; it contains {share:.1%} of the {split} numbers"
    held = (_(contains, share=share, split=_(split)) for split, share in about.interval_covered.items())
    level, width = f"{100 * about.interval.level:g} %", f"{about.interval.half_width:.4g}"
    line = "{level} interval: the predicted number ± {width}{held}"
    console.print(_(line, level=level, width=width, held="".join(held)), style="bold")
    console.print(translated(about.interval.guarantee), style="dim")


def _scores(metrics: dict[str, float]) -> list[str]:
    return [f"{metrics[name]:.4g}" for name in ("mae", "rmse", "r2")] + [f"{metrics['spearman']:.3f}"]


def _ends(interval: tuple[float, float]) -> str:
    low, high = interval
    return _("{low} to {high}", low=f"{low:.4g}", high=f"{high:.4g}")


def compared_numbers(
    runs: list[Run], base: Run | None, args: argparse.Namespace
) -> tuple[dict[str, Any], Callable[[], None], bool]:
    """What `--json` prints beside the runs, a function that prints all, and whether a run is worse."""
    from featcache.runs.run import ranked

    against = _compare(runs, base, args)

    def show_all() -> None:
        _show(runs, against, args.split)
        if against and args.fail_if_worse:
            _show_verdict(against)

    document = {
        "best": ranked(runs)[0].name,
        "split": args.split,
        "base": against.base.name if against else None,
        "comparisons": [_comparison_document(made) for made in against.made] if against else [],
        "not_compared": [
            {"run": run.name, "path": str(run.folder), "reason": why}
            for run, why in (against.refused if against else ())
        ],
    }
    return document, show_all, bool(against and against.worse)


def show_number_runs(runs: list[Run]) -> None:
    """The table of runs, compared with the best of them on test where that can be done."""
    from featcache.runs.numbers.compare import compare_number_runs
    from featcache.runs.run import ranked

    scored = "test" in ranked(runs)[0].record.metrics
    _show(runs, compare_number_runs(runs, split="test", skip=True) if scored else None, "test")


def _compare(runs: list[Run], base: Run | None, args: argparse.Namespace) -> NumberComparisons | None:
    """All runs against the base, or the best; None where there is nothing to compare."""
    from featcache.runs.numbers.compare import compare_number_runs
    from featcache.runs.run import best_run

    first = base or best_run(runs)
    if first is None or len(runs) == 1:
        return None
    try:
        against = compare_number_runs(runs, first, args.split, skip=not args.fail_if_worse)
    except HeadError as error:
        if base is not None:
            raise
        note(f"not compared with the best: {error.what}", quiet=args.quiet)
        return None
    for run, reason in against.refused:
        note(f"not compared with {first.name}: {run.name}: {reason}", quiet=args.quiet)
    return against


def _show(runs: list[Run], against: NumberComparisons | None, split: str) -> None:
    """The table of runs, the best by validation first."""
    from featcache.runs.run import ranked

    console, ordered = out(), ranked(runs)
    fitted = fitting(_columns(ordered, against, split), console.width)
    shown = table(*(column.title for column in fitted))
    for run, cells in zip(ordered, zip(*(column.cells for column in fitted), strict=True), strict=True):
        shown.add_row(*cells, style="bold green" if run is ordered[0] else None)
    console.print(shown)
    best = "* best by validation RMSE; MAE, RMSE: errors on {split} in the unit of the labels"
    console.print(_(best, split=_(split)), style="dim")
    if against:
        vs = (
            "vs base: more or less error than {base} on the same rows, with its 95 % interval; "
            "tie: may be chance"
        )
        console.print(_(vs, base=against.base.name), style="dim")
    if len(runs) == 1:
        show_interval(runs[0])


def _columns(runs: list[Run], against: NumberComparisons | None, split: str) -> list[RunColumn]:
    metrics = [run.record.metrics.get(split, {}) for run in runs]
    ends = [run.record.intervals.get(split, {}).get("mae") for run in runs]
    widths = [run.record.interval for run in runs]

    def scores(name: str) -> list[str | Text]:
        return [f"{one[name]:.4g}" if name in one else "-" for one in metrics]

    columns = [
        RunColumn("", ["*" if run is runs[0] else "" for run in runs], right=False),
        RunColumn("run", [run.name for run in runs], right=False),
        RunColumn("val. RMSE", [f"{run.metric('validation', 'rmse', clean=True):.4g}" for run in runs]),
        RunColumn("MAE", scores("mae")),
        RunColumn("95 %", [_ends(one) if one else "-" for one in ends], 3),
        RunColumn("RMSE", scores("rmse"), 2),
        RunColumn("R²", [cell[:6] for cell in scores("r2")], 1),
        RunColumn("rank corr.", [cell[:6] for cell in scores("spearman")], 4),
        RunColumn("interval", [f"±{one.half_width:.3g}" if one else "-" for one in widths], 4),
    ]
    if against:
        tests = {one.run.folder: one for one in against.made}
        own = [tests.get(run.folder) for run in runs]
        columns.insert(4, RunColumn("vs base", [_change(one.mae) if one else "" for one in own]))
        after = [column.header for column in columns].index("RMSE") + 1
        columns.insert(after, RunColumn("vs base", [_change(one.rmse) if one else "" for one in own], 2))
    return columns


def _show_verdict(against: NumberComparisons) -> None:
    """Which runs are worse than the base."""
    for one in against.worse:
        worse = "{run} is worse than {base}: MAE {mae}, RMSE {rmse} on {rows:,} rows"
        about = {"run": one.run.name, "base": against.base.name, "rows": one.rows}
        out().print(_(worse, mae=_change(one.mae), rmse=_change(one.rmse), **about), style="red")
    if not against.worse:
        none = "no run is significantly worse than {base}"
        out().print(_(none, base=against.base.name), style="green")


def _comparison_document(made: NumberComparison) -> dict[str, Any]:
    """What `--json` prints of a comparison."""
    return {
        "run": made.run.name,
        "path": str(made.run.folder),
        "left_out": {"base": made.only_base, "run": made.only_run},
        **_tests_document(made),
        "clean": _tests_document(made.clean) if made.clean else None,
    }


def _tests_document(tests: ErrorTests) -> dict[str, Any]:
    def change(one: ErrorChange) -> dict[str, Any]:
        found: ScoreDifference = one.difference
        return {
            "base": found.first, "run": found.second, "difference": found.value,
            "interval": [found.low, found.high], "p": found.p, "corrected_p": one.corrected_p, "tie": one.tie,
        }  # fmt: skip

    return {
        "rows": tests.rows, "mae": change(tests.mae), "rmse": change(tests.rmse), "tie": tests.tie,
        "worse": tests.worse,
    }  # fmt: skip


def _change(change: ErrorChange) -> str:
    found = change.difference
    return f"{_('tie') + ' ' if change.tie else ''}{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
