"""The part of `featcache predict` that labels a whole file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from featcache.errors import UsageError
from featcache.system.units import seconds_text, short_count_text
from featcache_cli.console import err, note, out, print_json, table
from featcache_cli.options import settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.data.formats.open import QuoteRule, RowFile
    from featcache.prediction.file import LabelledFile
    from featcache.prediction.predictor import Predictor
    from featcache.settings import DataSettings
    from featcache.system.progress import Progress

SHOWN_LABELS = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a file (csv, tsv, json, jsonl, parquet, txt)")
    group.add_argument("--input", metavar="FILE", help="file or URL to label, all columns kept; - for stdin")
    group.add_argument("--output", metavar="FILE", help="file or URL to write; its ending says its form")
    group.add_argument("--force", action="store_true", help="replace the output that is there")
    group.add_argument("--text-column", metavar="COLUMN", help="default: found by its usual names")
    group.add_argument("--pair-column", metavar="COLUMN", help="column with the second text of a pair")
    group.add_argument("--no-header", action="store_true", help="csv, tsv: the first line is a row")
    group.add_argument("--input-format", metavar="FORMAT", help="csv, tsv, json, jsonl, parquet or txt")
    group.add_argument("--prefix", default="", help="put before the names of the added columns")


@dataclass(frozen=True)
class _Task:
    """One file to label: where its rows come from and go, each a path or a URL, and their kinds."""

    source: Path | BinaryIO | str
    target: Path | str
    read: str
    written: str


def run_file(args: argparse.Namespace, load: Callable[[], Predictor]) -> int:
    """Everything that can be refused is refused before the model is loaded."""
    from featcache.prediction.file import predict_file, refuse_target
    from featcache.prediction.journal import remembered_quotes
    from featcache.system.output import Target

    predictor: Predictor | None = None
    several, made, left = _is_prefix(args), [], []
    for task in _tasks(args):
        if several and not args.force and Target.of(task.target).exists():
            left.append(str(task.target))  # of an earlier call that was interrupted
            note(f"left as it is: {task.target}", quiet=args.quiet)
            continue
        refuse_target(task.target, force=args.force)
        rows = open_input(args, fetched_source(task.source), task.read, remembered_quotes(task.target))
        predictor = predictor or load()
        _check_pairs(predictor, rows, args)
        with FileMeter(quiet=args.quiet) as meter:
            done = predict_file(
                predictor, rows, task.target, task.written,
                prefix=args.prefix, force=args.force, on_progress=meter,
            )  # fmt: skip
        made.append(done)
        if not args.json:
            show(done)
    if args.json:
        print_json({"files": [document(one) for one in made], "left": left} if several else document(made[0]))
    return 0


def _tasks(args: argparse.Namespace) -> list[_Task]:
    """One file, or with an output that ends in / one for each that the URL of the input matches."""
    from featcache.data.formats.open import KINDS
    from featcache.system.stores import expanded, is_remote, shown

    if args.texts or args.pair:
        raise UsageError("--input and texts cannot be given together")
    if not args.input or not args.output:
        raise UsageError("--input and --output belong together", hint="e.g. --input a.csv --output b.csv")
    if args.input_format is not None and args.input_format not in KINDS:
        raise UsageError(f"--input-format {args.input_format}: it is none of {', '.join(KINDS)}")
    if args.input == "-" or not is_remote(args.input):
        return [_task(args, args.input, args.output)]
    urls = expanded(args.input)
    if not _is_prefix(args):
        if len(urls) > 1:
            what = f"{shown(args.input)} matches {len(urls)} files"
            raise UsageError(what, hint="let --output end in /: each gets a file of its name there")
        return [_task(args, urls[0], args.output)]
    names = [url.rpartition("/")[2].removesuffix(".gz") for url in urls]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"{shown(args.input)} matches several files that would be {twice} in the output")
    return [_task(args, url, args.output + name) for url, name in zip(urls, names, strict=True)]


def _task(args: argparse.Namespace, source: str, target: str) -> _Task:
    from featcache.data.formats.open import KINDS, kind_of
    from featcache.system.stores import is_remote, shown

    place = target if is_remote(target) else Path(target)
    written = kind_of(Path(target))
    if written is None or target.endswith(".gz"):
        raise UsageError(f"--output {shown(target)}: its ending is none of {', '.join(KINDS)}")
    if source == "-":
        return _Task(sys.stdin.buffer, place, args.input_format or "txt", written)
    read = args.input_format or kind_of(Path(source))
    if read is None:
        raise UsageError(
            f"--input {shown(source)}: its ending is none of {', '.join(KINDS)}",
            hint="say it: --input-format csv",
        )
    origin = source if is_remote(source) else Path(source)
    same = source == target if isinstance(origin, str) or isinstance(place, str) else _same(origin, place)
    if same:
        raise UsageError(f"--output {shown(target)} is the input", hint="write another file")
    return _Task(origin, place, read, written)


def _same(source: Path, target: Path) -> bool:
    return source.exists() and target.exists() and source.samefile(target)


def _is_prefix(args: argparse.Namespace) -> bool:
    """Whether the output names a folder of files to be: where it ends in / and the input is a URL."""
    from featcache.system.stores import is_remote

    return bool(args.input) and is_remote(args.input) and str(args.output).endswith("/")


def fetched_source(source: Path | BinaryIO | str) -> Path | BinaryIO:
    """What a URL stands for as a file of this machine; anything else as it is."""
    from featcache.system.downloads import fetched

    return fetched(source) if isinstance(source, str) else source


def open_input(
    args: argparse.Namespace, source: Path | BinaryIO, kind: str, quotes: QuoteRule | None = None
) -> RowFile:
    """Columns as named by flags; those of the settings file count where the file has them."""
    from featcache.data.formats.open import open_rows
    from featcache.errors import SourceError

    flags = {name: getattr(args, name) for name in ("text_column", "pair_column")}
    data: DataSettings = settings_of(argparse.Namespace(config=args.config)).data
    asked = replace(data, **{name: value for name, value in flags.items() if value is not None})
    if kind == "txt":
        asked = replace(asked, **flags)
    elif isinstance(source, Path) and asked != replace(data, text_column=None, pair_column=None):
        try:
            return open_rows(source, kind, asked, header=not args.no_header, quotes=quotes)
        except SourceError:
            asked = replace(asked, **flags)
    return open_rows(source, kind, asked, header=not args.no_header, quotes=quotes)


def _check_pairs(predictor: Predictor, rows: RowFile, args: argparse.Namespace) -> None:
    """One text or two is what the head was trained on, where that is known."""
    predictor.check_pairs(rows.pair is not None)
    if rows.pair is not None:
        note(f"pairs: {rows.text} with {rows.pair}", quiet=args.quiet)


class FileMeter(Meter):
    """Draws what `predict_file` reports; of a stream nobody knows how much is left."""

    def __call__(self, progress: Progress) -> None:
        rate = self.rate("predict", progress.done)
        tokens = self.rate("tokens", progress.tokens)
        info = f"{short_count_text(rate)} texts/s {short_count_text(tokens)} tokens/s" if rate else ""
        if progress.total:
            self.step("predict", progress.done, progress.total, info)
        elif self.bars:
            if "predict" not in self._tasks:
                self._tasks["predict"] = self.bars.add_task("predict", total=None, info="", count="")
            self.bars.update(self._tasks["predict"], info=info, count=short_count_text(progress.done))  # type: ignore[arg-type]
        else:
            self.step("predict", progress.done, progress.done, info)


def document(made: LabelledFile) -> dict[str, Any]:
    """As `--json` shows it."""
    return {
        "output": str(made.path),
        "rows": made.rows,
        "labelled": made.rows - made.bad,
        "bad_rows": made.bad,
        "bad_rows_file": None if made.bad_path is None else str(made.bad_path),
        "first_bad_rows": [asdict(row) for row in made.first_bad],
        "truncated": made.truncated,
        "resumed": made.resumed,
        "seconds": made.seconds,
        "texts_per_s": (made.rows - made.resumed) / made.seconds if made.seconds else 0.0,
        "tokens": made.tokens,
        "counts": made.counts,
    }


def show(made: LabelledFile) -> None:
    from rich.text import Text

    labelled = made.rows - made.bad
    console = out()
    rate = (made.rows - made.resumed) / made.seconds if made.seconds else 0.0
    went_on = f", {made.resumed:,} of them before" if made.resumed else ""
    console.print(
        f"{labelled:,} of {made.rows:,} rows labelled{went_on} in {seconds_text(made.seconds)} "
        f"({short_count_text(rate)} texts/s): {made.path}",
        soft_wrap=True,
    )
    shown = table([("label", "left"), ("rows", "right"), ("share", "right")])
    ordered = sorted(made.counts.items(), key=lambda item: -item[1])
    for label, count in ordered[:SHOWN_LABELS]:
        shown.add_row(Text(label), f"{count:,}", f"{count / max(labelled, 1):.1%}")
    console.print(shown)
    if len(ordered) > SHOWN_LABELS:
        console.print(f"and {len(ordered) - SHOWN_LABELS} more labels")
    if made.truncated:
        note(f"{made.truncated:,} texts were longer than the longest length and were cut")
    if made.bad:
        err().print(f"{made.bad:,} rows could not be labelled, listed in {made.bad_path}:", soft_wrap=True)
        for row in made.first_bad:
            err().print(f"  line {row.line}: {row.problem}", soft_wrap=True)
