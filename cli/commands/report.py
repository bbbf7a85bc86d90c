"""`featcache report`: runs as a page for people, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.system.packages import require_extra
from featcache.system.text import clip
from featcache.system.units import percent_text, seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import paragraph
from featcache.translation.sentences import translated
from featcache_cli.chosen_run import named_runs
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.number_runs import show_number_run
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.reporting.document import ReportOrigin, RunReport
    from featcache.reporting.number_report import NumberReport
    from featcache.runs.run import Run

SUFFIXES = (".html", ".md", ".json")
SHOWN = 5  # mistakes on a terminal
STYLES = {"look": "yellow", "bad": "red"}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        "one page about runs and their data: HTML, Markdown and JSON",
        "featcache report\nfeatcache report linear-last-mean-1 exact-last-mean-1 --output report.html",
        run,
    )
    runs = "names or folders of runs; the page is about the first and compares it with the others"
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help=f"{runs} (default: all, the best by validation first)"
    )
    page = "the page; .md and .json are written beside it (default: report.html in the first run's folder)"
    add_flag(parser, "--output", page, metavar="FILE")
    add_flag(parser, "--split", "report on these rows", "test", choices=("test", "validation"))
    parser.add_argument(
        "--inspect", action=argparse.BooleanOptionalAction, default=True,
        help="look for label errors, duplicates, leakage and outliers (default: yes)",
    )  # fmt: skip
    drawn = "how the features are drawn in two dimensions; auto is UMAP where it is installed, else PCA"
    add_flag(parser, "--map", drawn, "auto", choices=("auto", "pca", "umap"))
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    from featcache.reporting.document import RunReport
    from featcache.runs.run import ranked

    reports = Path(settings_of(args).paths.reports_dir)
    runs = named_runs(args.runs, reports)
    if not args.runs:
        runs = ranked(runs)
    runs = [one for one in runs if one.record.numbers == runs[0].record.numbers]
    page = Path(args.output) if args.output else runs[0].folder / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {page}: a name that ends in .html is needed")
    if page.is_dir():
        raise UsageError(f"--output {page} is a folder")
    require_extra("a report", "report", ["jinja2", "matplotlib"])  # before the work, not after it
    began = time.perf_counter()
    report, files = write(runs, page, reports, args)
    seconds = time.perf_counter() - began

    def show_all() -> None:
        if args.quiet:
            pass  # the files alone
        elif isinstance(report, RunReport):
            show(report)
        else:
            show_number_run(runs[0])
        for path in files:
            out().print(str(path), soft_wrap=True)
        note(f"written in {seconds_text(seconds)}; open {files[0]} in a browser", quiet=args.quiet)

    paths = {path.suffix.removeprefix("."): str(path) for path in files}
    print_result(args, {"files": paths, "seconds": seconds, "report": report}, show_all)
    return 0


def write(
    runs: list[Run], page: Path, reports: Path, args: argparse.Namespace
) -> tuple[RunReport | NumberReport, list[Path]]:
    """Make the report, with a bar for each part of the work, and write its three files."""
    from featcache.reporting.build import origin_of
    from featcache.system.documents import json_document
    from featcache.system.durable import write_file

    files = [page if suffix == ".html" else page.with_suffix(suffix) for suffix in SUFFIXES]
    origin = origin_of(_command(runs, args), [file.name for file in files])
    with Meter(quiet=args.quiet) as meter:
        report, html, markdown = (_about_numbers if runs[0].record.numbers else _about_labels)(
            runs, reports, args, origin, meter
        )
        json_text = json.dumps(json_document(report), ensure_ascii=False, allow_nan=False, indent=1)
        meter.step("drawing", 1, 1)
    for path, text in zip(files, (html, markdown, json_text + "\n"), strict=True):
        write_file(path, text.encode("utf-8"))
    return report, files


def _command(runs: list[Run], args: argparse.Namespace) -> str:
    """The command that makes the report again, without folders of this machine."""
    words = ["featcache", "report", *(run.name for run in runs)]
    words += ["--split", args.split] if args.split != "test" else []
    words += [] if args.inspect else ["--no-inspect"]
    words += ["--map", args.map] if args.map != "auto" else []
    words += ["--output", Path(args.output).name] if args.output else []
    return shlex.join(words)


def _about_labels(
    runs: list[Run], reports: Path, args: argparse.Namespace, origin: ReportOrigin, meter: Meter
) -> tuple[RunReport, str, str]:
    """The report on runs that predict labels, as HTML and as Markdown."""
    from featcache.reporting.build import build_report
    from featcache.reporting.html import to_html
    from featcache.reporting.markdown import to_markdown

    report = build_report(
        runs,
        args.split,
        inspect=args.inspect,
        projection=args.map,
        reports_dir=reports,
        settings=settings_of(args),
        origin=origin,
        on_progress=meter,
    )
    meter.step("drawing", 0, 1)
    return report, to_html(report), to_markdown(report)


def _about_numbers(
    runs: list[Run], reports: Path, args: argparse.Namespace, origin: ReportOrigin, meter: Meter
) -> tuple[NumberReport, str, str]:
    """The report on runs that predict numbers, as HTML and as Markdown."""
    from featcache.reporting.number_report import build_number_report, number_html, number_markdown

    report = build_number_report(runs, args.split, settings=settings_of(args), origin=origin)
    meter.step("drawing", 0, 1)
    return report, number_html(report), number_markdown(report)


def show(report: RunReport) -> None:
    """A summary: the verdict, data checks that found something, runs, the most confident mistakes."""
    console = out()
    console.print(paragraph(report.verdict), style="bold")
    for check in report.checks:
        if check.state != "good":
            about = {"state": _(check.state), "name": _(check.name), "sentence": check.sentence}
            said = _("{state}: {name}: {sentence}", **about)
            if check.hint:
                said = _("{state}: {name}: {sentence}; {hint}", **about, hint=check.hint)
            console.print(said, style=STYLES[check.state])
    if report.about.leaks and not report.checks:
        console.print(report.about.leaks)
    _show_runs(report)
    _show_mistakes(report, console.width)
    for line in report.notes:
        console.print(_("note: {note}", note=translated(line)), style="dim")
    console.print()


def _show_runs(report: RunReport) -> None:
    from featcache.reporting.parts import change_text

    if len(report.runs) < 2:
        return
    clean = columns(">clean") if report.headline["accuracy"].clean is not None else ()
    first, *rest = columns("run", ">F1", ">against the first")
    shown = table(first, f">{_(report.split)}", *clean, *rest)
    changes = {
        made.run: change_text(made.accuracy.difference, made.accuracy.interval, made.accuracy.tie)
        for made in report.comparisons
    }
    for run in report.runs:
        without = [percent_text(run.clean_accuracy)] if clean else []
        shown.add_row(
            clip(run.run, 30), percent_text(run.accuracy), *without, percent_text(run.macro_f1),
            changes.get(run.run, ""),
        )  # fmt: skip
    out().print(shown)


def _show_mistakes(report: RunReport, width: int) -> None:
    from featcache.inspection.document import label_text

    if report.certain_mistakes:
        out().print("\n" + _("The most confident mistakes"), style="bold")
    for row in report.certain_mistakes[:SHOWN]:
        label, predicted = (clip(label_text(one), 12) for one in (row.label, row.predicted))
        share = percent_text(row.confidence)
        remark = _("{label}, predicted {predicted} {share}", label=label, predicted=predicted, share=share)
        text = " ".join((row.text or "").split())
        out().print(clip(f"  {row.where}  {remark}  {text}".rstrip(), width), soft_wrap=True)
