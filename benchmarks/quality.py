"""Tables and picture of `featcache bench quality`.

featcache bench quality --sets chnsenticorp=FOLDER,r52 --json > quality.json
python benchmarks/quality.py quality.json          (writes quality.md and quality.svg beside this file)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
HEADER = """# How good, at what price

`featcache bench quality`: every method is chosen on validation and scored on test. *Clean* are the test rows
whose text no earlier split has. *p*: McNemar's test against "depth and words"; *clean p*: on the clean rows;
*last p*: there against "last". *Head* are the seconds of the head, *all* those from raw text on, extraction
included (imports are not).

![Accuracy against seconds](quality.svg)
"""
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
    """One panel a set: test accuracy with its interval against seconds."""
    figure = Figure(figsize=(5.2 * len(sets), 4.6), layout="constrained")
    for place, (name, rows) in enumerate(sets.items()):
        axes = figure.add_subplot(1, len(sets), place + 1)
        for row in rows:
            accuracy = row["test_accuracy"]
            errors = [[accuracy - row["low"]], [row["high"] - accuracy]]
            axes.errorbar(row["seconds"], accuracy, yerr=errors, fmt="o", capsize=2, color="#2a6f97")
            point = (row["seconds"], accuracy)
            axes.annotate(row["method"], point, xytext=(6, 3), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", title=name, xlabel="seconds from raw text")
        axes.set_ylabel("test accuracy" if not place else "")
        axes.margins(x=0.25)
        axes.grid(visible=True, alpha=0.3)
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
    (HERE / "quality.md").write_text("\n".join(parts), encoding="utf-8")
    picture(sets).savefig(HERE / "quality.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
