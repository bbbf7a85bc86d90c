"""What a report says in a few sentences at its top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from featcache.inspection.data_checks import DataCheck
from featcache.reporting.document import RunReport
from featcache.reporting.parts import percent, spread
from featcache.reporting.verdict import RunVerdict
from featcache.translation.language import gettext as _
from featcache.translation.language import listed


def report_sentences(report: RunReport, found: RunVerdict) -> list[str]:
    """What the verdict says, and what to look at."""
    said = [*found.sentences, *_micro_f1(report), *checks_sentence(report.checks)]
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
