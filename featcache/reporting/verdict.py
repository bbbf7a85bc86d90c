"""What a comparison of runs comes to: which run to use, how good it is, and how certain that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.cache.view_names import LEXICAL, short_view
from featcache.evaluation.paired import ScoreDifference, mcnemar, paired_bootstrap, right_rows
from featcache.runs.compare import ALPHA, Comparisons
from featcache.runs.run import Run
from featcache.system.units import share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted

if TYPE_CHECKING:
    from featcache.runs.learning_curve import SavedCurve

# By whether the run is above the baseline, and whether that is more than chance.
GAIN = {
    (True, True): noted(
        "{points:.1f} points above always saying {label} ({share}), "
        "95 % interval {low:+.1f} to {high:+.1f}: more than chance"
    ),
    (True, False): noted(
        "{points:.1f} points above always saying {label} ({share}), "
        "95 % interval {low:+.1f} to {high:+.1f}: the difference may be chance"
    ),
    (False, True): noted(
        "{points:.1f} points below always saying {label} ({share}), "
        "95 % interval {low:+.1f} to {high:+.1f}: more than chance"
    ),
    (False, False): noted(
        "{points:.1f} points below always saying {label} ({share}), "
        "95 % interval {low:+.1f} to {high:+.1f}: the difference may be chance"
    ),
}
HELPS = 0.005  # gain by the last step of a learning curve from which on more labels are likely to help
WIDE = 0.1  # an interval of an accuracy from this width on: a few more test rows would say more


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What is said of the best run, on the clean rows of `split` where some rows leak.

    Attributes:
        run: its name.
        rows: that the scores are of.
        accuracy, interval: of these rows, see `bootstrap_intervals`; the interval None where it is not known.
        majority: the most frequent label of the split; None for multi-label.
        gain: accuracy above always predicting that label, on the same rows; None without a majority.
        gain_p: of the same, McNemar's exact test.
        sentences: all of it, how the other runs and the words alone compare, and what a learning curve says.
    """

    run: str
    split: str
    rows: int
    accuracy: float
    interval: tuple[float, float] | None
    majority: str | None
    gain: ScoreDifference | None
    gain_p: float | None
    sentences: tuple[str, ...]


def verdict(
    best: Run,
    against: Comparisons | None,
    split: str = "test",
    *,
    chosen: bool = True,
    curves: Sequence[SavedCurve] = (),
) -> RunVerdict:
    """The verdict on the best of some runs that predict labels, or on another one.

    Args:
        against: the other runs compared with `best`; None where there is none.
        chosen: whether it is the best on validation.
        curves: of the same features, see `saved_curves`; the first one says whether more labels would help.

    Raises:
        HeadError: `split` was not scored.
    """
    about, known = best.record, best.record.clean
    found = best.predictions(split, probabilities=False)
    leaked = found.leaked if found.leaked is not None else np.zeros(len(found), bool)
    kept = ~leaked if 0 < leaked.sum() < len(leaked) else np.ones(len(leaked), bool)
    intervals = known.intervals if known and split in known.intervals else about.intervals
    labels, predicted = found.labels[kept], found.predicted[kept]
    majority = gain = gain_p = None
    if not found.multi_label:
        most = int(np.bincount(labels).argmax())
        majority, always = found.label_names[most], np.full_like(labels, most)
        gain = paired_bootstrap(labels, always, predicted, len(found.label_names)).accuracy
        gain_p = mcnemar(right_rows(labels, always), right_rows(labels, predicted)).p
    made = RunVerdict(
        run=best.name,
        split=split,
        rows=int(kept.sum()),
        accuracy=float(right_rows(labels, predicted).mean()),
        interval=intervals.get(split, {}).get("accuracy"),
        majority=majority,
        gain=gain,
        gain_p=gain_p,
        sentences=(),
    )
    said = (*_own(made, clean=not kept.all(), chosen=chosen), *_others(best, against), *_more_labels(curves))
    if leaked.all() and len(leaked):
        every = "every {split} row has its text in an earlier split: this does not measure new texts"
        said += (_(every, split=_(split)),)
    return RunVerdict(**(vars(made) | {"sentences": said}))


def _own(made: RunVerdict, *, clean: bool, chosen: bool) -> Iterator[str]:
    split = _(made.split)
    which = _("{rows:,} {split} rows", rows=made.rows, split=split)
    if clean:
        which = _("{rows:,} {split} rows that do not leak", rows=made.rows, split=split)
    about = {"run": made.run, "share": share_text(made.accuracy, 1), "which": which}
    if chosen:
        said = _("use {run}: best on validation, right on {share} of {which}", **about)
    else:
        said = _("{run} is right on {share} of {which}", **about)
    low, high = made.interval or (0.0, 0.0)
    ends = _(" (95 % interval {low:.1f} to {high:.1f} %)", low=100 * low, high=100 * high)
    yield said + (ends if made.interval else "")
    if made.gain is not None and made.gain_p is not None:
        yield _(
            GAIN[made.gain.value >= 0, made.gain_p < ALPHA],
            points=100 * abs(made.gain.value),
            label=made.majority,
            share=share_text(made.gain.first, 1),
            low=100 * made.gain.low,
            high=100 * made.gain.high,
        )
    if made.interval and high - low >= WIDE:
        few = "{rows:,} {split} rows are few: with more of them the intervals are narrower"
        yield _(few, rows=made.rows, split=split)


def _others(best: Run, against: Comparisons | None) -> Iterator[str]:
    """The words alone, and how many other runs tie with the best, are worse or better."""
    if against is None or not against.made:
        return
    if said := words_verdict(best, against):
        yield said
    ties = sum(one.accuracy.tie for one in against.made)
    worse = sum(one.accuracy.worse for one in against.made)
    yield others_sentence(noted("accuracy"), ties, worse, len(against.made) - ties - worse)


def _more_labels(curves: Sequence[SavedCurve]) -> Iterator[str]:
    """What the last step of a learning curve brought."""
    helps = (
        "from {before:,} to {rows:,} train rows the {metric} of the {head} head on {view} changed by "
        "{points:+.2f} points: more labels are likely to help"
    )
    chance = (
        "from {before:,} to {rows:,} train rows the {metric} of the {head} head on {view} changed by "
        "{points:+.2f} points, within the 95 % intervals: more labels may help"
    )
    little = (
        "from {before:,} to {rows:,} train rows the {metric} of the {head} head on {view} changed by "
        "{points:+.2f} points: more labels would add little"
    )
    for curve in [one for one in curves if len(one.points) > 1][:1]:
        before, last = sorted(curve.points, key=lambda point: point.rows)[-2:]
        gain, metric = last.score - before.score, _(curve.metric.replace("_", " "))
        about = {"head": curve.kind, "view": short_view(curve.request.view), "metric": metric}
        apart = last.low > before.high
        said = little if gain < HELPS else helps if apart else chance
        yield _(said, before=before.rows, rows=last.rows, points=100 * gain, **about)


def words_verdict(best: Run, against: Comparisons) -> str:
    """One sentence: whether the backbone adds anything to the words alone; empty where no run has none.

    Args:
        against: runs compared with `best`; another base says nothing of that.
    """
    if best.record.view == LEXICAL:
        best_alone = "no backbone is needed here: the words alone ({name}) are best on validation"
        return _(best_alone, name=best.name)
    made = next((one for one in against.made if one.run.record.view == LEXICAL), None)
    if made is None or against.base.folder != best.folder:
        return ""
    name, change = made.run.name, made.accuracy
    points = 100 * abs(change.difference.value)
    if change.tie:
        tie = (
            "the words alone ({name}) tie with the best run: what the backbone adds may be chance, and they "
            "predict faster"
        )
        return _(tie, name=name)
    if change.worse:
        adds = "the backbone adds {points:.1f} points to what the words alone ({name}) say"
        return _(adds, points=points, name=name)
    better = (
        "the words alone ({name}) are {points:.1f} points better than the best run: "
        "no backbone is needed here"
    )
    return _(better, name=name, points=points)


def others_sentence(what: str, ties: int, worse: int, better: int) -> str:
    """How many other runs tie with a run, are worse or better by `what`."""
    what, others = _(what), ties + worse + better
    if others == 1 and ties:
        return _("the other run, by {what}: tied with it", what=what)
    if others == 1:
        worst, best = "the other run, by {what}: worse", "the other run, by {what}: better"
        return _(worst if worse else best, what=what)
    parts = [_("{count:,} tied with it", count=ties)] if ties else []
    parts += [_("{count:,} worse", count=worse)] if worse else []
    parts += [_("{count:,} better", count=better)] if better else []
    return _("of {others:,} other runs, by {what}: {parts}", others=others, what=what, parts=listed(parts))
