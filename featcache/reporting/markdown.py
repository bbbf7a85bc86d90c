"""A report as Markdown, for a pull request or a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.reporting import html as report_html

SPARKS = "▁▂▃▄▅▆▇█"
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")


class Plain(str):
    """Markdown that we wrote ourselves."""


def to_markdown(document: Mapping[str, Any]) -> str:
    """Tables of the numbers that the page shows as figures; texts escaped.

    Args:
        document: as `featcache.reporting.build.build_report` returns it.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    environment = report_html.environment_of(autoescape=False)
    environment.finalize = escape
    environment.filters |= {"plain": Plain, "spark": spark, "ends": ends, "against": against}
    text = environment.get_template("report.md.jinja").render(**report_html.words(document))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escape(value: Any) -> str:
    """A value as text that Markdown and HTML leave alone, on one line."""
    if isinstance(value, Plain):
        return value
    line = " ".join(str(value).split())
    return _SPECIAL.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def ends(interval: Sequence[float | None] | None) -> Plain:
    return Plain(report_html.ends(interval))


def against(run: str, comparisons: Sequence[Mapping[str, Any]]) -> Plain:
    return Plain(report_html.against(run, comparisons))


def spark(values: Sequence[float], width: int = 30) -> str:
    """Values as a row of blocks, thinned out to `width`."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in values)
