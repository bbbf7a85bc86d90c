"""The part of `featcache predict` that labels a whole file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from featcache.errors import UsageError
from featcache_cli.console import err, note, out, print_json, seconds_text, table
from featcache_cli.options import settings_of
from featcache_cli.progress import Meter, short

if TYPE_CHECKING:
    from featcache.config import DataSettings
    from featcache.predict_files import Labelled, Step
    from featcache.predictor import Predictor
    from featcache.row_files import RowFile

SHOWN_LABELS = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a file (csv, tsv, jsonl, parquet, txt)")
    group.add_argument("--input", metavar="FILE", help="file to label, all columns kept; - for stdin")
    group.add_argument("--output", metavar="FILE", help="file to write; its ending says its form")
    group.add_argument("--force", action="store_true", help="replace the output that is there")
    group.add_argument("--text-column", metavar="COLUMN", help="default: found by its usual names")
    group.add_argument("--pair-column", metavar="COLUMN", help="column with the second text of a pair")
    group.add_argument("--no-header", action="store_true", help="csv, tsv: the first line is a row")
    group.add_argument("--input-format", metavar="FORMAT", help="csv, tsv, jsonl, parquet or txt")
    group.add_argument("--prefix", default="", help="put before the names of the added columns")


def run_file(args: argparse.Namespace, load: Callable[[], Predictor]) -> int:
    """Everything that can be refused is refused before the model is loaded."""
    from featcache.predict_files import predict_file, refuse_target

    source, target, kinds = _places(args)
    refuse_target(target, force=args.force)
    rows = _open(args, source, kinds[0])
    predictor = load()
    _check_pairs(predictor, rows, args)
    with FileMeter(quiet=args.quiet) as meter:
        made = predict_file(
            predictor, rows, target, kinds[1], prefix=args.prefix, force=args.force, report=meter
        )
    if args.json:
        print_json(document(made))
    else:
        show(made)
    return 0


def _places(args: argparse.Namespace) -> tuple[Path | BinaryIO, Path, tuple[str, str]]:
    from featcache.row_files import KINDS, kind_of

    if args.texts or args.pair:
        raise UsageError("--input and texts cannot be given together")
    if not args.input or not args.output:
        raise UsageError("--input and --output belong together", hint="e.g. --input a.csv --output b.csv")
    target = Path(args.output)
    written = kind_of(target)
    if written is None or target.name.endswith(".gz"):
        raise UsageError(f"--output {target}: its ending is none of {', '.join(KINDS)}")
    if args.input_format is not None and args.input_format not in KINDS:
        raise UsageError(f"--input-format {args.input_format}: it is none of {', '.join(KINDS)}")
    if args.input == "-":
        return sys.stdin.buffer, target, (args.input_format or "txt", written)
    source = Path(args.input)
    read = args.input_format or kind_of(source)
    if read is None:
        raise UsageError(
            f"--input {source}: its ending is none of {', '.join(KINDS)}", hint="say it: --input-format csv"
        )
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"--output {target} is the input", hint="write another file")
    return source, target, (read, written)


def _open(args: argparse.Namespace, source: Path | BinaryIO, kind: str) -> RowFile:
    """Columns as named by flags; those of the settings file count where the file has them."""
    from featcache.errors import SourceError
    from featcache.row_files import open_rows

    flags = {name: getattr(args, name) for name in ("text_column", "pair_column")}
    data: DataSettings = settings_of(argparse.Namespace(config=args.config)).data
    asked = replace(data, **{name: value for name, value in flags.items() if value is not None})
    if kind == "txt":
        asked = replace(asked, **flags)
    elif isinstance(source, Path) and asked != replace(data, text_column=None, pair_column=None):
        try:
            return open_rows(source, kind, asked, header=not args.no_header)
        except SourceError:
            asked = replace(asked, **flags)
    return open_rows(source, kind, asked, header=not args.no_header)


def _check_pairs(predictor: Predictor, rows: RowFile, args: argparse.Namespace) -> None:
    """One text or two is what the head was trained on, where that is known."""
    predictor.check_pairs(rows.pair is not None)
    if rows.pair is not None:
        note(f"pairs: {rows.text} with {rows.pair}", quiet=args.quiet)


class FileMeter(Meter):
    """Draws what `predict_file` reports; of a stream nobody knows how much is left."""

    def __call__(self, step: Step) -> None:
        rate = self.rate("predict", step.rows)
        tokens = self.rate("tokens", step.tokens)
        info = f"{short(rate)} texts/s {short(tokens)} tokens/s" if rate else ""
        if step.total is not None:
            self.step("predict", step.rows, max(step.total, step.rows), info)
        elif self.bars:
            if "predict" not in self._tasks:
                self._tasks["predict"] = self.bars.add_task("predict", total=None, info="", count="")
            self.bars.update(self._tasks["predict"], info=info, count=short(step.rows))  # type: ignore[arg-type]
        else:
            self.step("predict", step.rows, step.rows, info)


def document(made: Labelled) -> dict[str, Any]:
    """As `--json` shows it."""
    return {
        "output": str(made.path),
        "rows": made.rows,
        "labelled": made.rows - made.bad,
        "bad_rows": made.bad,
        "bad_rows_file": None if made.bad_path is None else str(made.bad_path),
        "first_bad_rows": list(made.first_bad),
        "truncated": made.truncated,
        "resumed": made.resumed,
        "seconds": made.seconds,
        "texts_per_s": (made.rows - made.resumed) / made.seconds if made.seconds else 0.0,
        "tokens": made.tokens,
        "counts": made.counts,
    }


def show(made: Labelled) -> None:
    from rich.text import Text

    labelled = made.rows - made.bad
    console = out()
    rate = (made.rows - made.resumed) / made.seconds if made.seconds else 0.0
    went_on = f", {made.resumed:,} of them before" if made.resumed else ""
    console.print(
        f"{labelled:,} of {made.rows:,} rows labelled{went_on} in {seconds_text(made.seconds)} "
        f"({short(rate)} texts/s): {made.path}",
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
        for one in made.first_bad:
            err().print(f"  line {one['line']}: {one['problem']}", soft_wrap=True)
