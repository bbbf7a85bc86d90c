"""What the HTML and the Markdown of a report share: the templates' environment, filters and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache.view_names import LEXICAL
from featcache.evaluation.bootstrap import SHARES, is_exact
from featcache.inspection.document import DoubtedRow, LeakedRow, ListedRow, OutlierRow, label_text
from featcache.reporting import parts
from featcache.reporting.document import ExtractionCost, Label, Mistake, RunReport
from featcache.system.packages import require_extra
from featcache.system.units import interval_text, seconds_text, share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import language, listed, ngettext, noted, paragraph
from featcache.translation.sentences import translated

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
EXCERPT, SHORT = 600, 200  # characters of a text on the page, and of one in a cell of the matrix
LABEL = 100  # characters of a label
MOST_CLASSES = 200  # lines of the table; all are in the JSON
LISTED = 20  # mistakes
DRAWN_RUNS = 8  # in one figure
LIGHTS = (noted("bad"), noted("look"), noted("good"))  # states of data checks, worst first
PAGE_LANGUAGES = {"en": "en", "zh": "zh-CN"}


def environment_of(*, autoescape: bool) -> Environment:
    """The templates beside this file, with the filters below; one object for each language.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    require_extra("a report", "report", ["jinja2"])
    return _environment(language(), autoescape=autoescape)


@cache  # it keeps the compiled templates, and compiling them takes longer than a report
def _environment(spoken: str, *, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def filled(message: str, **values: Any) -> Markup:
        """A message of the template, which is HTML, with texts that are escaped."""
        escaped = {name: escape(value) if isinstance(value, str) else value for name, value in values.items()}
        return Markup(_(message, **escaped))

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.globals |= {"_": filled, "page_language": PAGE_LANGUAGES[spoken]}
    made.globals["blank"] = paragraph(["", ""])  # between sentences
    made.filters |= {
        "by_light": lambda checks: sorted(checks, key=lambda one: LIGHTS.index(one.state)),
        "counts": counts,
        "ends": lambda interval: interval_text(*interval) if interval else "",
        "excerpt": excerpt,
        "lang": language_of,
        "listed": listed,
        "names": names,
        "paragraph": paragraph,
        "said": _,
        "translated": translated,
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
        noted("model"): about.model,
        noted("revision"): about.revision,
        noted("prompt"): repr(about.prompt) if about.prompt else None,
        noted("longest text, tokens"): about.max_length,
    }
    settings = {
        **({} if words_alone else backbone),
        noted("view"): about.view.replace(",", ", "),
        noted("head"): about.head,
        **about.settings,
        noted("seed"): about.seed,
        noted("parameters"): None if about.parameters is None else f"{about.parameters:,}",
        noted("trained"): about.created,
    }
    shown_settings = [(_(name.replace("_", " ")), value) for name, value in settings.items()]
    return {
        **{field.name: getattr(report, field.name) for field in fields(report)},
        "axis": parts.run_axis(report),
        "calibration": _calibration(report),
        "cards": parts.cards(report),
        "cost_words": cost_words(report.cost) if report.cost else "",
        "how_intervals": _how_intervals(report),
        "leaks": about.leaks,
        "mistakes_sentence": _mistakes_sentence(report),
        "mistakes": report.certain_mistakes[:LISTED],
        "most_classes": MOST_CLASSES,
        "settings": [(name, value) for name, value in shown_settings if value is not None],
        "shown_matrix": parts.shown_matrix(report),
        "split_table": parts.split_table(report.data) if report.data else [],
        "words_alone": words_alone,
    }


def _how_intervals(report: RunReport) -> str:
    """How the intervals of the page were made."""
    shares = [found for name, found in report.headline.items() if name in SHARES]
    known = [(one.value, one.interval) for one in shares] + [
        (one.clean, one.clean_interval) for one in shares
    ]
    known += [(run.accuracy, run.interval) for run in report.runs]
    if any(is_exact(share, interval) for share, interval in known):
        return _(
            "Intervals: exact binomial where every row is right or every row wrong, else bootstrap over rows."
        )
    return _("Intervals: bootstrap over rows.")


def figure_words(report: RunReport) -> dict[str, tuple[str, str]]:
    """Title and description of each figure, by its name."""
    several, score = report.about.multi_label, _(report.about.score_name).capitalize()
    dashed = (
        _("On the dashed line, of the rows with 80 % for a label 80 of 100 have it.")
        if several
        else _("On the dashed line, 80 % sure is right 80 times of 100.")
    )
    risk = [_("The surest rows are answered first; on the right end every row is.")]
    if report.risk_curve and report.risk_curve.scores:
        risk.append(_("Dot: where this head stops."))
    caption, some, count = _map_caption(report), list[str](), len(report.curves)
    if count > DRAWN_RUNS:
        some.append(_("Here the first {shown} of {count}.", shown=DRAWN_RUNS, count=count))
    return {
        "loss": (_("Loss by epoch"), _("Cross-entropy; lower is better.")),
        "accuracy": (_("{score} by epoch", score=score), _("The kept epoch is the best on validation.")),
        "runs_loss": (
            _("Loss of the runs that have epochs"),
            paragraph([_("Cross-entropy; lower is better."), *some]),
        ),
        "runs_accuracy": (
            _("{score} of the runs that have epochs", score=score),
            paragraph([_("The kept epoch is the best."), *some]),
        ),
        "learning": (
            _("Score by labelled rows"),
            _("Measured by featcache curve, with 95 % intervals."),
        ),
        "recipes": (_("Few labels: recipes side by side"), _recipes_caption(report)),
        "reliability": (_("Reliability"), paragraph([dashed, _("Bars: 95 % intervals.")])),
        "confidence": (
            _("Confidence"),
            _("Every label of every row, by the confidence in giving it or not.")
            if several
            else _("Rows by the confidence of the head; the wrong ones are above the right ones."),
        ),
        "risk": (_("Wrong answers by coverage"), paragraph(risk)),
        "lengths": (
            _("{score} by length of the text", score=score),
            _("About equally many rows each, with 95 % intervals."),
        ),
        "map_labels": (_("By label"), caption),
        "map_errors": (_("By error"), _("The same rows; wrong ones lie over right ones.")),
    }


def _map_caption(report: RunReport) -> str:
    """How the map was made, and of which rows."""
    if not (features := report.map):
        return ""
    shown = len(features.x)
    which = _("all rows")
    if shown < features.rows:
        which = _("{shown:,} of {rows:,} rows", shown=shown, rows=features.rows)
    if features.method == "umap":
        return _("UMAP; {which}.", which=which)
    if features.explained is None:
        return _("The first two principal components; {which}.", which=which)
    kept = "The first two principal components ({share} of the variance); {which}."
    return _(kept, share=parts.percent(features.explained), which=which)


def _recipes_caption(report: RunReport) -> str:
    """What was measured of recipes for few labels."""
    if not (found := report.few_labels):
        return ""
    measured = (
        "Measured by featcache curve --rows-per-class: {split} {score}, mean of {seeds}, bars: standard "
        "deviation."
    )
    seeds = ngettext("{count} seed", "{count} seeds", found.seeds)
    return _(measured, split=_(found.split), score=_(report.about.score_name), seeds=seeds)


def says(row: ListedRow | Mistake) -> str:
    """What is said below the text of a listed row, and why it is listed."""
    label = names(row.label)
    if isinstance(row, Mistake):
        sure = "{label}, predicted {predicted}, {share} sure."
        said = _(sure, label=label, predicted=names(row.predicted), share=parts.percent(row.confidence))
        return paragraph([said, row.reason] if row.reason else [said])
    if isinstance(row, DoubtedRow):
        rather = "{label}, rather {suggested}. Heads trained on the other rows give this label {belief}."
        belief = parts.percent(row.belief)
        return _(rather, label=label, suggested=names(row.suggested), belief=belief)
    if isinstance(row, LeakedRow):
        same = "{label}; {where} has the same text, with the label {other}."
        near = "{label}; {where} has a nearly equal text (cosine {cosine:.3f}), with the label {other}."
        about = {"label": label, "where": row.as_.where, "cosine": row.cosine, "other": names(row.as_.label)}
        return _(same if row.cosine >= 1 else near, **about)
    if isinstance(row, OutlierRow):
        far = "{label}; distance to its nearest train texts {distance:.2f}."
        return _(far, label=label, distance=row.distance)
    return label


def cost_words(cost: ExtractionCost) -> str:
    """What was computed once, beside a loop that computes it in every epoch."""
    heads = ngettext("{count} head", "{count} heads", cost.heads)
    assumed = _(" (assumed; this head has no epochs)") if cost.assumed_epochs else ""
    loop, factor = "", ""
    if cost.tutorial_seconds is not None:
        loop = _(", about {seconds}", seconds=seconds_text(cost.tutorial_seconds))
    if cost.factor:
        times = f"{cost.factor:,.{0 if cost.factor >= 10 else 1}f}"
        factor = _("{times} times the tokens", times=times)
    return _(
        "The backbone read {texts:,} texts once, {tokens:,} tokens in {extraction}, for {heads} that took "
        "{training}. A loop that runs it in each of {epochs} epochs{assumed} reads {loop_texts:,} texts, "
        "{loop_tokens:,} tokens with padding in batches of {batch}{loop}, for one head: {factor}. "
        "Its time is an estimate, at the tokens a second that were measured here.",
        texts=cost.texts_once, tokens=cost.tokens_once, extraction=seconds_text(cost.extraction_seconds),
        heads=heads, training=seconds_text(cost.head_seconds), epochs=cost.epochs, assumed=assumed,
        loop_texts=cost.texts_tutorial, loop_tokens=cost.tokens_tutorial, batch=cost.batch, loop=loop,
        factor=factor,
    )  # fmt: skip


def _calibration(report: RunReport) -> list[str]:
    """Log loss, calibration error and temperature, a sentence each."""
    found, said = report.headline, []
    for name, title in (("log_loss", noted("Log loss")), ("ece", noted("Calibration error"))):
        if name in found and (value := found[name].value) is not None:
            about = {"title": _(title), "split": _(report.split), "value": parts.metric(value, name)}
            if ends := parts.spread(found[name].interval, name):
                said.append(_("{title} on {split}: {value} (95 %: {ends}).", **about, ends=ends))
            else:
                said.append(_("{title} on {split}: {value}.", **about))
    if made := report.about.calibration:
        before, after = parts.percent(made.ece_before), parts.percent(made.ece_after)
        moved = "Temperature {temperature:.2f} moves that of validation from {before} to {after}."
        kept = "No temperature is applied; that of validation is {after}."
        sentence = kept if made.temperature == 1 else moved
        said.append(_(sentence, temperature=made.temperature, before=before, after=after))
    return said


def _mistakes_sentence(report: RunReport) -> str:
    """How many rows are wrong, and which of them are shown."""
    wrong, doubted, split = report.wrong or 0, report.wrong_and_doubted, _(report.split)
    if not doubted:
        return _("{wrong:,} {split} rows are wrong. The most confident first.", wrong=wrong, split=split)
    without = (
        "{wrong:,} {split} rows are wrong. {doubted:,} of them have a doubtful label and are left out here. "
        "The most confident first."
    )
    return _(without, wrong=wrong, split=split, doubted=doubted)


def counts(by_name: Mapping[str, int]) -> str:
    """Rows by split."""
    return listed(_("{count:,} {name}", count=count, name=_(name)) for name, count in by_name.items())


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
