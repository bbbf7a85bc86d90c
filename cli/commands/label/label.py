"""`featcache label`: label the texts that teach a head most, on a page or in a terminal."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.system.packages import require_extra
from featcache.system.text import clip
from featcache.translation.language import gettext as _
from featcache.translation.language import language_from, listed, ngettext
from featcache_cli.console import columns, note, out, print_json, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    import numpy as np

    from featcache.labelling.answers import AnswersFile
    from featcache.labelling.encoding import BackgroundEncoding, EncodeWith
    from featcache.labelling.session import LabelSession
    from featcache.labelling.texts import TextsToLabel
    from featcache.labelling.votes import Agreement
    from featcache.settings import Settings
    from featcache.system.progress import OnProgress

NEEDED = ("fastapi", "uvicorn")
STRATEGIES = ("margin", "entropy", "typiclust", "mixed", "random")
SETTINGS_OF_DATA = ("text_column", "encoding", "sheet")
LISTED = 20  # disagreements on a terminal


def add(commands: Commands) -> None:
    example = "featcache label texts.csv --labels good,bad\nfeatcache label texts.csv --export labelled.csv"
    about = "label the texts that teach a head most, on a page or in a terminal"
    parser = add_command(commands, "label", about, example, run, continues=True)
    kinds = "csv, tsv, jsonl, parquet, xlsx or txt file of texts"
    parser.add_argument("texts", metavar="FILE", nargs="?", help=kinds)
    labels = "the labels, in the order of the keys 1 to 9; needed once, others can be added on the way"
    add_flag(parser, "--labels", labels, metavar="A,B,...")
    described = "toml file with a description of each label: first guesses and first texts without answers"
    add_flag(parser, "--describe", described, metavar="FILE")
    add_flag(parser, "--answers", "file of the answers (default: TEXTS.labels.jsonl)", metavar="FILE")
    parser.add_argument("--terminal", action="store_true", help="label here, without a browser")
    add_flag(parser, "--annotator", "who labels (default: the user's name)", metavar="NAME")
    parser.add_argument("--multi-label", action="store_true", help="a text may have several labels")
    how = "which texts are asked; one in five is drawn at random in any case"
    add_flag(parser, "--strategy", how, "mixed", choices=STRATEGIES)
    add_flag(parser, "--port", "of the page; 0: a free one", 8001)
    doubted = (
        "ask again which train labels of a run are right, most doubtful first, and compare heads of both"
    )
    add_flag(parser, "--from", doubted, dest="from_run", metavar="RUN")
    export = "write the labelled texts to a .csv, .jsonl or .parquet file, or a folder, and end"
    add_flag(parser, "--export", export, metavar="FILE")
    agreement = "how far the annotators agree, and the texts on which they do not; then end"
    parser.add_argument("--agreement", action="store_true", help=agreement)
    add_settings(parser, "backbone", "features", "endpoint", "paths", "")
    from featcache.settings import options

    unused = [one.name for one in options().values() if one.section == "data"]
    add_settings(parser, "data", without=[name for name in unused if name not in SETTINGS_OF_DATA])


def run(args: argparse.Namespace) -> int:
    if not (args.export or args.agreement or args.terminal):
        require_extra("label", "serve", NEEDED)
    from featcache.labelling.answers import whoami

    by = (args.annotator or whoami()).strip()
    if not by:
        raise UsageError("--annotator is empty", hint="give the name of the person who labels")
    if args.from_run:
        from featcache_cli.commands.label.relabel import relabel

        return relabel(args, by, _ask)
    if not args.texts:
        raise UsageError("a file of texts is needed", hint="featcache label texts.csv --labels good,bad")
    return _label(args, by)


def _label(args: argparse.Namespace, by: str) -> int:
    from featcache.labelling.texts import read_texts

    settings = settings_of(args)
    texts = read_texts(Path(args.texts), settings.data)
    for sentence in texts.notes:
        note(sentence, quiet=args.quiet)
    answers = _answers(args)
    if args.agreement:
        return _show_agreement(args, texts, answers)
    if args.export:
        return _export(args, texts, answers)
    from featcache.labelling.session import LabelSession

    with answers.writer(by):
        more: dict[str, Any] = {
            "strategy": args.strategy,
            "seed": settings.seed,
            "descriptions": _descriptions(args),
        }
        session = LabelSession(texts, answers, by, **more)
        encoding = _ask(args, session, settings)
    if args.terminal or not args.json:  # of a page with --json its address is the one document
        print_result(args, _summary(session), lambda: _show_session(args, session))
    if encoding.running:  # torch does not end well while a thread of it works; what is encoded is kept
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _answers(args: argparse.Namespace) -> AnswersFile:
    """The answers file; a new one needs labels, and labels that an old one lacks are refused."""
    from featcache.labelling.answers import AnswersFile, AnswersHeader, all_labels, default_path

    path = Path(args.answers) if args.answers else default_path(Path(args.texts))
    given = _named_labels(args) or tuple(_descriptions(args))
    if args.labels and (not all(given) or len(set(given)) < len(given)):
        raise UsageError(f"--labels {args.labels}: a label is empty or there twice")
    begun = path.exists() and path.stat().st_size > 0
    if not begun and (args.export or args.agreement):
        raise UsageError(f"there are no answers in {path}", hint="name the file: --answers")
    if not begun and len(given) < 2:
        raise UsageError("--labels is needed to begin: two labels or more", hint="e.g. --labels good,bad")
    file = AnswersFile(path, AnswersHeader(labels=given, multi_label=args.multi_label))
    known = all_labels(file.header, file.lines)
    if odd := [label for label in given if label not in known]:
        raise UsageError(
            f"{path} was begun with the labels {', '.join(known)}, and without {odd[0]!r}",
            hint="leave --labels out and add a label while you label, or name another --answers",
        )
    if args.multi_label and not file.header.multi_label:
        raise UsageError(f"{path} was begun with one label a text", hint="name another --answers")
    return file


def _named_labels(args: argparse.Namespace) -> tuple[str, ...]:
    """Those of `--labels`, with commas of English or Chinese between them."""
    return tuple(part.strip() for part in re.split("[,，]", args.labels)) if args.labels else ()


def _descriptions(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The described labels; labels that `--labels` does not name are refused."""
    from featcache.labelling.describe import read_descriptions

    if not args.describe:
        return {}
    found = read_descriptions(Path(args.describe))
    named = set(_named_labels(args) or found)
    if odd := set(found) - named:
        raise UsageError(f"--describe {args.describe} describes {min(odd)!r}, which is not in --labels")
    return found


def _ask(
    args: argparse.Namespace, session: LabelSession, settings: Settings | None = None
) -> BackgroundEncoding:
    """Let the person label until they stop; with `settings` the texts are encoded meanwhile."""
    from featcache.labelling.encoding import BackgroundEncoding

    def with_model(mine: Settings, work: EncodeWith, report: OnProgress) -> np.ndarray:
        from featcache.workflow.embedded import with_embedded_model

        own = replace(mine, data=replace(mine.data, dataset=args.texts, data_files=None))
        return with_embedded_model(own, work, named=args.model is not None, on_progress=report)[1]

    encoding = BackgroundEncoding(session, settings, with_model)
    note(f"answers are kept in {session.answers.path}", quiet=args.quiet)
    if args.terminal:
        from featcache_cli.commands.label.terminal import label_in_terminal

        encoding.start()
        label_in_terminal(session, encoding)
        return encoding
    from featcache.labelling.app import LabelService
    from featcache.serving.server import bind, serve

    with bind("127.0.0.1", args.port) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        encoding.start()
        if args.json:
            print_json({"url": url})
        note(f"label on {url} (Ctrl-C stops; the same command goes on)", quiet=args.quiet)
        # Also of an English terminal, or with --json: the page is for a person.
        serve(LabelService(session, encoding, args.lang or language_from(os.environ)), listening)
    note("stopped; every answer is kept", quiet=args.quiet)
    return encoding


def _summary(session: LabelSession) -> dict[str, object]:
    estimate = session.estimate()
    return {
        "answers": str(session.answers.path),
        "labelled": len(session.counted.labels),
        "estimate": None if estimate is None else asdict(estimate),
    }


def _show_session(args: argparse.Namespace, session: LabelSession) -> None:
    """What has come out, and the commands that make a verdict of it."""
    from featcache.labelling.answers import name_of
    from featcache.labelling.words import accuracy_sentence, counts_sentence

    for sentence in (counts_sentence(session), accuracy_sentence(session, session.estimate())):
        out().print(sentence, soft_wrap=True)
    given = session.counted.labels.values()
    if len(set().union(*given)) < 2:
        return
    folder = f"{name_of(Path(args.texts)).replace('.', '_')}_{len(given)}_labels"
    answers = ["--answers", args.answers] if args.answers else []
    export = shlex.join(["featcache", "label", args.texts, *answers, "--export", folder])
    for command in (_("next:"), f"  {export}", f"  {shlex.join(['featcache', 'run', folder])}"):
        note(command, quiet=args.quiet)


def _export(args: argparse.Namespace, texts: TextsToLabel, answers: AnswersFile) -> int:
    from featcache.labelling.export import SEPARATOR, labelled_texts, write_labelled
    from featcache.labelling.votes import CountedAnswers

    path = Path(args.export)
    if path.resolve() in (Path(args.texts).resolve(), answers.path.resolve()):
        raise UsageError(f"--export {path}: that is a file that is read", hint="give another name")
    counted = CountedAnswers.of(texts, answers.lines)
    rows = labelled_texts(texts, counted)
    write_labelled(path, rows, multi_label=answers.header.multi_label)
    shown = {"file": str(path), "rows": len(rows), "conflicts": len(counted.conflicts)}
    said = ngettext(
        "{count:,} labelled row in {path}", "{count:,} labelled rows in {path}", len(rows), path=path
    )
    print_result(args, shown, lambda: out().print(said, soft_wrap=True))
    if counted.conflicts:
        note(f"{len(counted.conflicts):,} texts with unlike labels left out: --agreement lists them")
    several = ["--label-separator", SEPARATOR] if answers.header.multi_label and path.suffix == ".csv" else []
    note(_("next:"), quiet=args.quiet)
    note("  " + shlex.join(["featcache", "run", str(path), *several]), quiet=args.quiet)
    return 0


def _show_agreement(args: argparse.Namespace, texts: TextsToLabel, answers: AnswersFile) -> int:
    from featcache.labelling.votes import CountedAnswers, agreement

    found = agreement(texts, CountedAnswers.of(texts, answers.lines))
    print_result(args, found, lambda: show_agreement(found))
    return 0


def show_agreement(found: Agreement) -> None:
    """Pairs of people, then the texts on which they differ."""
    console = out()
    if not found.texts:
        console.print(_("no text has answers of two people yet"))
        return
    shown = table(*columns("annotators", ">texts", ">same label", ">Cohen's kappa"))
    for pair in found.pairs:
        kappa = "-" if pair.kappa is None else f"{pair.kappa:.2f}"
        shown.add_row(f"{pair.first}, {pair.second}", f"{pair.texts:,}", f"{pair.same:.1%}", kappa)
    console.print(shown)
    alpha = _("not defined: all labels are the same") if found.alpha is None else f"{found.alpha:.2f}"
    console.print(_("Krippendorff's alpha over {texts:,} texts: {alpha}", texts=found.texts, alpha=alpha))
    for one in found.disagreements[:LISTED]:
        said = listed(f"{name}: {'+'.join(labels)}" for name, labels in one.labels.items())
        console.print(clip(f"  {said}  {' '.join(one.text.split())}", console.width), soft_wrap=True)
    if (left := len(found.disagreements) - LISTED) > 0:
        console.print("  " + _("and {left:,} more: --json lists all", left=left))
