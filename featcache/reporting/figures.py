"""The figures of a report, as SVG for a page: drawn by matplotlib, coloured by the page's own variables.

Letters stay letters (`svg.fonttype: none`), so that the page's fonts write Chinese and text can be searched.
Every colour is a stand-in that becomes `currentColor` or a CSS variable in the end; so one figure serves
light, dark and print.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 2.9  # inches; on a page 1 inch is 96 px, so that 9 pt letters are 12 px
INK, RULE = "#0a0b0c", "#0d0e0f"
SERIES = ("#0a0a10", "#0a0a11", "#0a0a12", "#0a0a13", "#0a0a14", "#0a0a15", "#0a0a16", "#0a0a17")
RIGHT, WRONG = SERIES[0], SERIES[1]
FIGURES = (
    "loss", "accuracy", "learning", "confusion", "classes", "reliability", "confidence", "lengths",
    "map_labels", "map_errors",
)  # fmt: skip
MOST_CLASSES = 30  # bars, or names along a matrix
_STAND_INS = {INK: "currentColor", RULE: "var(--rule)"} | {
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
MOST_CELLS = 1500  # of a matrix, those with the largest shares


def figures(document: Mapping[str, Any]) -> dict[str, str]:
    """Every figure that the document has numbers for, by name: SVG texts.

    Args:
        document: as `featcache.reporting.build.build_report` returns it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn: dict[str, tuple[Callable[..., Figure], dict[str, Any], Any]] = {
        "loss": (_curves, {"values": "loss"}, document["curves"]),
        "accuracy": (_curves, {"values": "accuracy"}, document["curves"]),
        "learning": (_learning, {}, document["learning_curves"]),
        "confusion": (_confusion, {"names": document["about"]["label_names"]}, document["confusion"]),
        "classes": (_classes, {}, document["classes"]),
        "reliability": (_reliability, {}, document["reliability"]),
        "confidence": (_confidence, {}, document["confidence"]),
        "lengths": (_lengths, {}, document["lengths"]),
        "map_labels": (_map, {"by": "label"}, document["map"]),
        "map_errors": (_map, {"by": "right"}, document["map"]),
    }
    with _style():
        return {
            name: _svg(function(data, **more), name) for name, (function, more, data) in drawn.items() if data
        }


@contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(
            "the figures of a report are drawn by matplotlib, which is not installed",
            hint="pip install 'featcache[report]'",
        ) from error
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The page's fonts have the letters that the font for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _svg(figure: Figure, name: str) -> str:
    """What goes into a page: no prologue, no metadata, ids of its own, the page's colours."""
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
    for stand_in, colour in _STAND_INS.items():
        text = text.replace(stand_in, colour)
    # Groups are called figure_1, axes_1 in every figure; nothing refers to them.
    text = re.sub(r'<g id="[a-zA-Z]+[a-zA-Z0-9._]*_\d+"(/?)>', r"<g\1>", text)
    size = re.search(r'<svg[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = f'<svg viewBox="0 0 {size[1]} {size[2]}" xmlns="http://www.w3.org/2000/svg"'
    head += ' xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">'
    return re.sub(r"<svg[^>]*>", head, text, count=1).strip()


def _axes(height: float = HEIGHT, left: float = 0.62, bottom: float = 0.5) -> tuple[Figure, Axes]:
    """One pair of axes with margins in inches, since letters are measured in another font than the page's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (left / WIDTH, bottom / height, 1 - (left + 0.15) / WIDTH, 1 - (bottom + 0.35) / height)
    )
    axes.patch.set_visible(False)
    return figure, axes


def _legend(
    axes: Axes, handles: Sequence[Any], labels: Sequence[str], columns: int = 2, scale: float = 1
) -> None:
    """Above the axes; names that begin with _ are shown like any other."""
    axes.legend(
        list(handles), list(labels), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns,
        borderaxespad=0.2,
        handlelength=1.4, columnspacing=1.2, markerscale=scale,
    )  # fmt: skip


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def _curves(curves: Sequence[Mapping[str, Any]], values: str) -> Figure:
    """Of one run train and validation; of several the validation of each, the first thicker."""
    figure, axes = _axes()
    handles, labels = [], []
    one = len(curves) == 1
    for number, curve in enumerate(curves[: len(SERIES)]):
        for part in ("train", "validation") if one else ("validation",):
            colour = SERIES[("train", "validation").index(part) if one else number]
            line = axes.plot(curve["epoch"], curve[f"{part}_{values}"], color=colour)[0]
            handles.append(line)
            labels.append(part if one else clip(curve["run"], 26))
        if curve["best_epoch"] in curve["epoch"]:
            place = curve["epoch"].index(curve["best_epoch"])
            axes.plot(
                [curve["best_epoch"]],
                [curve[f"validation_{values}"][place]],
                "o",
                color=handles[-1].get_color(),
                ms=5,
            )
    axes.set_xlabel("epoch (dot: the one kept)")
    axes.set_ylabel("loss, nats a row" if values == "loss" else "accuracy, %")
    if values == "accuracy":
        _percent(axes.yaxis)
    _legend(axes, handles, labels, 2 if one else 1 + (len(labels) < 3))
    return figure


def _learning(curves: Sequence[Mapping[str, Any]]) -> Figure:
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, axes = _axes()
    handles, labels = [], []
    for number, curve in enumerate(curves[: len(SERIES)]):
        rows, score, low, high = (np.array(column) for column in zip(*curve["points"], strict=True))
        gaps = [np.maximum(score - low, 0), np.maximum(high - score, 0)]
        handles.append(axes.errorbar(rows, score, gaps, color=SERIES[number], marker="o", ms=4, elinewidth=1))
        labels.append(f"{curve['head']}, {curve['split']} {curve['metric']}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled train rows")
    axes.set_ylabel("score, %")
    _percent(axes.yaxis)
    _legend(axes, handles, labels, 1)
    return figure


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Shares of each true class as shades, counts as numbers while there is room for them."""
    from matplotlib.colors import to_rgba

    table = np.array(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    classes = len(table)
    named = classes <= MOST_CLASSES
    labels = [clip(name, 14) for name in names] if named else []
    margin = 0.45 + max((cells(label) for label in labels), default=2) * 0.075
    height = HEIGHT if classes <= 4 else min(HEIGHT + 0.18 * (classes - 4), 6.0)
    figure, axes = _axes(height, left=margin, bottom=min(margin, 1.5) + 0.1 if classes > 4 else 0.55)
    colours = np.tile(to_rgba(SERIES[0]), (*table.shape, 1))
    order = np.argsort(-shares, axis=None, kind="stable")[:MOST_CELLS]
    for i, j in zip(*np.unravel_index(order, shares.shape), strict=True):
        if not shares[i, j]:
            break
        axes.add_patch(_cell(j, i, colours[i, j], 0.08 + 0.62 * float(shares[i, j])))
    if classes <= 12:
        for i in range(classes):
            for j in range(classes):
                axes.text(
                    j, i, f"{table[i, j]:,}", ha="center", va="center", fontsize=9 if classes <= 6 else 7
                )
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.grid(False)
    ticks = range(classes) if named else []
    size = 9 if classes <= 12 else 7
    axes.set_xticks(ticks, labels, rotation=0 if classes <= 4 else 90, fontsize=size)
    axes.set_yticks(ticks, labels, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def _cell(x: int, y: int, colour: Any, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=(*colour[:3], alpha), linewidth=0)


def _classes(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Precision, recall and F1; of many classes those with the lowest F1."""
    shown = sorted(lines, key=lambda line: line["f1"])[:MOST_CLASSES] if len(lines) > MOST_CLASSES else lines
    labels = [clip(line["label"], 16) for line in shown]
    margin = 0.3 + max(cells(label) for label in labels) * 0.075
    height = max(1.6, 0.95 + 0.42 * len(shown)) if len(shown) <= 8 else 0.95 + 0.24 * len(shown)
    figure, axes = _axes(height, left=margin, bottom=0.45)
    places, bars = np.arange(len(shown)), []
    for number, name in enumerate(("precision", "recall", "f1")):
        values = [line[name] for line in shown]
        bars.append(axes.barh(places + 0.27 * (number - 1), values, 0.25, color=SERIES[number]))
    axes.set_yticks(places, labels)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(False, axis="y")
    axes.set_xlabel("%")
    _percent(axes.xaxis)
    _legend(axes, bars, ["precision", "recall", "F1"], 3)
    return figure


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence: on the diagonal, 80 % sure is right 80 times of 100."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    x, y = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    low, high = zip(*(one["interval"] for one in bins), strict=True)
    gaps = [np.maximum(np.subtract(y, low), 0), np.maximum(np.subtract(high, y), 0)]
    axes.errorbar(x, y, gaps, color=SERIES[0], marker="o", ms=4.5, elinewidth=1, linewidth=1.2)
    start = 0.0 if min(one["from"] for one in bins) < 0.4 else 0.4
    axes.set_xlim(start, 1.01)
    axes.set_ylim(min(start, min(low)), 1.02)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("accuracy, %")
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    return figure


def _confidence(counts: Mapping[str, Any]) -> Figure:
    figure, axes = _axes()
    edges, right, wrong = (np.array(counts[name]) for name in ("edges", "right", "wrong"))
    widths = np.diff(edges) * 0.92
    middle = (edges[1:] + edges[:-1]) / 2
    bars = [
        axes.bar(middle, right, widths, color=RIGHT),
        axes.bar(middle, wrong, widths, bottom=right, color=WRONG),
    ]
    there = np.flatnonzero(right + wrong)
    axes.set_xlim(float(edges[there[0]]) if len(there) else 0, 1)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("rows")
    axes.grid(False, axis="x")
    _percent(axes.xaxis)
    _legend(axes, bars, ["right", "wrong"])
    return figure


def _lengths(bins: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _axes()
    places, y = np.arange(len(bins)), [one["accuracy"] for one in bins]
    low, high = zip(*(one["interval"] for one in bins), strict=True)
    gaps = [np.maximum(np.subtract(y, low), 0), np.maximum(np.subtract(high, y), 0)]
    axes.errorbar(places, y, gaps, color=SERIES[0], marker="o", ms=4.5, elinewidth=1, linewidth=1.2)
    names = [f"{one['from']}" if one["from"] == one["to"] else f"{one['from']}-{one['to']}" for one in bins]
    axes.set_xticks(places, names, fontsize=7.5)
    axes.set_xlabel("tokens of the text")
    axes.set_ylabel("accuracy, %")
    _percent(axes.yaxis)
    return figure


def _map(points: Mapping[str, Any], by: str) -> Figure:
    """The rows in two dimensions; by label, or the wrong ones over the right ones."""
    x, y = np.array(points["x"]), np.array(points["y"])
    if by == "right":
        kinds = np.where(points["right"], "right", "wrong")
        shown = [("right", RIGHT), ("wrong", WRONG)]
    else:
        kinds = np.array(
            ["+".join(one) or "none" if isinstance(one, list) else one for one in points["label"]], object
        )
        names, counts = np.unique(kinds.astype(str), return_counts=True)
        often = names[np.argsort(-counts, kind="stable")]
        kept = names if len(often) <= len(SERIES) else often[: len(SERIES) - 1]
        shown = list(zip(kept.tolist(), SERIES, strict=False))
        kinds = np.where(np.isin(kinds.astype(str), kept), kinds.astype(str), "others")
        if len(kept) < len(often):
            shown.append(("others", SERIES[-1]))
    figure, axes = _axes(3.3, left=0.2, bottom=0.25)
    handles = [
        axes.plot(x[kinds == kind], y[kinds == kind], "o", ms=2.6, alpha=0.65, color=colour, mec="none")[0]
        for kind, colour in shown
    ]
    axes.set_xticks([])
    axes.set_yticks([])
    _legend(axes, handles, [clip(kind, 14) for kind, _ in shown], min(len(shown), 4), scale=2.5)
    return figure


def cells(text: str) -> int:
    """Columns that a text takes; Chinese takes two a character."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def clip(text: str, most: int) -> str:
    """`text` on one line in at most `most` columns."""
    line = " ".join(text.split())
    if cells(line) <= most:
        return line
    line = line[:most]  # no character takes less than a column
    while cells(line) > most - 1:
        line = line[:-1]
    return line + "…"
