"""What a report says in a few sentences at its top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from featcache.inspection.data_checks import DataCheck
from featcache.reporting.document import RunReport
from featcache.reporting.parts import percent, spread
from featcache.reporting.verdict import RunVerdict
from featcache.translation.language import gettext as _
from featcache.translation.language import listed

HELPS = 0.005  # gain by the last step of a learning curve from which on more labels are likely to help


def report_sentences(report: RunReport, found: RunVerdict) -> list[str]:
    """How good the run is and how sure that is, whether more labels would help, and what to look at."""
    said = [*found.sentences, *_micro_f1(report), *_more_labels(report), *checks_sentence(report.checks)]
    return sentences(said, found.run)


def sentences(said: Iterable[str], run: str) -> list[str]:
    """Each with a capital letter and a full stop; a run's name keeps its letters."""
    whole = (_("{sentence}.", sentence=one) for one in said)
    return [one if one.startswith(run) else one[:1].upper() + one[1:] for one in whole]


def checks_sentence(checks: Sequence[DataCheck]) -> Iterator[str]:
    """Which checks found something."""
    found = [_(check.name) for check in checks if check.state != "good"]
    if found:
        look = "Look at the data: {names} ({found} of {checks} checks)"
        yield _(look, names=listed(found), found=len(found), checks=len(checks))
    elif checks:
        yield _("All data checks are good")


def _micro_f1(report: RunReport) -> Iterator[str]:
    """Of several labels a row, where exact matches say little."""
    if report.about.multi_label and "micro_f1" in report.headline:
        micro = report.headline["micro_f1"]
        said = "Over all labels together, F1 is {score} (95 %: {ends})"
        yield _(said, score=percent(micro.value), ends=spread(micro.interval))


def _more_labels(report: RunReport) -> Iterator[str]:
    """What the last step of the learning curve brought."""
    for curve in report.learning_curves[:1]:
        if len(curve.points) < 2:
            return
        (before, low_score), (rows, score) = (point[:2] for point in sorted(map(tuple, curve.points))[-2:])
        gain = score - low_score
        helps = (
            "From {before:,.0f} to {rows:,.0f} train rows the {metric} changed by {points:+.2f} points: "
            "more labels are likely to help"
        )
        little = (
            "From {before:,.0f} to {rows:,.0f} train rows the {metric} changed by {points:+.2f} points: "
            "more labels would add little"
        )
        metric = _(curve.metric.replace("_", " "))
        yield _(
            helps if gain >= HELPS else little, before=before, rows=rows, metric=metric, points=100 * gain
        )
