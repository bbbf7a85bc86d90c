"""A report as one HTML page that loads nothing."""

from __future__ import annotations

from featcache.reporting.document import RunReport
from featcache.reporting.figures import FIGURES, figures
from featcache.reporting.words import TEMPLATES, environment_of, template_values


def to_html(report: RunReport) -> str:
    """The page: texts are escaped, and its own policy forbids scripts and requests.

    Raises:
        UsageError: matplotlib or Jinja2 is not installed.
    """
    drawn = dict.fromkeys(FIGURES) | figures(report)
    template = environment_of(autoescape=True).get_template("report.html.jinja")
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return template.render(**template_values(report), figures=drawn, css=css)
