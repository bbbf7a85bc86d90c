"""What the HTML and the Markdown of a report share: the templates' environment, filters and sentences."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache.view_names import LEXICAL
from featcache.inspection.document import DoubtedRow, LeakedRow, ListedRow, OutlierRow, label_text
from featcache.reporting import parts
from featcache.reporting.document import ExtractionCost, Label, Mistake, RunReport
from featcache.system.packages import require_extra
from featcache.system.units import interval_text, seconds_text, share_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
EXCERPT, SHORT = 600, 200  # characters of a text on the page, and of one in a cell of the matrix
LABEL = 100  # characters of a label
MOST_CLASSES = 200  # lines of the table; all are in the JSON
LISTED = 20  # mistakes
LIGHTS = ("bad", "look", "good")  # states of data checks, worst first


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
        "by_light": lambda checks: sorted(checks, key=lambda one: LIGHTS.index(one.state)),
        "counts": lambda by_name: ", ".join(f"{count:,} {name}" for name, count in by_name.items()),
        "ends": lambda interval: interval_text(*interval) if interval else "",
        "excerpt": excerpt,
        "lang": language_of,
        "names": names,
        "number": lambda value: "-" if value is None else f"{value:,.0f}",
        "percent": parts.percent,
        "says": says,
        "share": share_text,
        "tight": lambda text: re.sub(r"(?<=\d) (?=(?:%|s|min|h)(?!\w))", "\u00a0", text),
        "short": lambda text: excerpt(text, SHORT),
    }
    return made


def template_values(report: RunReport) -> dict[str, Any]:
    """The variables of the templates: the fields of the report, and parts and sentences made of them."""
    about = report.about
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
        "axis": parts.run_axis(report),
        "calibration": _calibration(report),
        "cards": parts.cards(report),
        "cost_words": cost_words(report.cost) if report.cost else "",
        "leaks": about.leaks,
        "mistakes": report.certain_mistakes[:LISTED],
        "most_classes": MOST_CLASSES,
        "settings": [(name, value) for name, value in shown_settings if value is not None],
        "shown_matrix": parts.shown_matrix(report),
        "split_table": parts.split_table(report.data) if report.data else [],
        "words_alone": words_alone,
    }


def figure_words(report: RunReport) -> dict[str, tuple[str, str]]:
    """Title and description of each figure, by its name."""
    features, caption, several = report.map, "", report.about.multi_label
    score = report.about.score_name.capitalize()
    if features:
        shown = len(features.x)
        which = f"{shown:,} of {features.rows:,} rows" if shown < features.rows else "all rows"
        how = "UMAP" if features.method == "umap" else "The first two principal components"
        known = features.explained is not None
        kept = f" ({parts.percent(features.explained)} of the variance)" if known else ""
        caption = f"{how}{kept}; {which}."
    dashed = (
        "On the dashed line, of the rows with 80 % for a label 80 of 100 have it."
        if several
        else "On the dashed line, 80 % sure is right 80 times of 100."
    )
    dot = " Dot: where this head stops." if report.risk_curve and report.risk_curve.scores else ""
    return {
        "loss": ("Loss by epoch", "Cross-entropy; lower is better."),
        "accuracy": (f"{score} by epoch", "The kept epoch is the best on validation."),
        "runs_loss": ("Loss of the runs that have epochs", "Cross-entropy; lower is better."),
        "runs_accuracy": (f"{score} of the runs that have epochs", "The kept epoch is the best."),
        "learning": ("Score by labelled rows", "Measured by featcache curve, with 95 % intervals."),
        "reliability": ("Reliability", f"{dashed} Bars: 95 % intervals."),
        "confidence": (
            "Confidence",
            "Every label of every row, by the confidence in giving it or not."
            if several
            else "Rows by the confidence of the head; the wrong ones are above the right ones.",
        ),
        "risk": (
            "Wrong answers by coverage",
            f"The surest rows are answered first; on the right end every row is.{dot}",
        ),
        "lengths": (
            f"{score} by length of the text",
            "About equally many rows each, with 95 % intervals.",
        ),
        "map_labels": ("By label", caption),
        "map_errors": ("By error", "The same rows; wrong ones lie over right ones."),
    }


def says(row: ListedRow | Mistake) -> str:
    """What is said below the text of a listed row, and why it is listed."""
    label = names(row.label)
    if isinstance(row, Mistake):
        sure = f"{label}, predicted {names(row.predicted)}, {parts.percent(row.confidence)} sure."
        return f"{sure} {row.reason}".rstrip()
    if isinstance(row, DoubtedRow):
        belief = f"Heads trained on the other rows give this label {parts.percent(row.belief)}"
        return f"{label}, rather {names(row.suggested)}. {belief}."
    if isinstance(row, LeakedRow):
        near = "the same text" if row.cosine >= 1 else f"a nearly equal text (cosine {row.cosine:.3f})"
        return f"{label}; {row.as_.where} has {near}, with the label {names(row.as_.label)}."
    if isinstance(row, OutlierRow):
        return f"{label}; distance to its nearest train texts {row.distance:.2f}."
    return label


def cost_words(cost: ExtractionCost) -> str:
    """What was computed once, beside a loop that computes it in every epoch."""
    heads = f"{cost.heads} head{'s' if cost.heads != 1 else ''}"
    assumed = " (assumed; this head has no epochs)" if cost.assumed_epochs else ""
    loop = f", about {seconds_text(cost.tutorial_seconds)}" if cost.tutorial_seconds is not None else ""
    factor = f"{cost.factor:,.{0 if cost.factor >= 10 else 1}f} times the tokens" if cost.factor else ""
    return (
        f"The backbone read {cost.texts_once:,} texts once, {cost.tokens_once:,} tokens in "
        f"{seconds_text(cost.extraction_seconds)}, for {heads} that took {seconds_text(cost.head_seconds)}. "
        f"A loop that runs it in each of {cost.epochs} epochs{assumed} reads {cost.texts_tutorial:,} texts, "
        f"{cost.tokens_tutorial:,} tokens with padding in batches of {cost.batch}{loop}, for one head: "
        f"{factor}. "
        "Its time is an estimate, at the tokens a second that were measured here."
    )


def _calibration(report: RunReport) -> list[str]:
    """Log loss, calibration error and temperature, a sentence each."""
    found, said = report.headline, []
    for name, title in (("log_loss", "Log loss"), ("ece", "Calibration error")):
        if name in found and (value := found[name].value) is not None:
            ends = parts.spread(found[name].interval, name)
            ends = f" (95 %: {ends})" if ends else ""
            said.append(f"{title} on {report.split}: {parts.metric(value, name)}{ends}.")
    if made := report.about.calibration:
        before, after = parts.percent(made.ece_before), parts.percent(made.ece_after)
        moved = f"Temperature {made.temperature:.2f} moves that of validation from {before} to {after}."
        kept = f"No temperature is applied; that of validation is {after}."
        said.append(kept if made.temperature == 1 else moved)
    return said


def language_of(text: str | None) -> str:
    """The `lang` of a text by its script: `zh`, `ja`, `ko`; empty (unknown) for others."""
    for lang, script in (("ja", "[\u3040-\u30ff]"), ("ko", "[\uac00-\ud7af]"), ("zh", "[\u3400-\u9fff]")):
        if re.search(script, text or ""):
            return lang
    return ""


def names(label: Label) -> str:
    """A label, or several with commas between, at most LABEL characters."""
    whole = label_text(label)
    return whole if len(whole) <= LABEL else whole[:LABEL] + "…"


def excerpt(text: str | None, most: int = EXCERPT) -> str:
    """The first `most` characters of a text."""
    if text is None:
        return "-"
    return text if len(text) <= most else text[:most].rstrip("…") + "…"
