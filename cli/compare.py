"""`featcache compare`: runs side by side; one run in depth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import HeadError
from featcache_cli.console import out, percent, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of
from featcache_cli.train_head import record, show_history

if TYPE_CHECKING:
    from featcache.runs import Run


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "compare",
        "runs side by side; a single run with its classes, confusions and curves",
        "featcache compare\nfeatcache compare linear-last-mean-1 logistic-last-mean-1",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    add_settings(parser, "paths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from featcache.runs import best_run, list_runs, load_run

    reports = Path(settings_of(args).paths.reports_dir)
    runs = [load_run(reports, name) for name in dict.fromkeys(args.runs)] or list_runs(reports)
    if not runs:
        raise HeadError(f"no runs in {reports}", hint="train one with: featcache train-head --epochs 100")
    best = best_run(runs)
    if args.json:
        print_json({"runs": [record(run) for run in runs], "best": best.name if best else None})
        return 0
    show(runs, best)
    if len(runs) == 1:
        show_details(runs[0])
    return 0


def show(runs: list[Run], best: Run | None) -> None:
    """The table of runs, the best by validation first."""
    from featcache.runs import rank

    console = out()
    wide = console.width >= 100
    columns = [("", "left"), ("run", "left"), ("head", "left"), ("view", "left"), ("ep.", "right")]
    columns += [("validation", "right")] if wide else []
    columns += [("test", "right"), ("F1", "right"), ("train", "right"), ("extr.", "right")]
    shown = table([*columns, ("params", "right")])
    for run in sorted(runs, key=rank, reverse=True):
        content = run.record
        cells = [
            "*" if run is best else "",
            run.name,
            content["head"],
            content["view"],
            str(content["epochs"] or "-"),
            *([percent(run.metric("validation", "accuracy"))] if wide else []),
            percent(run.metric("test", "accuracy")),
            percent(run.metric("test", "macro_f1")),
            f"{content['seconds']:.1f}s",
            f"{content['extraction_seconds']:.0f}s",
            f"{content['parameters']:,}",
        ]
        shown.add_row(*cells, style="bold green" if run is best else None)
    console.print(shown)
    console.print("* best by validation accuracy; test, F1: accuracy and macro F1 on test, in %", style="dim")


def show_details(run: Run) -> None:
    """Per-class table, confusion matrix and curves of one run, on test (else validation)."""
    split = "test" if "test" in run.record["scores"] else "validation"
    scores, names = run.record["scores"][split], run.record["label_names"]
    columns = [("precision", "right"), ("recall", "right"), ("F1", "right"), ("rows", "right")]
    classes = table([(f"class ({split})", "left"), *columns])
    for line in scores["per_class"]:
        ratios = (percent(line[name]) for name in ("precision", "recall", "f1"))
        classes.add_row(line["label"], *ratios, f"{line['support']:,}")
    console = out()
    console.print()
    console.print(classes)
    console.print()
    _show_confusion(scores["confusion"], names)
    show_history(run)


def _show_confusion(confusion: list[list[int]], names: list[str]) -> None:
    """The whole matrix where it fits, else the most frequent confusions."""
    if len(names) <= 8:
        cut = [name[:10] for name in names]
        told_apart = len(set(cut)) == len(cut)
        heads = cut if told_apart else [f"({number})" for number in range(1, len(names) + 1)]
        rows = names if told_apart else [f"({number}) {name}" for number, name in enumerate(names, start=1)]
        shown = table([("true \\ predicted", "left"), *((head, "right") for head in heads)])
        for name, row in zip(rows, confusion, strict=True):
            shown.add_row(name, *(f"{count:,}" for count in row))
    else:
        shown = table([("most confused: true", "left"), ("predicted", "left"), ("rows", "right")])
        wrong = [
            (count, true, predicted)
            for true, row in enumerate(confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        for count, true, predicted in sorted(wrong, reverse=True)[:10]:
            shown.add_row(names[true], names[predicted], f"{count:,}")
    out().print(shown)
