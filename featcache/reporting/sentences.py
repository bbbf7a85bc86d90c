"""What a report says in a few sentences at its top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from featcache.inspection.data_checks import DataCheck
from featcache.reporting.document import RunReport
from featcache.reporting.parts import percent, spread
from featcache.reporting.verdict import RunVerdict

HELPS = 0.005  # gain by the last step of a learning curve from which on more labels are likely to help


def report_sentences(report: RunReport, found: RunVerdict) -> list[str]:
    """How good the run is and how sure that is, whether more labels would help, and what to look at."""
    said = [*found.sentences, *_micro_f1(report), *_more_labels(report), *checks_sentence(report.checks)]
    return sentences(said, found.run)


def sentences(said: Iterable[str], run: str) -> list[str]:
    """Each with a capital letter and a full stop; a run's name keeps its letters."""
    return [one if one.startswith(run) else one[:1].upper() + one[1:] for one in (f"{one}." for one in said)]


def checks_sentence(checks: Sequence[DataCheck]) -> Iterator[str]:
    """Which checks found something."""
    found = [check.name for check in checks if check.state != "good"]
    if found:
        yield f"Look at the data: {', '.join(found)} ({len(found)} of {len(checks)} checks)"
    elif checks:
        yield "All data checks are good"


def _micro_f1(report: RunReport) -> Iterator[str]:
    """Of several labels a row, where exact matches say little."""
    if report.about.multi_label and "micro_f1" in report.headline:
        micro = report.headline["micro_f1"]
        yield f"Over all labels together, F1 is {percent(micro.value)} (95 %: {spread(micro.interval)})"


def _more_labels(report: RunReport) -> Iterator[str]:
    """What the last step of the learning curve brought."""
    for curve in report.learning_curves[:1]:
        if len(curve.points) < 2:
            return
        (before, low_score, *_), (rows, score, *_) = sorted(map(tuple, curve.points))[-2:]
        gain = score - low_score
        helps = "more labels are likely to help" if gain >= HELPS else "more labels would add little"
        yield (
            f"From {before:,.0f} to {rows:,.0f} train rows the {curve.metric.replace('_', ' ')} changed by "
            f"{100 * gain:+.2f} points: {helps}"
        )
