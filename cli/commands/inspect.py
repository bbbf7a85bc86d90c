"""`featcache inspect`: what the cached features know about the data."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from featcache.cache.view_names import short_view
from featcache.system.text import clip
from featcache.system.units import interval_text, percent_text, share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed
from featcache.translation.sentences import translated
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.inspection.document import Findings, ListedRow
    from featcache.inspection.inspection import LeakageScore
    from featcache.settings import Settings

PRINTED, LISTED = 5, 1000  # rows of each list on a terminal, in JSON


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "inspect",
        "likely label errors, duplicates, leakage, outliers, balance, truncated texts",
        "featcache inspect\nfeatcache inspect --view last/mean --list 20",
        run,
    )
    group = parser.add_argument_group("inspection")
    add_flag(group, "--view", "which cached view (default: the first of --views)")
    near = "two texts are nearly equal from this cosine of their centred features on (default: 0.95)"
    add_flag(group, "--threshold", near, kind=float)
    add_flag(group, "--neighbours", "an outlier is far from its N nearest train texts", 10)
    add_flag(group, "--folds", "parts of train; a head trained on the other parts judges each", 5)
    listed = f"rows of each list (default: {PRINTED}, {LISTED} with --json)"
    add_flag(group, "--list", listed, kind=int, least=0)
    add_settings(parser, "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    most = args.list if args.list is not None else LISTED if args.json else PRINTED
    found = inspect(settings_of(args), args, most)
    print_result(args, found, lambda: show(found, out().width))
    if found.no_texts:
        note(f"without texts: {found.no_texts}", quiet=args.quiet or args.json)
    return 0


def inspect(settings: Settings, args: argparse.Namespace, most: int) -> Findings:
    """The findings, with a bar for each part of the work."""
    from featcache.inspection import cached
    from featcache.inspection.neighbours import THRESHOLD

    with Meter(quiet=args.quiet) as meter:
        return cached.inspect(
            settings,
            args.view,
            most=most,
            threshold=THRESHOLD if args.threshold is None else args.threshold,
            neighbours=args.neighbours,
            folds=args.folds,
            on_progress=meter,
        )


def show(found: Findings, width: int) -> None:
    """Everything as tables, then the first rows of each list."""
    _show_splits(found)
    _show_leakage(found, width)
    _show_errors(found, width)
    _show_duplicates(found, width)
    _show_outliers(found, width)


def _show_splits(found: Findings) -> None:
    from featcache.backbone.tokens.unknown_tokens import MANY, unknown_text

    console = out()
    near = "features {view}, nearly equal from a cosine of {threshold:g}"
    console.print(_(near, view=short_view(found.view), threshold=found.threshold))
    counts = columns("split", ">rows", ">repeats", ">near", ">cut")
    shown = table(*counts, *columns(">tokens (median, longest)", "smallest class"))
    for split, rows in found.splits.items():
        cut, twice = found.truncation[split], found.duplicates.splits[split]
        label, count = min(found.balance[split].items(), key=lambda item: item[1])
        shown.add_row(
            _(split), f"{rows:,}", f"{twice.equal:,}", f"{twice.near:,}", f"{cut.cut:,}",
            f"{cut.median_tokens or 0:,.0f}, {cut.longest_tokens:,}",
            f"{clip(label, 12)} {share_text(count, rows)}",
        )  # fmt: skip
    console.print(shown)
    labels = len(found.label_names)
    longest = max(one.max_length for one in found.truncation.values())
    legend = "{labels} labels; repeats: rows whose text came before; cut: truncated to {longest} tokens"
    console.print(_(legend, labels=labels, longest=longest), style="dim")
    for split, cut in found.truncation.items():
        if cut.unknown_tokens:
            style = "yellow" if cut.unknown_tokens > MANY else "dim"
            console.print(translated(unknown_text(_(split), cut.unknown_tokens)), style=style)
    missing = [_(split) for split in ("validation", "test") if split not in found.splits]
    if missing:
        absent = "not extracted, so not looked at: {splits}"
        console.print(_(absent, splits=listed(missing)), style="dim")


def _show_leakage(found: Findings, width: int) -> None:
    console, leakage = out(), found.leakage
    if not leakage.pairs:
        return
    console.print("\n" + _("Leakage between splits"), style="bold")
    shown = table(*columns("rows of", "found in", ">equal", ">near", ">share", ">other label"))
    for pair in leakage.pairs:
        rows = found.splits[pair.split]
        shown.add_row(
            _(pair.split), _(pair.in_), f"{pair.equal:,}", f"{pair.near:,}",
            share_text(pair.rows, rows), f"{pair.other_label:,}",
            style="bold red" if pair.rows else None,
        )  # fmt: skip
    console.print(shown)
    for score in leakage.scores:
        console.print(score_line(score))
    _print_rows(((row, _cosine(row.cosine)) for row in leakage.list_), width)


def _cosine(cosine: float) -> str:
    return _("cosine {cosine:.3f}", cosine=cosine)


def score_line(score: LeakageScore) -> str:
    """What leakage did to the accuracy of a logistic regression."""
    whole = f"{percent_text(score.whole)} {interval_text(*score.whole_interval)}"
    clean = "{split} accuracy of a logistic regression: {whole}; nothing leaked"
    leaked = "{split} accuracy of a logistic regression: {whole}, without the {rows:,} leaked rows {without}"
    if not score.removed:
        return _(clean, split=_(score.split), whole=whole)
    without = f"{percent_text(score.without)} {interval_text(*score.without_interval)}"
    return _(leaked, split=_(score.split), whole=whole, rows=score.removed, without=without)


def _show_errors(found: Findings, width: int) -> None:
    from featcache.inspection.document import label_text

    console, errors = out(), found.label_errors
    console.print("\n" + _("Likely label errors"), style="bold")
    if errors.not_looked_for:
        console.print(_("not looked for: {reason}", reason=translated(errors.not_looked_for)))
        return
    parts = [_("{count:,} in {split}", count=n, split=_(split)) for split, n in errors.splits.items()]
    first = "{rows:,} rows ({splits}), the least likely label first"
    console.print(_(first, rows=errors.rows, splits=listed(parts)))
    if errors.unjudged:
        console.print(_("{rows:,} rows have a label that is too rare to judge", rows=errors.unjudged))
    suggested = ((row, _("rather {label}", label=label_text(row.suggested))) for row in errors.list_)
    _print_rows(suggested, width)


def _show_duplicates(found: Findings, width: int) -> None:
    console, twice = out(), found.duplicates
    console.print("\n" + _("Nearly equal texts"), style="bold")
    console.print(_("{pairs:,} pairs, the most alike first", pairs=twice.near_pairs))
    for pair in twice.near_list:
        _print_rows(((row, _cosine(pair.cosine)) for row in pair.rows), width)
    console.print("\n" + _("One text, several labels"), style="bold")
    texts, rows = twice.conflicting_texts, twice.conflicting_rows
    console.print(_("{texts:,} texts in {rows:,} rows", texts=texts, rows=rows))
    _print_rows(((row, "") for row in twice.conflict_list), width)


def _show_outliers(found: Findings, width: int) -> None:
    outliers = found.outliers
    out().print("\n" + _("Outliers"), style="bold")
    if outliers.beyond is not None:
        far = "{texts:,} texts farther than {beyond:.2f} from their {neighbours} nearest train texts"
        about = {"beyond": outliers.beyond, "neighbours": outliers.neighbours}
        out().print(_(far, texts=outliers.rows, **about))
    distances = ((row, _("distance {distance:.2f}", distance=row.distance)) for row in outliers.list_)
    _print_rows(distances, width)


def _print_rows(rows: Iterable[tuple[ListedRow, str]], width: int) -> None:
    """A line for each row: where it is, its label, a remark, and as much of its text as fits."""
    from featcache.inspection.document import label_text

    for row, remark in rows:
        line = f"  {row.where}  {clip(label_text(row.label), 16)}  {clip(remark, 30)}".rstrip()
        text = " ".join((row.text or "").split())
        out().print(clip(f"{line}  {text}".rstrip(), width), soft_wrap=True)
