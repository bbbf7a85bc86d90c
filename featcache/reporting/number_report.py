"""A report about runs that predict numbers: scores, predicted against true, the largest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.evaluation.numbers import NUMBER_METRICS
from featcache.heads.numbers.scale import PredictionInterval
from featcache.inspection.document import row_text
from featcache.reporting.build import (
    DEFAULT_SETTINGS,
    headline_of,
    scored_split,
    subject_of,
    texts_of_rows,
)
from featcache.reporting.document import REPORT_FORMAT, HeadlineMetric, ReportSubject
from featcache.reporting.figures import INK, SERIES, drawing_style, new_axes, to_svg
from featcache.reporting.markdown import markdown_environment
from featcache.reporting.words import TEMPLATES, environment_of
from featcache.runs.numbers.compare import compare_number_runs
from featcache.runs.numbers.predictions import NumberPredictions, number_predictions
from featcache.runs.run import Run
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.text import readable, without_folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 2000  # points
LARGEST = 20  # errors that are listed
TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "spearman": "rank correlation"}


@dataclass(frozen=True, kw_only=True)
class ReportedNumberRun:
    """One line of the table of runs; `mae_change` is against the first one, on the same rows.

    Attributes:
        tie: whether the change may be chance; None for the first one, and for runs that cannot be compared.
    """

    run: str
    head: str
    view: str
    validation_rmse: float
    metrics: Mapping[str, float]
    mae_change: float | None = None
    tie: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LargeError:
    """A row that was predicted far from its label; see `featcache.inspection.document.ListedRow`."""

    row: int | None
    row_hash: str
    label: float
    predicted: float
    error: float
    text: str | None

    @property
    def where(self) -> str:
        """The row of the source, or the beginning of the row hash."""
        return row_text(self.row, self.row_hash)


@dataclass(frozen=True, kw_only=True)
class NumberReport:
    """Everything that the report shows of the first of its runs, beside the others.

    Attributes:
        covered: share of the rows whose label is within the interval, by split.
        points: (label, predicted) of some rows, chosen at random with a fixed seed.
        errors: the largest first.
        notes: what could not be shown, and why.
    """

    format: int = REPORT_FORMAT
    split: str
    about: ReportSubject
    headline: Mapping[str, HeadlineMetric]
    interval: PredictionInterval | None
    covered: Mapping[str, float]
    runs: Sequence[ReportedNumberRun]
    points: Sequence[tuple[float, float]]
    errors: Sequence[LargeError]
    notes: Sequence[str]


def build_number_report(
    runs: Sequence[Run], split: str = "test", *, settings: Settings = DEFAULT_SETTINGS
) -> NumberReport:
    """The report on the first of `runs`, all of which predict numbers.

    Args:
        split, settings: as in `build_report`.

    Raises:
        HeadError: the first run has no predictions.
    """
    subject, notes = runs[0], list[str]()
    split = scored_split(subject, split, notes)
    found = number_predictions(subject, split)
    drawn = np.sort(np.random.default_rng(0).permutation(len(found))[:DRAWN])
    report = NumberReport(
        split=split,
        about=subject_of(subject, split),
        headline=headline_of(subject, split),
        interval=subject.record.interval,
        covered=subject.record.interval_covered,
        runs=_reported(runs, split, notes),
        points=list(zip(found.labels[drawn].tolist(), found.predicted[drawn].tolist(), strict=True)),
        errors=_largest(subject, found, split, settings, notes),
        notes=list(map(without_folders, notes)),
    )
    return tidied(report, text=readable)


def number_html(report: NumberReport) -> str:
    """The page, which loads nothing.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed.
    """
    with drawing_style():
        figures = {
            "scatter": to_svg(_scatter(report), "scatter"),
            "errors": to_svg(_errors(report), "errors"),
        }
    template = environment_of(autoescape=True).get_template("number_report.html.jinja")
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return template.render(**_values(report), figures=figures, css=css)


def number_markdown(report: NumberReport) -> str:
    """The same as Markdown, without figures."""
    return markdown_environment().get_template("number_report.md.jinja").render(**_values(report))


def _values(report: NumberReport) -> dict[str, Any]:
    values = vars(report) | {"titles": TITLES, "leaks": report.about.leaks}
    return values | {"digits": lambda value: "-" if value is None else f"{value:.4g}"}


def _reported(runs: Sequence[Run], split: str, notes: list[str]) -> list[ReportedNumberRun]:
    made = {}
    if len(runs) > 1:
        compared = compare_number_runs(list(runs), runs[0], split, skip=True)
        notes += [f"{run.name} is not compared: {why}" for run, why in compared.refused]
        made = {one.run.folder: one.mae for one in compared.made}
    return [
        ReportedNumberRun(
            run=run.name,
            head=run.record.head,
            view=run.record.short_view,
            validation_rmse=run.metric("validation", "rmse"),
            metrics={name: run.metric(split, name) for name in NUMBER_METRICS},
            mae_change=made[run.folder].difference.value if run.folder in made else None,
            tie=made[run.folder].tie if run.folder in made else None,
        )
        for run in runs
    ]


def _largest(
    run: Run, found: NumberPredictions, split: str, settings: Settings, notes: list[str]
) -> list[LargeError]:
    rows = np.argsort(-np.abs(found.errors), kind="stable")[:LARGEST]
    texts = texts_of_rows(run, {split: found.row_hash}, settings, notes)
    shown = texts.texts_of(split, rows.tolist())
    return [
        LargeError(
            row=texts.number(split, row),
            row_hash=found.row_hash[row].tobytes().hex(),
            label=float(found.labels[row]),
            predicted=float(found.predicted[row]),
            error=float(found.errors[row]),
            text=text,
        )
        for row, text in zip(rows.tolist(), shown, strict=True)
    ]


def _scatter(report: NumberReport) -> Figure:
    """Predicted against true; the line is where both are equal, the dashed ones are the interval's ends."""
    figure, axes = new_axes()
    true, predicted = np.array(report.points).T
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    axes.plot(true, predicted, "o", ms=2.6, alpha=0.65, mec="none", color=SERIES[0])
    axes.plot(ends, ends, "-", lw=1, color=INK)
    if report.interval:
        for side in (-1, 1):
            axes.plot(ends, ends + side * report.interval.half_width, "--", lw=1, color=INK)
    axes.set_xlabel("label")
    axes.set_ylabel("predicted")
    return figure


def _errors(report: NumberReport) -> Figure:
    """How many rows have which error."""
    figure, axes = new_axes()
    true, predicted = np.array(report.points).T
    axes.hist(predicted - true, bins=30, color=SERIES[0])
    axes.set_xlabel("predicted minus label")
    axes.set_ylabel("rows")
    return figure
