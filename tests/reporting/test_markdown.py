"""Markdown of a report."""

from __future__ import annotations

from featcache.reporting.markdown import escape


def test_escape() -> None:
    assert escape("a|b\n<i>*x*") == "a\\|b &lt;i&gt;\\*x\\*"
