"""Tables and picture of `featcache bench quality`.

featcache bench quality --sets chnsenticorp=FOLDER,r52 --json > quality.json
python benchmarks/quality.py quality.json          (writes quality.md and quality.svg beside this file)

What stands in quality.md below KEPT is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

HERE = Path(__file__).parent
HEADER = """# How good, at what price

`featcache bench quality`: every method is chosen on validation and scored on test. *Clean* are the test rows
whose text no earlier split has. *p*: McNemar's test against "depth and words"; *clean p*: on the clean rows;
*last p*: there against "last". *Head* are the seconds of the head, *all* those from raw text on, extraction
included (imports are not).

![Accuracy against seconds](quality.svg)
"""
KEPT = "<!-- written by hand from here -->"
MARKERS = "osD^vP*Xh<>"  # one a method, beside its colour
NAMES = ("method", "test", "95 %", "clean", "p", "clean p", "last p", "head", "all")
COLUMNS = f"| {' | '.join(NAMES)} |\n{'|---' * len(NAMES)}|"


def table(rows: list[dict[str, Any]]) -> str:
    """The best by test first."""
    lines = [COLUMNS]
    for row in sorted(rows, key=lambda row: -row["test_accuracy"]):
        cells = [
            row["method"],
            f"{row['test_accuracy']:.4f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            number(row["clean_accuracy"], ".4f"),
            number(row["p"], ".2g"),
            number(row["clean_p"], ".2g"),
            number(row["last_p"], ".2g"),
            f"{row['head_seconds']:.1f} s" if row["head_seconds"] else "",
            f"{row['seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def picture(sets: dict[str, list[dict[str, Any]]]) -> Figure:
    """One panel a set, two beside each other: test accuracy with its interval against seconds."""
    rows = -(-len(sets) // 2)
    figure = Figure(figsize=(9.6, 3.7 * rows + 0.9), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for found in sets.values() for row in found))
    drawn: dict[str, Any] = {}
    for place, (name, found) in enumerate(sets.items()):
        axes = figure.add_subplot(rows, min(len(sets), 2), place + 1)
        for row in found:
            number, accuracy = methods.index(row["method"]), row["test_accuracy"]
            errors = [[accuracy - row["low"]], [row["high"] - accuracy]]
            style = {"fmt": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
            bar = axes.errorbar(
                row["seconds"], accuracy, yerr=errors, capsize=2, elinewidth=0.8, ms=7, **style
            )
            drawn[row["method"]] = bar
        axes.set(xscale="log", title=name, xlabel="seconds from raw text")
        axes.set_ylabel("" if place % 2 else "test accuracy")
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, alpha=0.3)
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", nargs="+", type=Path, help="what `bench quality --json` printed")
    asked = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in asked.documents]
    measured: dict[str, dict[str, dict[str, Any]]] = {}  # by set and method: the first document counts
    for row in (row for document in documents for row in document["rows"]):
        measured.setdefault(row["data"], {}).setdefault(row["method"], row)
    sets = {name: list(found.values()) for name, found in measured.items()}
    parts = [HEADER, *(f"## {name}\n\n{table(found)}\n" for name, found in sets.items())]
    if left := {key: reason for document in documents for key, reason in document["left_out"].items()}:
        parts.append("Left out: " + "; ".join(f"{key} ({reason})" for key, reason in left.items()) + ".\n")
    machine = documents[0]["machine"]
    flags = ", ".join(machine["flags"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts.append(f"Measured on {machine['cores']} cores of {machine['cpu']} ({flags}); {versions}.\n")
    page = HERE / "quality.md"
    kept = page.read_text(encoding="utf-8").partition(KEPT)[2].strip() if page.exists() else ""
    page.write_text("\n".join([*parts, KEPT, kept]).rstrip() + "\n", encoding="utf-8")
    picture(sets).savefig(HERE / "quality.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
