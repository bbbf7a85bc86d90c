"""`featcache compare`: runs side by side, one run in detail, and an exit code if a run is worse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import HeadError, UsageError
from featcache.translation.language import gettext as _
from featcache.translation.language import noted
from featcache_cli.chosen_run import named_runs
from featcache_cli.commands.train_head import record, show_abstention
from featcache_cli.console import note, out, print_result
from featcache_cli.number_runs import compared_numbers
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.run_details import show_details
from featcache_cli.run_table import METRICS, SORTS, TableOrder, points_text, run_names, show

if TYPE_CHECKING:
    from featcache.runs.compare import Change, Comparison, Comparisons, PairedTests
    from featcache.runs.run import Run

_Compared = tuple[dict[str, Any], Callable[[], None], bool]  # see `compared_numbers`
WORSE = 7  # exit code of --fail-if-worse where a run is worse


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "runs side by side; a single run with its classes, confusions and curves",
        "featcache compare\nfeatcache compare linear-last-mean-1 logistic-last-mean-1\n"
        "featcache compare linear-last-mean-2 --fail-if-worse linear-last-mean-1",
        run,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or folders of runs (default: all)")
    add_flag(parser, "--base", "compare with this run (default: the best)", metavar="RUN")
    split = "compare the predictions on this split; the best run is the best on validation in any case"
    add_flag(parser, "--split", split, "test", choices=("test", "validation"))
    shown = "show the intervals and differences of this score"
    add_flag(parser, "--metric", shown, "accuracy", choices=tuple(METRICS))
    order = "order of the runs, the best, fastest or newest first"
    add_flag(parser, "--sort", order, "validation", choices=SORTS)
    worse = f"exit with {WORSE} if another run is significantly worse than BASE in accuracy or macro F1"
    add_flag(parser, "--fail-if-worse", worse, metavar="BASE")
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    from featcache.runs.run import ranked

    runs, base = _asked(args)
    numbers = (base or ranked(runs)[0]).record.numbers
    own, others = ([one for one in runs if one.record.numbers is kind] for kind in (numbers, not numbers))
    if others and args.fail_if_worse:
        raise HeadError(
            f"{others[0].name} and {args.fail_if_worse} cannot be compared: one predicts numbers, the other "
            "labels",
            hint="name the runs to check",
        )
    found = [(_compared_numbers if numbers else _compared_labels)(own, base, args)]
    if others:
        found.append((_compared_labels if numbers else _compared_numbers)(others, None, args))

    def show_all() -> None:
        for made in found:
            made[1]()

    document, worse = found[0][0], found[0][2]
    print_result(args, document | ({"other_task": found[1][0]} if others else {}), show_all)
    return WORSE if worse and args.fail_if_worse else 0


def _compared_numbers(runs: list[Run], base: Run | None, args: argparse.Namespace) -> _Compared:
    document, show_runs, worse = compared_numbers(runs, base, args)
    return {"runs": [record(run) for run in runs], **document}, show_runs, worse


def _compared_labels(runs: list[Run], base: Run | None, args: argparse.Namespace) -> _Compared:
    """As `compared_numbers`, of runs that predict labels."""
    from featcache.runs.run import best_run

    best = best_run(runs)
    against = _compare(runs, base or best, args)
    worse = against.worse if against and args.fail_if_worse else []

    def show_all() -> None:
        show(runs, best, against, TableOrder(args.split, args.metric, args.sort))
        if len(runs) == 1:
            show_abstention(runs[0])
            show_details(runs[0], args.split)
        if against:
            two = len(against.made) == 1 and (args.runs or args.base)
            for comparison in against.made if two else worse:
                _show_comparison(against, comparison)
        if args.fail_if_worse:
            _show_verdict(worse, len(against.made) if against else 0, args.fail_if_worse)

    return _document(runs, best, against, args.split), show_all, bool(worse)


def _asked(args: argparse.Namespace) -> tuple[list[Run], Run | None]:
    """The runs to show, each once, and the base if one was named; it is among them."""
    from featcache.runs.run import load_run

    reports = Path(settings_of(args).paths.reports_dir)
    if args.base and args.fail_if_worse and args.base != args.fail_if_worse:
        raise UsageError("--base and --fail-if-worse name two different runs", hint="give one of them")
    name = args.fail_if_worse or args.base
    listed = named_runs(args.runs, reports)
    base = load_run(reports, name) if name else None
    unique = {run.folder.resolve(): run for run in (*listed, *([base] if base else []))}
    if args.fail_if_worse and not args.runs and len(unique) == 1:
        raise HeadError(f"no run besides {name} in {reports}", hint="train one, or name the runs to check")
    return list(unique.values()), base


def _compare(runs: list[Run], base: Run | None, args: argparse.Namespace) -> Comparisons | None:
    """All runs against the base; None where there is nothing to compare.

    A note says what cannot be compared and why; it is an error if the user has named the base.
    """
    from featcache.runs.compare import compare_runs

    if base is None or len(runs) == 1:
        return None
    try:
        against = compare_runs(runs, base, args.split, skip=not args.fail_if_worse)
    except HeadError as error:
        if args.fail_if_worse and not args.runs:
            hint = f"name the runs to check: featcache compare RUN --fail-if-worse {args.fail_if_worse}"
            raise HeadError(error.what, hint=hint) from error
        if args.base or args.fail_if_worse:
            raise
        if args.split in base.record.metrics:  # else the table shows that it has no scores
            note(f"not compared with the best: {error.what}", quiet=args.quiet)
        return None
    names = run_names(runs)
    reasons: dict[str, list[str]] = {}
    for run, reason in against.refused:
        if args.split in run.record.metrics:
            reasons.setdefault(reason, []).append(names[run.folder])
    for reason, which in reasons.items():
        more = f" and {len(which) - 3} more" if len(which) > 3 else ""
        note(f"not compared with {base.name}: {', '.join(which[:3])}{more}: {reason}", quiet=args.quiet)
    return against


def _document(runs: list[Run], best: Run | None, against: Comparisons | None, split: str) -> dict[str, Any]:
    """What `--json` prints; shares of 1, not percent."""
    from featcache.runs.compare import most_frequent

    document: dict[str, Any] = {
        "runs": [record(run) | {"intervals": run.record.intervals} for run in runs],
        "best": best.name if best else None,
        "split": split,
        "base": against.base.name if against else None,
        "comparisons": [_comparison_document(made) for made in against.made] if against else [],
        "not_compared": [],
        "majority": None,
    }
    if best and (found := most_frequent(best, split)):
        document["majority"] = {"label": found[0], "accuracy": found[1]}
    if against:
        document["not_compared"] = [
            {"run": run.name, "path": str(run.folder), "reason": why} for run, why in against.refused
        ]
    return document


def _comparison_document(made: Comparison) -> dict[str, Any]:
    return {
        "run": made.run.name,
        "path": str(made.run.folder),
        "left_out": {"base": made.only_base, "run": made.only_run},
        **_tests_document(made),
        "clean": _tests_document(made.clean) if made.clean else None,
    }


def _tests_document(made: PairedTests) -> dict[str, Any]:
    def change(metric: Change) -> dict[str, Any]:
        found = metric.difference
        return {
            "base": found.first,
            "run": found.second,
            "difference": found.value,
            "interval": [found.low, found.high],
            "p": metric.p,
            "corrected_p": metric.corrected_p,
            "tie": metric.tie,
        }

    return {
        "rows": made.rows,
        "only_right": {"base": made.discordant.only_first, "run": made.discordant.only_second},
        "accuracy": change(made.accuracy),
        "macro_f1": change(made.macro_f1),
        "tie": made.tie,
        "worse": made.worse,
    }


def _show_comparison(against: Comparisons, made: Comparison) -> None:
    """Both metrics of a run against the base, in detail."""
    console, test = out(), made.discordant
    names = run_names([against.base, made.run])
    base, run = names[against.base.folder], names[made.run.folder]
    left_out = made.only_base + made.only_run
    without = _(" ({count:,} left out)", count=left_out) if left_out else ""
    shared = "{run} against {base}, {rows:,} shared {split} rows{left_out}"
    about = {"run": run, "base": base, "split": _(against.split), "left_out": without}
    console.print("\n" + _(shared, rows=made.rows, **about))
    alone = "  right in {base} alone: {first:,}, in {run} alone: {second:,}"
    console.print(_(alone, base=base, first=test.only_first, run=run, second=test.only_second))
    _show_tests(made)
    if made.clean:
        console.print(_("  without leaked rows, {rows:,} clean rows:", rows=made.clean.rows))
        _show_tests(made.clean)


def _show_tests(made: PairedTests) -> None:
    for name, change in ((noted("accuracy"), made.accuracy), (noted("macro F1"), made.macro_f1)):
        found = change.difference
        verdict = noted("tie") if change.tie else noted("worse") if change.worse else noted("better")
        line = "  {metric} {points:>7}  95 % {low} to {high}  p {p}, corrected {corrected}  {verdict}"
        out().print(
            _(
                line, metric=_(name), points=points_text(found.value), low=points_text(found.low),
                high=points_text(found.high), p=_p(change.p), corrected=_p(change.corrected_p),
                verdict=_(verdict),
            )
        )  # fmt: skip


def _show_verdict(worse: list[Comparison], compared: int, base: str) -> None:
    """The last line of `--fail-if-worse`."""
    which = ", ".join(comparison.run.name for comparison in worse)
    if worse:
        line, style = _("worse than {base}: {runs}", base=base, runs=which), "bold red"
    elif compared:
        none = "none of {count} is significantly worse than {base}"
        line, style = _(none, count=compared, base=base), "bold green"
    else:
        line, style = _("{base} is not worse than itself", base=base), "bold green"
    out().print(f"\n{line}", style=style)


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"
