"""A report as Markdown, for a pull request or a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.reporting import words
from featcache.reporting.document import RunReport
from featcache.system.text import markdown_text, sparkline

if TYPE_CHECKING:
    from jinja2 import Environment


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


def to_markdown(report: RunReport) -> str:
    """Tables of the numbers that the page shows as figures; texts are escaped.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    environment = markdown_environment()
    environment.filters |= {
        "plain": Markdown,
        "spark": lambda values: sparkline(values, 30),
        "ends": _unescaped(words.ends),
        "against": _unescaped(words.against),
        "clean_against": _unescaped(words.clean_against),
    }
    text = environment.get_template("report.md.jinja").render(**words.template_values(report))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown_environment() -> Environment:
    """The templates, with every expression escaped for Markdown.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    environment = words.environment_of(autoescape=False)
    environment.finalize = escape
    return environment


def escape(value: Any) -> str:
    """A value as text without special characters of Markdown and HTML, on one line."""
    if isinstance(value, Markdown):
        return value
    return markdown_text(str(value))


def _unescaped(filter: Callable[..., str]) -> Callable[..., Markdown]:
    return lambda *values: Markdown(filter(*values))
