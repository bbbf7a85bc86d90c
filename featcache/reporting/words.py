"""What the HTML and the Markdown of a report share: the templates' environment, filters and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache.view_names import LEXICAL
from featcache.inspection.document import ListedRow, label_text
from featcache.reporting.document import (
    HeadlineMetric,
    Interval,
    Label,
    MetricChange,
    RunComparison,
    RunReport,
)
from featcache.system.packages import require_extra
from featcache.system.units import interval_text, percent_text, seconds_text, share_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
EXCERPT = 600  # characters of a text on the page
LABEL = 100  # characters of a label
MOST_CLASSES = 200  # lines of the table; all are in the JSON
METRIC_NAMES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("log_loss", "log loss"),
    ("ece", "calibration error"),
    ("cost", "mean cost of a row"),
)


def environment_of(*, autoescape: bool) -> Environment:
    """The templates beside this file, with the filters below.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    require_extra("a report", "report", ["jinja2"])
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "against": against,
        "clean_against": clean_against,
        "clean_metric": lambda found, name: metric(replace(found, value=found.clean), name),
        "clean_interval": lambda found, name: metric_interval(
            replace(found, interval=found.clean_interval), name
        ),
        "counts": lambda by_name: ", ".join(f"{count:,} {name}" for name, count in by_name.items()),
        "ends": ends,
        "excerpt": excerpt,
        "metric": metric,
        "metric_interval": metric_interval,
        "names": names,
        "number": lambda value: "-" if value is None else f"{value:,.0f}",
        "percent": percent,
        "pick": pick,
        "seconds": seconds_text,
        "share": share_text,
        "times": lambda value: "-" if value is None else f"{value:,.{0 if value >= 10 else 1}f} times",
    }
    return made


def template_values(report: RunReport) -> dict[str, Any]:
    """The variables of the templates: the fields of the report, and sentences made of them."""
    about, features = report.about, report.map
    caption = ""
    if features:
        shown = len(features.x)
        which = f"{shown:,} of {features.rows:,} rows" if shown < features.rows else "all rows"
        how = "UMAP" if features.method == "umap" else "The first two principal components"
        kept = f" ({percent(features.explained)} of the variance)" if features.explained is not None else ""
        caption = f"{how}{kept}; {which}."
    words_alone = about.view == LEXICAL  # then no backbone has a part in it
    backbone = {
        "model": about.model,
        "revision": about.revision,
        "prompt": repr(about.prompt) if about.prompt else None,
        "longest text, tokens": about.max_length,
    }
    settings = {
        **({} if words_alone else backbone),
        "view": about.view.replace(",", ", "),
        "head": about.head,
        **about.settings,
        "seed": about.seed,
        "parameters": None if about.parameters is None else f"{about.parameters:,}",
        "trained": about.created,
    }
    shown_settings = [(name.replace("_", " "), value) for name, value in settings.items()]
    return {
        **{field.name: getattr(report, field.name) for field in fields(report)},
        "leaks": about.leaks,
        "near_leaks": report.near_leaks,
        "any_clean": any(each.clean is not None for each in report.headline.values()),
        "words_alone": words_alone,
        "metric_names": METRIC_NAMES,
        "most_classes": MOST_CLASSES,
        "map_caption": caption,
        "settings": [(name, value) for name, value in shown_settings if value is not None],
    }


def percent(value: float | None) -> str:
    """0.8975 as `89.75 %`."""
    return percent_text(value, " %")


def ends(interval: Interval | None) -> str:
    """(0.85, 0.89) as `[85.00, 89.00]`; empty if it is not known."""
    return interval_text(*interval) if interval else ""


def metric(found: HeadlineMetric, name: str) -> str:
    """A metric in percent, but the log loss in nats and a cost as it is."""
    plain = name in ("log_loss", "cost") and found.value is not None
    return f"{found.value:.4f}" if plain else percent(found.value)


def metric_interval(found: HeadlineMetric, name: str) -> str:
    """The interval of a metric, like `metric`."""
    low, high = found.interval or (None, None)
    if low is None or high is None:
        return ""
    if name in ("log_loss", "cost"):
        return f"{low:.4f} to {high:.4f}"
    return f"{100 * low:.2f} to {100 * high:.2f}"


def names(label: Label) -> str:
    """A label, or several with commas between, at most LABEL characters."""
    whole = label_text(label)
    return whole if len(whole) <= LABEL else whole[:LABEL] + "…"


def excerpt(text: str | None) -> str:
    """The first EXCERPT characters of a text."""
    if text is None:
        return "-"
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip("…") + "…"


def pick(row: ListedRow, field: str) -> str:
    """A further field of a listed row as a cell of a table."""
    value = getattr(row, field)
    if isinstance(value, ListedRow):
        return value.where
    if isinstance(value, float):
        return f"{value:.3f}"
    return names(value) if value is not None else "-"


def against(run: str, comparisons: Sequence[RunComparison]) -> str:
    """The difference in accuracy of a run to the first one, and whether it is more than chance."""
    return _verdict({made.run: made.accuracy for made in comparisons}.get(run))


def clean_against(run: str, comparisons: Sequence[RunComparison]) -> str:
    """The same on the rows that do not leak."""
    return _verdict({made.run: made.clean_accuracy for made in comparisons}.get(run))


def _verdict(change: MetricChange | None) -> str:
    if change is None:
        return ""
    verdict = "tie" if change.tie else "better" if change.difference > 0 else "worse"
    return f"{100 * change.difference:+.2f} {ends(change.interval)} {verdict}"
