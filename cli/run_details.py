"""A run in detail: the course of its training, scores by class, and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache.system.text import sparkline
from featcache.system.units import percent_text
from featcache.translation.language import gettext as _
from featcache.translation.language import noted
from featcache_cli.console import columns, note, out, table

if TYPE_CHECKING:
    from featcache.runs.run import Run

# What the lines of a training are called, where labels are classes and where they are numbers.
HISTORY = {
    "train_loss": (noted("train loss"), noted("train loss")),
    "validation_loss": (noted("validation loss"), noted("validation loss")),
    "train_accuracy": (noted("train accuracy"), noted("train explained variance")),
    "validation_accuracy": (noted("validation accuracy"), noted("validation explained variance")),
}


def show_history(run: Run) -> None:
    """Loss and accuracy by epoch as sparklines, with their ends and the best epoch."""
    lines = run.history
    if len(lines) < 2:
        return
    console = out()
    first, last = columns(">first", ">last")
    shown = table("", first, _("epochs 1 to {last}", last=len(lines)), last)
    for name, (labels, numbers) in HISTORY.items():
        values = [getattr(line, name) for line in lines]
        said = _(numbers if run.record.numbers else labels)
        shown.add_row(said, f"{values[0]:.4f}", sparkline(values, 36), f"{values[-1]:.4f}")
    console.print(shown)
    best = "best epoch by validation: {epoch} (kept as head; the last is kept as last)"
    console.print(_(best, epoch=run.record.best_epoch), style="dim")


def show_details(run: Run, split: str = "test") -> None:
    """Per-class table, confusion matrix and curves of one run, on `split` (else validation)."""
    split = split if split in run.record.scores else "validation"
    if split not in run.record.scores:
        note(f"{run.name} has no scores by class in its run.json")
        return
    scores, names = run.record.scores[split], run.record.label_names
    of = _("class ({split})", split=_(split))
    classes = table(of, *columns(">precision", ">recall", ">F1", ">rows"))
    for line in scores.per_class:
        ratios = (percent_text(share) for share in (line.precision, line.recall, line.f1))
        classes.add_row(line.label, *ratios, f"{line.support:,}")
    console = out()
    console.print()
    console.print(classes)
    console.print()
    if scores.confusion is not None:  # multi-label has none
        _show_confusion(scores.confusion, names)
    show_history(run)


def _show_confusion(confusion: list[list[int]], names: Sequence[str]) -> None:
    """The whole matrix where it fits, else the most frequent confusions."""
    if len(names) <= 8:
        short = [name[:10] for name in names]
        distinct = len(set(short)) == len(short)
        heads = short if distinct else [f"({number})" for number in range(1, len(names) + 1)]
        numbered = [f"({number}) {name}" for number, name in enumerate(names, start=1)]
        rows = names if distinct else numbered
        shown = table(_("true \\ predicted"), *(f">{head}" for head in heads))
        for name, row in zip(rows, confusion, strict=True):
            shown.add_row(name, *(f"{count:,}" for count in row))
    else:
        shown = table(*columns("most confused: true", "predicted", ">rows"))
        wrong = [
            (count, true, predicted)
            for true, row in enumerate(confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        for count, true, predicted in sorted(wrong, reverse=True)[:10]:
            shown.add_row(names[true], names[predicted], f"{count:,}")
    out().print(shown)
