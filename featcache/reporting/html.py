"""A report as one HTML page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.reporting.document import RunReport
from featcache.reporting.figures import figures
from featcache.reporting.words import TEMPLATES, environment_of, figure_words, template_values


def to_html(report: RunReport) -> str:
    """The page: texts are escaped, and its own policy forbids scripts and requests.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed.
    """
    return render(
        "report.html.jinja", figures(report), template_values(report) | {"words": figure_words(report)}
    )


def render(template: str, drawn: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """A page from its template, its figures by name, and its variables."""
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    made = environment_of(autoescape=True).get_template(template)
    return made.render(**values, figures=drawn, css=css)
