"""A report as one HTML page that needs nothing else, and the words that it and the Markdown share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.reporting.figures import FIGURES, figures

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
)


def to_html(document: Mapping[str, Any]) -> str:
    """The page: texts escaped, no script, no request to anywhere (its own policy forbids both).

    Args:
        document: as `featcache.reporting.build.build_report` returns it.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed.
    """
    drawn = dict.fromkeys(FIGURES) | figures(document)
    template = environment_of(autoescape=True).get_template("report.html.jinja")
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return template.render(**words(document), figures=drawn, css=css)


def environment_of(*, autoescape: bool) -> Environment:
    """The templates beside this file, with the filters below."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(
            "reports are written with Jinja2, which is not installed", hint="pip install 'featcache[report]'"
        ) from error
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {
        function.__name__: function
        for function in (
            percent, number, seconds, ends, share, times, counts, names, where, excerpt, pick, against,
            metric, metric_interval,
        )
    }  # fmt: skip
    return made


def words(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates ask for: the document, and sentences made of it."""
    about, drawn = document["about"], document["map"]
    caption = ""
    if drawn:
        some = len(drawn["x"])
        which = f"{some:,} of {drawn['rows']:,} rows" if some < drawn["rows"] else "all rows"
        how = "UMAP" if drawn["method"] == "umap" else "The first two principal components"
        kept = f" ({percent(drawn['explained'])} of the variance)" if drawn["explained"] is not None else ""
        caption = f"{how}{kept}; {which}."
    settings = [
        ("model", about["model"]), ("revision", about["revision"]), ("view", about["view"]),
        ("prompt", repr(about["prompt"]) if about["prompt"] else None),
        ("longest text, tokens", about["max_length"]),
        ("head", about["head"]), *about["settings"].items(), ("seed", about["seed"]),
        ("parameters", number(about["parameters"])), ("trained", about["created"]),
    ]  # fmt: skip
    return {
        **document,
        "metric_names": METRIC_NAMES,
        "most_classes": MOST_CLASSES,
        "map_caption": caption,
        "settings": [(name.replace("_", " "), value) for name, value in settings if value is not None],
    }


# --- filters ------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """0.123 -> '0.12 s', 75 -> '1 min 15 s', 200,000 -> '56 h'."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, left = divmod(minutes, 60)
    if hours >= 10:
        return f"{value / 3600:.0f} h"
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def ends(interval: Sequence[float | None] | None) -> str:
    """(0.85, 0.89) -> '[85.00, 89.00]'."""
    if not interval or None in interval:
        return ""
    return "[" + ", ".join(f"{100 * end:.2f}" for end in interval if end is not None) + "]"


def metric(found: Mapping[str, Any], name: str) -> str:
    """Log loss is no share."""
    value = found["value"]
    return percent(value) if name != "log_loss" or value is None else f"{value:.4f}"


def metric_interval(found: Mapping[str, Any], name: str) -> str:
    low, high = found["interval"]
    if low is None or high is None:
        return ""
    return f"{low:.4f} to {high:.4f}" if name == "log_loss" else f"{100 * low:.2f} to {100 * high:.2f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} times" if value >= 10 else f"{value:.1f} times"


def counts(by_name: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in by_name.items())


def names(label: str | Sequence[str]) -> str:
    whole = label if isinstance(label, str) else ", ".join(label) or "none"
    return whole if len(whole) <= LABEL else whole[:LABEL] + "…"


def where(row: Mapping[str, Any]) -> str:
    """The row of the source, or the beginning of its hash; with its split where that is not plain."""
    place = str(row["row"]) if row["row"] is not None else row["row_hash"][:8]
    return f"{row['split']} {place}" if "split" in row else place


def excerpt(text: str | None) -> str:
    """The beginning of a text; the page need not hold a book."""
    if text is None:
        return "-"
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip("…") + "…"


def pick(row: Mapping[str, Any], key: str) -> str:
    """A cell of a table of rows."""
    value = row[key]
    if isinstance(value, Mapping):
        return where(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    return names(value) if value is not None else "-"


def against(run: str, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What the paired test says of a run."""
    for made in comparisons:
        if made["run"] == run:
            change = made["accuracy"]
            verdict = "tie" if change["tie"] else "better" if change["difference"] > 0 else "worse"
            return f"{100 * change['difference']:+.2f} {ends(change['interval'])} {verdict}"
    return ""
