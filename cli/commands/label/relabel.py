"""`featcache label --from RUN`: the doubtful labels of a run's train texts, asked again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.system.units import percent_text
from featcache.translation.language import gettext as _
from featcache_cli.console import note, out, print_result
from featcache_cli.options import settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from featcache.labelling.relabel import CorrectedLabels, LabelledSource
    from featcache.labelling.session import LabelSession


def relabel(
    args: argparse.Namespace, by: str, ask: Callable[[argparse.Namespace, LabelSession], object]
) -> int:
    """Ask, then write the corrected train texts and compare heads of both."""
    from featcache.labelling.answers import AnswersFile, AnswersHeader
    from featcache.labelling.relabel import correct, doubtful, labelled_source
    from featcache.labelling.session import LabelSession
    from featcache.runs.run import choose_run

    for flag in ("texts", "labels", "describe", "export", "agreement", "multi_label"):
        if getattr(args, flag):
            raise UsageError(f"--from and {flag.replace('_', '-')} cannot be given together")
    settings = settings_of(args)
    run = choose_run(Path(settings.paths.reports_dir), args.from_run)
    with Meter(quiet=args.quiet) as meter:
        source = labelled_source(run, settings, meter)
    first = doubtful(source)
    if not first:
        note(f"no label of {run.name} is doubted", quiet=args.quiet)
        return 0
    note(f"{len(first):,} of {len(source.texts.texts):,} train texts have a doubtful label", quiet=args.quiet)
    path = Path(args.answers) if args.answers else _beside(source, "relabel.jsonl")
    answers = AnswersFile(path, AnswersHeader(labels=source.labels))
    with answers.writer(by):
        session = LabelSession(source.texts, answers, by, first=first, only_first=True)
        ask(args, session)
    session.refresh()
    if not session.counted.labels:
        note("no label was answered, so nothing was written", quiet=args.quiet)
        return 0
    found = correct(source, session.counted, _beside(source, "corrected.jsonl"), settings)
    print_result(args, found, lambda: show(found))
    return 0


def _beside(source: LabelledSource, ending: str) -> Path:
    from featcache.labelling.answers import name_of

    return source.place.with_name(f"{name_of(source.place)}.{ending}")


def show(found: CorrectedLabels) -> None:
    console = out()
    said = [
        _(
            "{asked:,} texts answered, {changed:,} rows with another label",
            asked=found.asked, changed=found.changed,
        ),
        _("corrected train texts: {file}", file=found.file),
        _(
            "accuracy of an exact head on {split}: {before} with the labels as they were, {after} with the "
            "corrected ones (p = {p:.2g}, {rows:,} rows)",
            split=_(found.split), before=percent_text(found.before), after=percent_text(found.after),
            p=found.p, rows=found.rows,
        ),
    ]  # fmt: skip
    for sentence in said:
        console.print(sentence, soft_wrap=True)
