"""The figures of a report as SVG: drawn by matplotlib, coloured by the variables of the page.

Text stays text (`svg.fonttype: none`), so that the fonts of the page render Chinese and text can be searched.
Every colour is a placeholder that is replaced by `currentColor` or a CSS variable, so that one figure serves
the light page, the dark page and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.inspection.document import label_text
from featcache.reporting.document import (
    ConfidenceBin,
    ConfidenceHistogram,
    FeatureMap,
    Interval,
    LengthBin,
    RiskCurve,
    RunReport,
    ScoreByRows,
    TrainingCurve,
)
from featcache.reporting.words import DRAWN_RUNS, figure_words
from featcache.system.packages import require_extra
from featcache.system.text import clip
from featcache.translation.language import gettext as _
from featcache.translation.language import noted
from featcache.translation.sentences import translated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featcache.runs.few_labels.side_by_side import SavedComparison

WIDTH, HEIGHT = 4.6, 2.9  # inches; on a page 1 inch is 96 px, so that 9 pt letters are 12 px
LEGEND_ROW = 0.19  # inches
INK, RULE = "#0a0b0c", "#0d0e0f"
SERIES = ("#0a0a10", "#0a0a11", "#0a0a12", "#0a0a13", "#0a0a14", "#0a0a15", "#0a0a16", "#0a0a17")
RIGHT, WRONG = SERIES[0], SERIES[1]
LINES, MARKS = ("-", "--", "-.", ":"), "os^DvPX*"  # series differ by more than their colour
_SURE = (noted("confidence, %"), noted("accuracy, %"))
_PLACEHOLDERS = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label called $x$ is a label
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],  # for measuring; it comes with matplotlib
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


def figures(report: RunReport) -> dict[str, str]:
    """Every figure that the report has numbers for, by name: SVG texts.

    Raises:
        UsageError: matplotlib is not installed.
    """
    own = [curve for curve in report.curves if curve.run == report.about.run]
    several = report.curves if list(report.curves) != own else ()
    multi_label, words, score = report.about.multi_label, figure_words(report), _(report.about.score_name)
    unit, nats, rows = _("{score}, %", score=score), _("loss, nats a row"), _("rows")
    with drawing_style():
        drawn: dict[str, Any] = {
            "loss": own and _training_curves(own, "loss", nats),
            "accuracy": own and _training_curves(own, "accuracy", unit),
            "runs_loss": several and _training_curves(several, "loss", nats),
            "runs_accuracy": several and _training_curves(several, "accuracy", unit),
            "learning": report.learning_curves and _learning_curves(report.learning_curves, score),
            "recipes": report.few_labels and _recipes(report.few_labels, unit),
            "reliability": report.reliability and _reliability(report.reliability, multi_label=multi_label),
            "confidence": _confidence(report.confidence, _("labels of rows") if multi_label else rows),
            "risk": report.risk_curve and _risk(report.risk_curve),
            "lengths": report.lengths and _lengths(report.lengths, unit),
            "map_labels": report.map and _map_by_label(report.map),
            "map_errors": report.map and _map_by_error(report.map),
        }
        return {name: to_svg(figure, name, *words[name]) for name, figure in drawn.items() if figure}


@contextmanager
def drawing_style() -> Iterator[None]:
    """The style in which all figures are drawn; UsageError without matplotlib."""
    require_extra("a report with figures", "report", ["matplotlib"])
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The fonts of the page have the characters that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure for a page: without prologue and metadata, with unique ids and the colours of the page.

    Args:
        title, description: read aloud instead of the drawing.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": f"featcache {name}"}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = text.replace("stroke: #000000; stroke-opacity: 0", "stroke: none")
    for placeholder, colour in _PLACEHOLDERS.items():
        text = text.replace(placeholder, colour)
    # Groups are called figure_1, axes_1 in every figure; nothing refers to them.
    text = re.sub(r'<g id="[a-zA-Z]+[a-zA-Z0-9._]*_\d+"(/?)>', r"<g\1>", text)
    size = re.search(r'<svg[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = f'<svg viewBox="0 0 {size[1]} {size[2]}" xmlns="http://www.w3.org/2000/svg"'
    head += f' xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-labelledby="{name}-t {name}-d">'
    head += f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    return re.sub(r"<svg[^>]*>", head, text, count=1).strip()


def new_axes(
    height: float = HEIGHT, left: float = 0.62, bottom: float = 0.5, legend_rows: int = 1
) -> tuple[Figure, Axes]:
    """One pair of axes with margins in inches: text is measured in another font than that of the page.

    Args:
        height: with a legend of one row above the axes; more rows are added to it.
    """
    from matplotlib.figure import Figure

    more = LEGEND_ROW * (legend_rows - 1)
    height, top = height + more, 0.35 + more
    figure = Figure(figsize=(WIDTH, height))
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (left / WIDTH, bottom / height, 1 - (left + 0.15) / WIDTH, 1 - (bottom + top) / height)
    )
    axes.patch.set_visible(False)
    return figure, axes


def _legend(
    axes: Axes, handles: Sequence[Any], labels: Sequence[str], columns: int = 2, scale: float = 1
) -> None:
    """A legend above the axes; given as lists, labels that begin with _ are shown too."""
    axes.legend(
        list(handles), list(labels), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns,
        borderaxespad=0.2, handlelength=1.4, columnspacing=1.2, markerscale=scale,
    )  # fmt: skip


def _percent(*axes: Any) -> None:
    """Write shares in percent, with no mark below 0 or above 100."""
    from matplotlib.ticker import FixedLocator

    for axis in axes:
        axis.set_major_locator(FixedLocator([at for at in axis.get_majorticklocs() if -1e-9 < at < 1 + 1e-9]))
        axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")


def _points_with_intervals(
    axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[Any], intervals: Sequence[Interval], **how: Any
) -> Any:
    """Connected points with an error bar each."""
    low, high = zip(*intervals, strict=True)
    gaps = [np.maximum(np.subtract(y, low), 0), np.maximum(np.subtract(high, y), 0)]
    return axes.errorbar(x, y, gaps, **{"marker": "o", "elinewidth": 1, **how})


def _training_curves(curves: Sequence[TrainingCurve], metric: str, unit: str) -> Figure:
    """Train and validation of one run, or validation of several, with a dot at the epoch that was kept."""
    one, shown = len(curves) == 1, curves[:DRAWN_RUNS]
    beside = len(shown) < 3  # in the legend, where names have less room then
    figure, axes = new_axes(legend_rows=1 if beside else len(shown))
    handles, labels = [], []
    for number, curve in enumerate(shown):
        parts = ("train", "validation") if one else ("validation",)
        for place, part in enumerate(parts, start=number):
            values = getattr(curve, f"{part}_{metric}")
            handles.append(axes.plot(curve.epoch, values, LINES[place % len(LINES)], color=SERIES[place])[0])
            labels.append(_(part) if one else _short(curve.run, 26 if beside else 50))
        if curve.best_epoch is not None and curve.best_epoch in curve.epoch:
            best = values[curve.epoch.index(curve.best_epoch)]
            axes.plot([curve.best_epoch], [best], "o", color=handles[-1].get_color(), ms=5)
    axes.set(xlabel=_("epoch (dot: the one kept)"), ylabel=unit)
    if metric == "accuracy":
        _percent(axes.yaxis)
    _legend(axes, handles, labels, 1 + beside)
    return figure


def _learning_curves(curves: Sequence[ScoreByRows], score: str) -> Figure:
    from matplotlib.ticker import NullLocator

    figure, axes = new_axes(legend_rows=max(1, min(len(curves), len(SERIES))))
    handles = []
    for curve, colour, mark in zip(curves, SERIES, MARKS, strict=False):
        rows, values, low, high = zip(*curve.points, strict=True)
        intervals = list(zip(low, high, strict=True))
        handles.append(_points_with_intervals(axes, rows, values, intervals, color=colour, marker=mark, ms=4))
    names = {"accuracy": score, "macro_f1": _("macro F1")}
    scored = "{head}, {split} {score}"
    labels = [
        _(scored, head=curve.head, split=_(curve.split), score=names.get(curve.metric, curve.metric))
        for curve in curves[: len(SERIES)]
    ]
    axes.set(xscale="log", xlabel=_("labelled train rows"), ylabel=_("score, %"))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    _percent(axes.yaxis)
    _legend(axes, handles, labels, 1)
    return figure


def _recipes(made: SavedComparison, unit: str) -> Figure:
    """The score of each recipe by rows a class, with its standard deviation; points stand side by side."""
    from matplotlib.ticker import FixedLocator, NullLocator

    names = list(dict.fromkeys(one.recipe for one in made.scores))[: len(SERIES)]
    figure, axes = new_axes(legend_rows=len(names))
    handles = []
    for place, (name, colour, mark) in enumerate(zip(names, SERIES, MARKS, strict=False)):
        own = [one for one in made.scores if one.recipe == name]
        rows = [one.rows_per_class * 1.04 ** (place - (len(names) - 1) / 2) for one in own]
        spreads = [one.deviation or 0.0 for one in own]
        ends = [(one.accuracy - by, one.accuracy + by) for one, by in zip(own, spreads, strict=True)]
        accuracies = [one.accuracy for one in own]
        handles.append(_points_with_intervals(axes, rows, accuracies, ends, color=colour, marker=mark, ms=4))
    axes.set(xscale="log", xlabel=_("train rows of each class"), ylabel=unit)
    axes.xaxis.set_major_locator(FixedLocator(sorted({one.rows_per_class for one in made.scores})))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    _percent(axes.yaxis)
    _legend(axes, handles, list(map(translated, names)), 1)
    return figure


def _reliability(bins: Sequence[ConfidenceBin], *, multi_label: bool) -> Figure:
    """Accuracy against confidence; on the diagonal they are equal."""
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    intervals = [one.interval for one in bins]
    confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
    _points_with_intervals(axes, confidence, accuracy, intervals, color=SERIES[0], ms=4.5, linewidth=1.2)
    start = 0.0 if min(one.from_ for one in bins) < 0.4 else 0.4
    lowest = min(start, *(low for low, _ in intervals if low is not None))
    x, y = (noted("probability of a label, %"), noted("rows that have it, %")) if multi_label else _SURE
    axes.set(xlim=(start, 1.01), ylim=(lowest, 1.02), xlabel=_(x), ylabel=_(y))
    _percent(axes.xaxis, axes.yaxis)
    return figure


def _confidence(counts: ConfidenceHistogram, unit: str) -> Figure:
    figure, axes = new_axes()
    edges, right, wrong = np.array(counts.edges), np.array(counts.right), np.array(counts.wrong)
    widths = np.diff(edges) * 0.92
    middle = (edges[1:] + edges[:-1]) / 2
    lower = axes.bar(middle, right, widths, color=RIGHT)
    upper = axes.bar(middle, wrong, widths, bottom=right, color=WRONG)
    there = np.flatnonzero(right + wrong)
    axes.set(xlim=(float(edges[there[0]]) if len(there) else 0, 1), xlabel=_(_SURE[0]), ylabel=unit)
    axes.grid(False, axis="x")
    _percent(axes.xaxis)
    _legend(axes, [lower, upper], [_("right"), _("wrong")])
    return figure


def _risk(curve: RiskCurve) -> Figure:
    """Wrong answers by the share of rows that are answered; a dot where the head stops."""
    figure, axes = new_axes()
    coverage, risk = zip(*curve.points, strict=True)
    axes.plot(coverage, risk, color=SERIES[0])
    if curve.scores and curve.scores.risk is not None:
        axes.plot([curve.scores.coverage], [curve.scores.risk], "o", color=SERIES[1], ms=6)
    axes.set(xlim=(0, 1.01), xlabel=_("rows that are answered, %"), ylabel=_("of these wrong, %"))
    axes.set_ylim(bottom=0)
    _percent(axes.xaxis, axes.yaxis)
    return figure


def _lengths(bins: Sequence[LengthBin], unit: str) -> Figure:
    figure, axes = new_axes()
    places, accuracy = np.arange(len(bins)), [one.accuracy for one in bins]
    intervals = [one.interval for one in bins]
    _points_with_intervals(axes, places, accuracy, intervals, color=SERIES[0], ms=4.5, linewidth=1.2)
    names = [f"{one.from_}" if one.from_ == one.to else f"{one.from_}-{one.to}" for one in bins]
    axes.set_xticks(places, names, fontsize=7.5)
    axes.set(xlabel=_("tokens of the text"), ylabel=unit)
    _percent(axes.yaxis)
    return figure


def _map_by_label(points: FeatureMap) -> Figure:
    """The rows in two dimensions by label; the rarer of many labels are one series."""
    kinds = np.array([label_text(label) for label in points.label], object)
    names, counts = np.unique(kinds.astype(str), return_counts=True)
    often = names[np.argsort(-counts, kind="stable")]
    kept = names if len(often) <= len(SERIES) else often[: len(SERIES) - 1]
    others = _("others")
    kinds = np.where(np.isin(kinds.astype(str), kept), kinds.astype(str), others)
    series = dict(zip(kept.tolist(), SERIES, strict=False))
    return _map(points, kinds, series if len(kept) == len(often) else series | {others: SERIES[-1]})


def _map_by_error(points: FeatureMap) -> Figure:
    """The rows in two dimensions, the wrong ones over the right ones."""
    right, wrong = _("right"), _("wrong")
    return _map(points, np.where(points.right, right, wrong), {right: RIGHT, wrong: WRONG})


def _map(points: FeatureMap, kinds: np.ndarray, series: dict[str, str]) -> Figure:
    x, y = np.array(points.x), np.array(points.y)
    figure, axes = new_axes(3.3, left=0.2, bottom=0.25)
    handles = [
        axes.plot(x[kinds == kind], y[kinds == kind], mark, ms=2.6, alpha=0.65, color=colour, mec="none")[0]
        for (kind, colour), mark in zip(series.items(), MARKS, strict=False)
    ]
    axes.set(xticks=[], yticks=[])
    _legend(axes, handles, [_short(kind, 14) for kind in series], min(len(series), 4), scale=2.5)
    return figure


def _short(text: str, most: int) -> str:
    """`text` on one line in at most `most` cells."""
    return clip(" ".join(text.split()), most)
