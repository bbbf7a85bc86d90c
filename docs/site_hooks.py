"""What `make docs` adds to the pages of this folder: the reference, the notebooks, and pages from elsewhere.

The reference is made when the site is built: of the commands from their `--help`, of the settings from their
dataclasses, of Python from the docstrings of the public names.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages of the repository that are not in docs/, by their place on the site.
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "benchmarks-few-labels.md": "benchmarks/few-labels.md",
    "benchmarks-quality.md": "benchmarks/quality.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_ITEM = re.compile(r"([-*]|\d+\.) ")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/python.md": python(),
    }
    for place, source in ELSEWHERE.items():
        if (ROOT / source).is_file():
            made[place] = (ROOT / source).read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook(path)
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for picture in (ROOT / "benchmarks").glob("*.svg"):
        files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files outside of docs/ to their place on the site, and drop those that have none."""
    place = page.file.src_uri
    source = ELSEWHERE.get(place, f"docs/{place}")
    sites = {path: site for site, path in ELSEWHERE.items()}

    def lead(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.endswith(".ipynb"):
            path = f"{path.removesuffix('.ipynb')}.md"
        inner = (
            path.removeprefix("docs/")
            if path.startswith("docs/")
            else sites.get(path, posixpath.basename(path))
        )
        if files.get_file_from_path(inner) is None:
            return text
        return f"{picture}[{text}]({posixpath.relpath(inner, posixpath.dirname(place) or '.')}{anchor or ''})"

    return _LINK.sub(lead, _with_blank_lines(markdown))


def _with_blank_lines(markdown: str) -> str:
    """A blank line before each list and table that follows a paragraph, which Python-Markdown needs."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        begins = (_ITEM.match(line) and not _ITEM.match(before)) or line[:1] == "|" != before[:1]
        if begins and not fenced and before.strip() and not before.startswith(" "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def commands() -> str:
    """Every command with its `--help`."""
    os.environ |= {"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"}
    from featcache_cli.main import _parser

    parts = ["# Commands\n"]
    for name, parser in sorted(_with_inner(_parser())):
        help_text = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_help()).rstrip()
        parts.append(f"## {name}\n\n```\n{help_text}\n```\n")
    return "\n".join(parts)


def _with_inner(parser: Any) -> list[tuple[str, Any]]:
    """A parser and those of its commands, by what is typed."""
    inner = [
        found
        for action in parser._actions
        if hasattr(action.choices, "values")
        for sub in action.choices.values()
        for found in _with_inner(sub)
    ]
    return [(parser.prog, parser), *inner]


def settings() -> str:
    """Every setting with its default, by table of `featcache.toml`."""
    from featcache.settings import options

    tables: dict[str, list[str]] = {}
    for option in options().values():
        default = "" if option.default is None else json.dumps(option.default, ensure_ascii=False)
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        cells = (
            f"`{option.name}`",
            f"`{default}`" if default else "",
            f"{option.help}{choices}".replace("|", "\\|"),
        )
        tables.setdefault(option.section, []).append(f"| {' | '.join(cells)} |")
    parts = [
        "# Settings\n",
        "Flags have the same names with dashes: `max_length` is `--max-length`. In Python, "
        "`featcache.load_settings` and `featcache.run` take them.\n",
    ]
    for section, rows in sorted(tables.items()):
        title = f"`[{section}]`" if section else "Above all tables"
        parts.append(f"## {title}\n\n| setting | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def python() -> str:
    """The public names by their docstrings."""
    import featcache

    first = ["run", "AllRuns", "Predictor", "Prediction", "load_settings"]
    names = [*first, *(name for name in featcache.__all__ if name not in first)]
    parts = ["# Python\n", "The public names of `featcache`. What is not here may change.\n"]
    parts += [f"::: featcache.{featcache._HOME[name]}.{name}\n" for name in names]
    return "\n".join(parts)


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, and its code without outputs."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
