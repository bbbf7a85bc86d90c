"""A report as Markdown, for a pull request or a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from featcache.reporting import words
from featcache.reporting.document import RunReport
from featcache.system.text import markdown_text, sparkline
from featcache.system.units import interval_text
from featcache.translation.language import gettext

if TYPE_CHECKING:
    from jinja2 import Environment


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


def to_markdown(report: RunReport) -> str:
    """Tables of the numbers that the page shows as figures; texts are escaped.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    template = markdown_environment().get_template("report.md.jinja")
    return tidy(template.render(**words.template_values(report)))


def tidy(text: str) -> str:
    """One empty line at most between parts, and one line break at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown_environment() -> Environment:
    """The templates, with every expression escaped for Markdown.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    environment = words.environment_of(autoescape=False)  # no page has this one, which may be changed
    environment.finalize = escape
    environment.globals["_"] = filled
    environment.filters |= {
        "ends": lambda interval: Markdown(interval_text(*interval) if interval else ""),
        "plain": Markdown,
        "spark": lambda values: sparkline(values, 30),
    }
    return environment


def filled(message: str, **values: Any) -> Markdown:
    """A message of the template, which is Markdown, with texts that are escaped."""
    escaped = {name: escape(value) if isinstance(value, str) else value for name, value in values.items()}
    return Markdown(gettext(message, **escaped))


def escape(value: Any) -> str:
    """A value as text without special characters of Markdown and HTML, on one line."""
    if isinstance(value, Markdown):
        return value
    return markdown_text(str(value))
