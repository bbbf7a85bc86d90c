"""A report about runs that predict numbers: scores, predicted against true, the largest errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.data.text_lookup import RowTexts
from featcache.evaluation.numbers import NUMBER_METRICS
from featcache.heads.numbers.scale import PredictionInterval
from featcache.inspection.data_checks import DataCheck
from featcache.inspection.document import row_text
from featcache.reporting import parts
from featcache.reporting.build import (
    DEFAULT_SETTINGS,
    headline_of,
    origin_of,
    scored_split,
    subject_of,
)
from featcache.reporting.cached import cached_features, texts_of_rows
from featcache.reporting.checks import report_checks
from featcache.reporting.document import (
    REPORT_FORMAT,
    HeadlineMetric,
    Interval,
    ReportOrigin,
    ReportSubject,
)
from featcache.reporting.figures import INK, SERIES, drawing_style, new_axes, to_svg
from featcache.reporting.html import render
from featcache.reporting.markdown import markdown_environment, tidy
from featcache.reporting.sentences import checks_sentence, sentences
from featcache.reporting.verdict import others_sentence
from featcache.runs.numbers.compare import compare_number_runs
from featcache.runs.numbers.predictions import NumberPredictions, number_predictions
from featcache.runs.run import Run
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.text import readable, without_folders
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted
from featcache.translation.sentences import translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 2000  # points
LARGEST = 20  # errors that are listed
TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "spearman": noted("rank correlation")}


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
    interval: Interval | None = None
    seconds: float | None = None


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
    verdict: Sequence[str] = ()
    checks: Sequence[DataCheck] = ()
    origin: ReportOrigin = field(default_factory=ReportOrigin)


def build_number_report(
    runs: Sequence[Run],
    split: str = "test",
    *,
    settings: Settings = DEFAULT_SETTINGS,
    origin: ReportOrigin | None = None,
) -> NumberReport:
    """The report on the first of `runs`, all of which predict numbers.

    Args:
        split, settings, origin: as in `build_report`.

    Raises:
        HeadError: the first run has no predictions.
    """
    subject, notes = runs[0], list[str]()
    split = scored_split(subject, split, notes)
    found = number_predictions(subject, split)
    drawn = np.sort(np.random.default_rng(0).permutation(len(found))[:DRAWN])
    cached = cached_features(subject, found.row_hash, split, settings, notes)
    texts = texts_of_rows(subject, cached.hashes, settings, notes)
    report = NumberReport(
        split=split,
        about=subject_of(subject, split),
        headline=headline_of(subject, split),
        interval=subject.record.interval,
        covered=subject.record.interval_covered,
        runs=_reported(runs, split, notes),
        points=list(zip(found.labels[drawn].tolist(), found.predicted[drawn].tolist(), strict=True)),
        errors=_largest(found, split, texts),
        checks=report_checks(subject, cached, texts, None, None, settings),
        notes=list(map(without_folders, notes)),
        origin=origin or origin_of(),
    )
    return tidied(replace(report, verdict=_verdict(report)), text=readable)


def number_html(report: NumberReport) -> str:
    """The page, which loads nothing.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed.
    """
    words = _figure_words(report)
    with drawing_style():
        drawn = {"scatter": _scatter(report), "errors": _errors(report)}
        figures = {name: to_svg(figure, name, *words[name]) for name, figure in drawn.items()}
    return render("number_report.html.jinja", figures, _values(report) | {"words": words})


def number_markdown(report: NumberReport) -> str:
    """The same as Markdown, without figures."""
    return tidy(markdown_environment().get_template("number_report.md.jinja").render(**_values(report)))


def _values(report: NumberReport) -> dict[str, Any]:
    about = report.about
    cost = parts.cost_card(about.seconds, about.extraction_seconds)
    return vars(report) | {
        "axis": _axis(report), "cards": [*_cards(report), cost], "digits": _digits, "leaks": about.leaks,
        "interval_words": _interval_words(report),
    }  # fmt: skip


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ends(interval: Interval | None) -> str:
    low, high = interval or (None, None)
    return "" if low is None else _("{low} to {high}", low=_digits(low), high=_digits(high))


def _cards(report: NumberReport) -> Iterator[parts.Card]:
    ranks = report.headline.get("spearman")
    for name, title in TITLES.items():
        if (found := report.headline.get(name)) and found is not ranks:
            said = [_("95 %: {ends}", ends=ends)] if (ends := _ends(found.interval)) else []
            said += [_("clean {score}", score=_digits(found.clean))] if found.clean is not None else []
            said += [f"{_(TITLES['spearman'])} {_digits(ranks.value)}"] if ranks and name == "r2" else []
            yield parts.Card(parts.scored(report.split, title), _digits(found.value), said)


def _axis(report: NumberReport) -> parts.RunAxis:
    """Every run with its MAE, on one axis."""
    place, low, high = parts.axis([(run.metrics["mae"], run.interval) for run in report.runs])
    lines = []
    for run in report.runs:
        ends, change, mae = run.interval or (None, None), "", run.metrics["mae"]
        about = [parts.head_on(run.head, run.view), f"RMSE {_digits(run.metrics['rmse'])}"]
        about += [f"R² {_digits(run.metrics['r2'])}"]
        about += [_("validation RMSE {score}", score=_digits(run.validation_rmse))]
        if run.mae_change is not None:
            verdict = noted("tie") if run.tie else noted("worse") if run.mae_change > 0 else noted("better")
            change = f"{_(verdict)} {run.mae_change:+.3g}"
        lines.append(
            parts.RunLine(
                run.run, listed(about), _digits(mae), _ends(run.interval),
                low=place(ends[0]), high=place(ends[1]), dot=place(mae), against=change,
            )
        )  # fmt: skip
    return parts.RunAxis(parts.scored(report.split, "MAE"), _digits(low), _digits(high), lines)


def _verdict(report: NumberReport) -> list[str]:
    """How far off the run is, whether it beats the mean of the labels, and the other runs."""
    mae, r2 = report.headline["mae"], report.headline["r2"]
    value, ends = (mae.value, mae.interval) if mae.clean is None else (mae.clean, mae.clean_interval)
    whole = "{run} is off by {error} on average on {split} texts (95 %: {ends})"
    clean = "{run} is off by {error} on average on clean {split} texts (95 %: {ends})"
    about = {"run": report.about.run, "error": _digits(value), "ends": _ends(ends)}
    said = [_(whole if mae.clean is None else clean, split=_(report.split), **about)]
    share, low = (r2.value, r2.interval) if r2.clean is None else (r2.clean, r2.clean_interval)
    if share is not None and share > 0:
        sure = low is not None and low[0] is not None and low[0] > 0
        more = "It explains {share} of the variance of the labels, more than chance explains"
        chance = "It explains {share} of the variance of the labels, which chance may explain"
        said.append(_(more if sure else chance, share=parts.percent(share)))
    else:
        said.append(_("It is no better than always answering the mean of the labels: do not use it"))
    ties = sum(run.tie is True for run in report.runs)
    better = sum(run.tie is False and (run.mae_change or 0) < 0 for run in report.runs)
    worse = sum(run.tie is False for run in report.runs) - better
    said += [others_sentence(noted("MAE"), ties, worse, better)] if ties + worse + better else []
    return sentences([*said, *checks_sentence(report.checks)], report.about.run)


def _interval_words(report: NumberReport) -> list[str]:
    """The interval around each predicted number, what it contains, and what is promised."""
    if (found := report.interval) is None:
        return []
    held = "".join(
        _("; it contains {share} % of the {split} numbers", share=_digits(100 * share), split=_(split))
        for split, share in report.covered.items()
    )
    level, width = _digits(100 * found.level), _digits(found.half_width)
    return [
        _("{level} % interval: the predicted number ± {width}{held}.", level=level, width=width, held=held),
        _("What is promised: {promise}.", promise=translated(found.guarantee)),
    ]


def _figure_words(report: NumberReport) -> dict[str, tuple[str, str]]:
    """Title and description of each figure, by its name."""
    plain = "{rows:,} rows. On the line both are equal."
    dashed = (
        "{rows:,} rows. On the line both are equal; "
        "between the dashed lines the label is within the interval."
    )
    return {
        "scatter": (
            _("Predicted against true"),
            _(dashed if report.interval else plain, rows=len(report.points)),
        ),
        "errors": (_("Errors"), _("Predicted minus label.")),
    }


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
            interval=run.record.intervals.get(split, {}).get("mae"),
            seconds=run.record.seconds,
            mae_change=made[run.folder].difference.value if run.folder in made else None,
            tie=made[run.folder].tie if run.folder in made else None,
        )
        for run in runs
    ]


def _largest(found: NumberPredictions, split: str, texts: RowTexts) -> list[LargeError]:
    rows = np.argsort(-np.abs(found.errors), kind="stable")[:LARGEST]
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
    axes.set_xlabel(_("label"))
    axes.set_ylabel(_("predicted"))
    return figure


def _errors(report: NumberReport) -> Figure:
    """How many rows have which error."""
    figure, axes = new_axes()
    true, predicted = np.array(report.points).T
    axes.hist(predicted - true, bins=30, color=SERIES[0])
    axes.set_xlabel(_("predicted minus label"))
    axes.set_ylabel(_("rows"))
    return figure
