"""The table of runs that predict labels: how far each is from the best, and in what they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.system.text import clip, last_part
from featcache.system.units import percent_text, size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import noted
from featcache_cli.console import out, table
from featcache_cli.run_columns import RunColumn, fitting

if TYPE_CHECKING:
    from rich.text import Text

    from featcache.runs.compare import Change, Comparisons
    from featcache.runs.run import Run

METRICS = {"accuracy": noted("accuracy"), "macro_f1": noted("macro F1")}
SORTS = ("validation", "test", "name", "time", "created")
CLEAN = noted("clean: the same without rows whose text an earlier split has: featcache inspect")
SHOWN_SETTINGS = 40  # characters


@dataclass(frozen=True)
class TableOrder:
    """What the table is about.

    Attributes:
        split: whose scores are compared.
        metric: a key of METRICS, which is shown with its interval and difference.
        sort: one of SORTS.
    """

    split: str = "test"
    metric: str = "accuracy"
    sort: str = "validation"

    def sorted(self, runs: Sequence[Run]) -> list[Run]:
        """The runs in this order, the best first; equal ones as `ranked` says."""
        from featcache.runs.run import ranked

        found = ranked(runs)
        if self.sort == "name":
            return sorted(found, key=lambda run: run.name)
        if self.sort == "time":
            return sorted(found, key=lambda run: run.record.seconds)
        if self.sort == "created":
            return sorted(found, key=lambda run: run.record.created, reverse=True)
        if self.sort == "validation" and self.metric == "accuracy":
            return found
        scores = {run.folder: run.metric(self.sort, self.metric) for run in found}
        known = {folder: score if score == score else -1.0 for folder, score in scores.items()}
        return sorted(found, key=lambda run: known[run.folder], reverse=True)


DEFAULT_ORDER = TableOrder()


def show(
    runs: list[Run],
    best: Run | None,
    against: Comparisons | None = None,
    order: TableOrder = DEFAULT_ORDER,
    *,
    words: bool = True,
) -> None:
    """The table of runs; `against` gives their differences from the base and says which may be chance.

    Args:
        words: say whether the words alone are enough.
    """
    from featcache.reporting.verdict import words_verdict
    from featcache.runs.compare import most_frequent

    console = out()
    ordered = order.sorted(runs)
    majority = most_frequent(best, order.split) if best else None
    columns = _columns(ordered, best, against, order)
    if majority:
        score = "test" if order.split == "test" else "val."
        own = {"run": _("always {label}", label=clip(majority[0], 16))}
        own |= {score: percent_text(majority[1])} if order.metric == "accuracy" else {}
        columns = [column._replace(cells=[*column.cells, own.get(column.header, "")]) for column in columns]
    columns = fitting(columns, console.width)
    shown = table(*(column.title for column in columns))
    lines = list(zip(*(column.cells for column in columns), strict=True))
    styles = ["bold green" if run is best else None for run in ordered]
    for cells, style in zip(lines, [*styles, *["dim"] * bool(majority)], strict=True):
        shown.add_row(*cells, style=style)
    console.print(shown)
    for line in _legend({column.header for column in columns}, runs, best, against, order):
        console.print(line, style="dim")
    if majority:
        always = "always {label}, the most frequent label of {split}: {share}"
        share = percent_text(majority[1])
        console.print(_(always, label=majority[0], split=_(order.split), share=share), style="dim")
    if words and best and against and (verdict := words_verdict(best, against)):
        console.print(verdict)


def _columns(
    runs: list[Run], best: Run | None, against: Comparisons | None, order: TableOrder
) -> list[RunColumn]:
    about, names, split = [run.record for run in runs], run_names(runs), order.split
    other = "macro_f1" if order.metric == "accuracy" else "accuracy"

    def scores(split: str, metric: str) -> list[str | Text]:
        return [percent_text(run.metric(split, metric)) for run in runs]

    columns = [
        RunColumn("", ["*" if run is best else "" for run in runs], right=False),
        RunColumn("run", [names[run.folder] for run in runs], right=False),
        RunColumn("head", [line.head for line in about], 10, right=False),
        RunColumn("view", [_(line.short_view) for line in about], 9, right=False),
        RunColumn("val.", scores("validation", order.metric)),
        *_clean(runs, "validation", order.metric),
    ]
    if split == "test":
        columns += [RunColumn("test", scores("test", order.metric)), *_clean(runs, "test", order.metric)]
    columns.append(RunColumn("95 %", [_interval(run, split, order.metric) for run in runs], 2))
    if against:
        whole, clean = noted("vs *", "column"), noted("vs * clean", "column")
        if against.base is not best:
            whole, clean = noted("vs base", "column"), noted("vs base clean", "column")
        columns.append(RunColumn(whole, _changes(runs, against, order.metric)))
        if any(made.clean for made in against.made):
            columns.append(RunColumn(clean, _changes(runs, against, order.metric, clean=True), 6))
    columns.append(RunColumn("F1" if other == "macro_f1" else "acc.", scores(split, other), 3))
    if any("cost" in run.record.metrics.get(split, {}) for run in runs):
        cells = [f"{run.metric(split, 'cost'):.4f}".replace("nan", "-") for run in runs]
        columns.append(RunColumn("cost", [*cells], importance=1))
    held = [run.record.abstention for run in runs]
    if any(held):
        own = [one.splits.get(split) if one else None for one in held]
        cells = [f"{one.coverage:.0%} ({100 * (one.risk or 0):.1f})" if one else _("all") for one in own]
        columns.append(RunColumn("answered", [*cells]))
    differs = differing_settings(runs)
    if any(differs.values()):
        cells = [clip(differs[run.folder], SHOWN_SETTINGS) for run in runs]
        columns.append(RunColumn("differs in", [*cells], 4, right=False))
    epochs = [f"{line.best_epoch or '-'}/{line.epochs}" if line.epochs else "-" for line in about]
    return [
        *columns,
        RunColumn("epoch", [*epochs], 7),
        RunColumn("train", [f"{line.seconds:.1f}s" for line in about], 5),
        RunColumn("extr.", [f"{line.extraction_seconds:.0f}s" for line in about], 8),
        RunColumn("cached", [_bytes(line.bytes_cached) for line in about], 8),
        RunColumn("params", [_count(line.parameters) for line in about], 9),
    ]


def differing_settings(runs: Sequence[Run]) -> dict[Path, str]:
    """The settings in which runs differ, by folder, as `lr 0.01, max_length 128`; not the head, not the view.

    A setting that a kind of head does not have says nothing of it.
    """
    own = {run.folder: _settings(run) for run in runs}
    values: dict[str, set[str]] = {}
    for settings in own.values():
        for name, value in settings.items():
            values.setdefault(name, set()).add(value)
    differing = [name for name, found in values.items() if len(found) > 1]
    return {
        folder: ", ".join(f"{name} {settings[name]}" for name in differing if name in settings)
        for folder, settings in own.items()
    }


def _settings(run: Run) -> dict[str, str]:
    """Every setting that can change the scores, as text."""
    record = run.record
    found: dict[str, object] = {"seed": record.seed, "rows": record.rows.get("train")}
    found |= {"epochs": record.epochs, **record.settings}
    if record.features and record.cached_view:  # words alone have no settings of a backbone
        features = asdict(record.features)
        found |= {"model": last_part(record.backbone.model), "dtype": record.backbone.dtype}
        found |= {name: value for name, value in features.items() if name not in ("views", "storage")}
    if record.data:
        found |= {"dataset": last_part(record.data.dataset), "test_split": record.data.test_split}
    return {name: str(value) or "none" for name, value in found.items() if value is not None}


def _clean(runs: list[Run], split: str, metric: str) -> list[RunColumn]:
    """The score on clean rows, where rows of one of the runs leak."""
    if not any(run.record.clean and split in run.record.clean.metrics for run in runs):
        return []
    known = (run.metric(split, metric, clean=True) if run.record.clean else None for run in runs)
    return [RunColumn("clean", [percent_text(score) for score in known], 1)]


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _bytes(count: int | None) -> str:
    """The size of a run's features or token states; runs of older versions do not have it."""
    return "-" if count is None else size_text(count)


def _interval(run: Run, split: str, metric: str) -> str:
    """95 % interval of a score, as 89.1-92.3; runs of older versions have none."""
    low, high = run.record.intervals.get(split, {}).get(metric, (None, None))
    return "-" if low is None or high is None else f"{100 * low:.1f}-{100 * high:.1f}"


def _changes(runs: list[Run], against: Comparisons, metric: str, *, clean: bool = False) -> list[str | Text]:
    """Points against the base with their interval, ties in a word; with `clean` on clean rows alone."""
    from rich.text import Text

    tests = {each.run.folder: each.clean if clean else each for each in against.made}
    made = {folder: getattr(each, metric) for folder, each in tests.items() if each}
    cells: list[str | Text] = []
    for run in runs:
        change: Change | None = made.get(run.folder)
        if change is None:
            cells.append("" if run.folder == against.base.folder else "-")
            continue
        found = change.difference
        said = f"{points_text(found.value, 1)} [{points_text(found.low, 1)}, {points_text(found.high, 1)}]"
        style = "" if change.tie else "red" if change.worse else "green"
        cells.append(Text(f"{_('tie')} {said}" if change.tie else said, style=style))
    return cells


def _legend(
    headers: set[str], runs: list[Run], best: Run | None, against: Comparisons | None, order: TableOrder
) -> list[str]:
    metric, split = _(METRICS[order.metric]), _(order.split)
    lines = [f"* {_reason(runs, best)}"] if best else []
    lines.append(_scores_line(headers, metric, order))
    if "95 %" in headers:
        lines.append(_("95 %: interval of the {split} {metric}", split=split, metric=metric))
    if "clean" in headers:
        lines.append(_(CLEAN))
    if against:
        name = "*" if "vs *" in headers else against.base.name
        points = "vs {name}: points more or less on the same {split} rows, and their 95 % interval"
        lines.append(_(points, name=name, split=split))
        if f"vs {name} clean" in headers:
            lines.append(_("vs {name} clean: the same on clean rows alone", name=name))
        lines.append(_about_ties(against, order.metric))
        if order.split == "validation" and name == "*":
            lines.append(_("the best run was chosen on these rows, so its lead here is too large"))
    if "answered" in headers:
        held = "answered: of the {split} rows; in brackets the wrong ones of these, in %"
        lines.append(_(held, split=split))
    if "epoch" in headers:
        lines.append(_("epoch: the best by validation, which is kept / the last"))
    if "cached" in headers:
        lines.append(_("extr., cached: time to make the features or token states, and their size on disk"))
    return lines


def _about_ties(against: Comparisons, metric: str) -> str:
    """What a tie is; and where the interval of one says otherwise, why."""
    said = _("tie: the difference may be chance (Holm-corrected p of 0.05 or more)")
    changes: list[Change] = [getattr(made, metric) for made in against.made]
    if any(one.tie and not one.difference.low <= 0 <= one.difference.high for one in changes):
        more = "; of {count} comparisons, one without 0 in its interval may still be chance"
        said += _(more, count=len(changes))
    return said


def _scores_line(headers: set[str], metric: str, order: TableOrder) -> str:
    """What the columns of scores are."""
    split, other = _(order.split), ""
    said = _("val.: {metric}", metric=metric)
    if order.split == "test":
        said = _("val., test: {metric} on these splits", metric=metric)
    if "F1" in headers:
        other = _("; F1: macro F1 on {split}", split=split)
    if "acc." in headers:
        other = _("; acc.: accuracy on {split}", split=split)
    return _("{scores}; all in %", scores=said + other)


def _reason(runs: list[Run], best: Run) -> str:
    """Why a run is the best: its validation accuracy, and where others have the same its log loss."""
    clean = all(run.record.clean for run in runs)
    scores = Counter(round(run.metric("validation", "accuracy", clean=clean), 12) for run in runs)
    own = best.metric("validation", "accuracy", clean=clean)
    leaks = any(run.record.clean and run.record.clean.metrics for run in runs)
    said = _("best by validation accuracy ({score})", score=percent_text(own))
    if leaks:
        said = _("best by clean validation accuracy ({score})", score=percent_text(own))
    if not (same := scores[round(own, 12)] - 1):
        return said
    return _("{best}, and of {count} with it by the lowest log loss", best=said, count=same + 1)


def run_names(runs: list[Run]) -> dict[Path, str]:
    """A name for each folder: its own, or the path where two have the same."""
    names = [run.name for run in runs]
    return {run.folder: run.name if names.count(run.name) == 1 else str(run.folder) for run in runs}


def points_text(share: float, digits: int = 2) -> str:
    """0.0123 -> '+1.23'; a difference that rounds to 0 has no sign."""
    text = f"{100 * share:+.{digits}f}"
    return text[1:] if float(text) == 0 else text
