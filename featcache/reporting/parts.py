"""Parts of a page that the HTML and the Markdown lay out: cards, runs on one axis, the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featcache.inspection.document import Findings, label_text
from featcache.reporting.document import HeadlineMetric, Interval, MatrixCell, RunComparison, RunReport
from featcache.system.text import clip
from featcache.system.units import interval_text, percent_text, seconds_text, share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, ngettext, noted

NAMED_COLUMNS = 4  # labels whose names have room over the columns of the matrix; more have numbers there
LABEL = 40  # cells of a label in the matrix


@dataclass(frozen=True)
class Card:
    """One number of the top of a page, with what belongs to it."""

    title: str
    value: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RunLine:
    """One run on the axis that all runs share.

    Attributes:
        about: head and view, and further numbers.
        value, ends: the score and its interval, as text.
        low, high, dot: their places on the axis in percent of its width; None where they are not known.
        against: what the paired test says against the first run.
    """

    run: str
    about: str
    value: str
    ends: str
    low: float | None
    high: float | None
    dot: float | None
    against: str


@dataclass(frozen=True)
class RunAxis:
    """The runs on one axis, whose ends are `low` and `high`."""

    title: str
    low: str
    high: str
    lines: Sequence[RunLine]


@dataclass(frozen=True)
class ShownCell:
    """A cell of the matrix as it is shown; `cell` has its texts, None of a cell that has none.

    Attributes:
        shade: percent of the rows of the true label.
        words: the labels and the count, in words.
    """

    count: int
    shade: int
    right: bool
    words: str = ""
    cell: MatrixCell | None = None


@dataclass(frozen=True)
class ShownMatrix:
    """The matrix with the heads of its columns, and of its rows with their cells."""

    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[ShownCell]]]
    cells: Sequence[ShownCell]


def percent(value: float | None) -> str:
    """0.8975 as `89.75 %`."""
    return percent_text(value, " %")


def metric(value: float | None, name: str) -> str:
    """A metric in percent, but the log loss in nats and a cost as it is."""
    return f"{value:.4f}" if name in ("log_loss", "cost") and value is not None else percent(value)


def spread(interval: Interval | None, name: str = "") -> str:
    """An interval as `80.00 to 95.00`; empty if it is not known."""
    low, high = interval or (None, None)
    if low is None or high is None:
        return ""
    plain = name in ("log_loss", "cost")
    ends = (f"{low:.4f}", f"{high:.4f}") if plain else (percent_text(low), percent_text(high))
    return _("{low} to {high}", low=ends[0], high=ends[1])


def score_card(found: HeadlineMetric, title: str, name: str, *more: str) -> Card:
    """A score with its interval, and the clean one."""
    said = [_("95 %: {ends}", ends=ends)] if (ends := spread(found.interval, name)) else []
    if found.clean is not None:
        ends, clean = spread(found.clean_interval, name), metric(found.clean, name)
        both = "clean {score}, 95 %: {ends}"
        said.append(_(both, score=clean, ends=ends) if ends else _("clean {score}", score=clean))
    return Card(title, metric(found.value, name), [*said, *more])


def cards(report: RunReport) -> list[Card]:
    """Scores, what always giving the most frequent label scores, and what it took."""
    shown, split, several = report.headline, report.split, report.about.multi_label
    order = ("micro_f1", "macro_f1", "accuracy", "cost") if several else ("accuracy", "macro_f1", "cost")
    titles = {"accuracy": report.about.score_name, "micro_f1": noted("micro F1")}
    titles |= {"macro_f1": noted("macro F1"), "cost": noted("mean cost of a row")}
    made = [score_card(shown[name], scored(split, titles[name]), name) for name in order if name in shown]
    if report.majority and not several:
        always = _("always “{label}”", label=clip(label_text(report.majority.label), 40))
        made.append(Card(_("majority baseline"), percent(report.majority.accuracy), [always]))
    return [*made, cost_card(report.about.seconds, report.about.extraction_seconds)]


def scored(split: str, score: str) -> str:
    """`test accuracy`"""
    return _("{split} {score}", split=_(split), score=_(score))


def cost_card(seconds: float | None, extraction: float | None) -> Card:
    """Seconds of the training, and of the features."""
    once = _("and {seconds} once for the features", seconds=seconds_text(extraction))
    return Card(_("training"), seconds_text(seconds), [once] if extraction else [])


def run_axis(report: RunReport) -> RunAxis:
    """Every run with its score, on one axis."""
    changes = {made.run: _changes(made) for made in report.comparisons}
    place, low, high = axis([(run.accuracy, run.interval) for run in report.runs])
    lines = []
    for run in report.runs:
        about = [head_on(run.head, run.view) if run.head != "lexical" else _(run.view)]
        about += [_("macro F1 {score}", score=percent(run.macro_f1))]
        about += [_("micro F1 {score}", score=percent(run.micro_f1))] if report.about.multi_label else []
        about += [_("validation {score}", score=percent(run.validation_accuracy))]
        about += [_("trained in {seconds}", seconds=seconds_text(run.seconds))]
        clean = run.clean_accuracy
        about += [_("clean {score}", score=percent(clean))] if clean is not None else []
        ends = run.interval or (None, None)
        lines.append(
            RunLine(
                run.run, listed(about), percent(run.accuracy), interval_text(*ends),
                low=place(ends[0]), high=place(ends[1]), dot=place(run.accuracy),
                against=changes.get(run.run, ""),
            )
        )  # fmt: skip
    title = scored(report.split, report.about.score_name)
    return RunAxis(title, percent(low), percent(high), lines)


def head_on(head: str, view: str) -> str:
    """`linear on last/mean`"""
    return _("{head} on {view}", head=head, view=view)


def _changes(made: RunComparison) -> str:
    """A run against the first one, on all rows and on the clean ones."""
    whole, clean = made.accuracy, made.clean_accuracy
    said = change_text(whole.difference, whole.interval, whole.tie)
    if clean is None:
        return said
    without = change_text(clean.difference, clean.interval, clean.tie)
    return _("{all}; clean {clean}", all=said, clean=without)


def change_text(difference: float, interval: Interval, tie: bool) -> str:
    """`tie -1.20 [-2.60, 0.40]`, in points."""
    verdict = noted("tie") if tie else noted("better") if difference > 0 else noted("worse")
    return f"{_(verdict)} {100 * difference:+.2f} {interval_text(*interval)}"


class _Places:
    """From a score to its place on the axis, in percent of the axis."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.width = low, (high - low) or 1.0

    def __call__(self, value: float | None) -> float | None:
        return None if value is None else round(100 * (value - self.low) / self.width, 2)


def axis(
    scores: Sequence[tuple[float | None, Interval | None]],
) -> tuple[_Places, float | None, float | None]:
    """Places on the axis from the lowest to the highest end of an interval, and these ends."""
    known = [v for value, ends in scores for v in (value, *(ends or ())) if v is not None and v == v]
    if not known:
        return _Places(0, 1), None, None
    return _Places(min(known), max(known)), min(known), max(known)


def shown_matrix(report: RunReport) -> ShownMatrix | None:
    """The matrix of the labels that are confused most; the other labels are one row and one column."""
    counts, labels = report.confusion, list(report.matrix_labels)
    if not counts or not labels:
        return None
    names = [clip(" ".join(name.split()), LABEL) for name in report.about.label_names]
    rest = [number for number in range(len(counts)) if number not in set(labels)]
    groups = [[number] for number in labels] + ([rest] if rest else [])
    others = _("{count} other labels", count=len(rest))
    heads = [names[group[0]] if group is not rest else others for group in groups]
    made = {(cell.true, cell.predicted): cell for cell in report.matrix}
    lines = []
    for true, head in zip(groups, heads, strict=True):
        total = sum(sum(counts[number]) for number in true)
        line = []
        for predicted, other in zip(groups, heads, strict=True):
            count = sum(counts[i][j] for i in true for j in predicted)
            rows = ngettext("{count:,} row", "{count:,} rows", count)
            wrong = _("{label}, predicted {predicted}: {rows}", label=head, predicted=other, rows=rows)
            right = _("{label}, right: {rows}", label=head, rows=rows)
            words = wrong if true != predicted else right
            cell = made.get((true[0], predicted[0])) if rest not in (true, predicted) else None
            line.append(ShownCell(count, round(100 * count / max(total, 1)), true == predicted, words, cell))
        lines.append((head, line))
    if len(groups) > NAMED_COLUMNS:
        columns = [str(place + 1) for place in range(len(labels))]
        lines = [
            (f"{place} {head}" if place <= len(labels) else head, line)
            for place, (head, line) in enumerate(lines, start=1)
        ]
        columns += [_("others")] if rest else []
    else:
        columns = heads
    cells = [cell for line in lines for cell in line[1] if cell.cell]
    return ShownMatrix(columns, lines, cells)


def split_table(data: Findings) -> list[tuple[str, list[str]]]:
    """What is known of each split, a line for each number."""
    leaked: Mapping[str, int] = {
        split: sum(pair.rows for pair in data.leakage.pairs if pair.split == split) for split in data.splits
    }
    length, repeats, splits = data.truncation, data.duplicates.splits, list(data.splits)

    def of(count: int, split: str) -> str:
        return f"{count:,} ({share_text(count, data.splits[split])})"

    columns = {
        _("rows"): [f"{data.splits[name]:,}" for name in splits],
        _("distinct texts"): [f"{repeats[name].texts:,}" for name in splits],
        _("repeats"): [of(repeats[name].equal, name) for name in splits],
        _("nearly equal to another"): [of(repeats[name].near, name) for name in splits],
        _("in an earlier split"): [of(leaked[name], name) for name in splits],
        _("truncated"): [of(length[name].cut, name) for name in splits],
        _("longest text read, tokens"): [f"{length[name].longest_tokens:,}" for name in splits],
        _("median tokens"): [f"{length[name].median_tokens or 0:,.0f}" for name in splits],
        _("tokens in all"): [f"{length[name].tokens:,}" for name in splits],
        _("unknown tokens"): [percent(length[name].unknown_tokens) for name in splits],
    }
    return list(columns.items())
