"""The part of `featcache predict` that labels a whole file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from featcache.errors import UsageError
from featcache.settings import load_settings
from featcache.system.units import seconds_text, short_count_text
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated
from featcache_cli.console import columns, err, note, out, print_json, table
from featcache_cli.options import add_flag
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.data.formats.open import QuoteRule, RowFile
    from featcache.prediction.file import LabelledFile
    from featcache.prediction.predictor import Predictor
    from featcache.settings import DataSettings

SHOWN_LABELS = 12


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a file (csv, tsv, json, jsonl, parquet, txt; xlsx and zip are read)")
    add_flag(group, "--input", "file or URL to label, all columns kept; - for stdin", metavar="FILE")
    add_flag(group, "--output", "file or URL to write; its ending is its format", metavar="FILE")
    group.add_argument("--force", action="store_true", help="replace the output that is there")
    vectors = "of a run on imported vectors: the vectors of the rows of --input"
    add_flag(group, "--vectors", vectors, metavar="FILE")
    add_flag(group, "--array", "of --vectors: array or column (default: the only one)", metavar="NAME")
    add_flag(group, "--encoding", "of a text file, e.g. gb18030 (default: found by a look at the file)")
    add_flag(group, "--sheet", "of an Excel file (default: the only one with rows)", metavar="NAME")
    add_flag(group, "--text-column", "A,B joins two columns (default: found by its usual names)")
    add_flag(group, "--pair-column", "column with the second text of a pair")
    group.add_argument("--no-header", action="store_true", help="csv, tsv: the first line is a row")
    add_flag(group, "--input-format", "csv, tsv, json, jsonl, parquet or txt")
    add_flag(group, "--prefix", "put before the names of the added columns", "")
    raw = "csv, tsv: no ' in front of texts that a spreadsheet would calculate, such as =1+1"
    group.add_argument("--raw-cells", action="store_true", help=raw)


@dataclass(frozen=True)
class _FileTask:
    """One file to label: its input and output, each a path or a URL, and their formats."""

    source: Path | BinaryIO | str
    target: Path | str
    read: str
    written: str


def run_file(args: argparse.Namespace, load: Callable[[], Predictor]) -> int:
    """Label one file, or several below a URL; the model is loaded after everything else was checked."""
    from featcache.data.formats.write import OutputForm
    from featcache.prediction.file import predict_file, refuse_target
    from featcache.prediction.journal import remembered_quotes
    from featcache.system.output import Target

    predictor: Predictor | None = None
    several, made, left = _is_prefix(args), [], []
    for task in _tasks(args):
        if several and not args.force and Target.of(task.target).exists():
            left.append(str(task.target))  # an earlier call may have been interrupted
            note(f"not replaced: {task.target}", quiet=args.quiet)
            continue
        refuse_target(task.target, force=args.force)
        rows = open_input(args, fetched_source(task.source), task.read, remembered_quotes(task.target))
        predictor = predictor or load()
        predictor.check_pairs(rows.pair is not None)
        for text in _said(rows, task):
            note(text, quiet=args.quiet)
        with Meter(quiet=args.quiet) as meter:
            form = OutputForm(task.written, args.prefix, args.raw_cells)
            done = predict_file(predictor, rows, task.target, form, force=args.force, on_progress=meter)
        made.append(done)
        if not args.json:
            show(done)
    if args.json:
        print_json({"files": [document(one) for one in made], "left": left} if several else document(made[0]))
    return 0


def _tasks(args: argparse.Namespace) -> list[_FileTask]:
    """One task, or with an output that ends in / one for each file that the URL of the input matches."""
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
            raise UsageError(what, hint="let --output end in /, so that each gets a file of its name there")
        return [_task(args, urls[0], args.output)]
    names = [url.rpartition("/")[2].removesuffix(".gz") for url in urls]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"{shown(args.input)} matches several files that would be {twice} in the output")
    return [_task(args, url, args.output + name) for url, name in zip(urls, names, strict=True)]


def _task(args: argparse.Namespace, source: str, target: str) -> _FileTask:
    from featcache.data.formats.open import KINDS, kind_of
    from featcache.system.stores import is_remote, shown

    place = target if is_remote(target) else Path(target)
    written = kind_of(Path(target))
    if written not in KINDS or target.endswith(".gz"):
        raise UsageError(f"--output {shown(target)}: its ending is none of {', '.join(KINDS)}")
    if source == "-":
        return _FileTask(sys.stdin.buffer, place, args.input_format or "txt", written)
    read = args.input_format or kind_of(Path(source))
    if read is None:
        raise UsageError(
            f"--input {shown(source)}: its ending is none of {', '.join(KINDS)}, xlsx, zip",
            hint="name the format: --input-format csv",
        )
    origin = source if is_remote(source) else Path(source)
    same = source == target if isinstance(origin, str) or isinstance(place, str) else _same(origin, place)
    if same:
        raise UsageError(f"--output {shown(target)} is the input", hint="write another file")
    return _FileTask(origin, place, read, written)


def _same(source: Path, target: Path) -> bool:
    return source.exists() and target.exists() and source.samefile(target)


def _is_prefix(args: argparse.Namespace) -> bool:
    """Whether each file of the input gets an output of its own: the output ends in /, the input is a URL."""
    from featcache.system.stores import is_remote

    return bool(args.input) and is_remote(args.input) and str(args.output).endswith("/")


def fetched_source(source: Path | BinaryIO | str) -> Path | BinaryIO:
    """A URL as a file of this machine; anything else as it is."""
    from featcache.system.downloads import fetched

    return fetched(source) if isinstance(source, str) else source


def _said(rows: RowFile, task: _FileTask) -> tuple[str, ...]:
    """How the file is read, and written where that is not plain."""
    if not rows.needs_mark or task.written not in ("csv", "tsv"):
        return rows.notes
    return (*rows.notes, f"{task.target} is written as UTF-8 with a byte order mark, which Excel needs")


def read_settings(args: argparse.Namespace) -> DataSettings:
    """The settings file's, with the encoding and the sheet that flags name."""
    data: DataSettings = load_settings(path=args.config).data
    return replace(data, encoding=args.encoding or data.encoding, sheet=args.sheet or data.sheet)


def open_input(
    args: argparse.Namespace, source: Path | BinaryIO, kind: str, quotes: QuoteRule | None = None
) -> RowFile:
    """The input with the columns that flags name, else those of the settings file if it has them."""
    from featcache.data.formats.open import open_rows
    from featcache.errors import SourceError

    flags = {name: getattr(args, name) for name in ("text_column", "pair_column")}
    data = read_settings(args)
    asked = replace(data, **{name: value for name, value in flags.items() if value is not None})
    if kind == "txt":
        asked = replace(asked, **flags)
    elif isinstance(source, Path) and asked != replace(data, text_column=None, pair_column=None):
        try:
            return open_rows(source, kind, asked, header=not args.no_header, quotes=quotes)
        except SourceError:
            asked = replace(asked, **flags)
    return open_rows(source, kind, asked, header=not args.no_header, quotes=quotes)


def document(made: LabelledFile) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "output": str(made.path),
        "rows": made.rows,
        "labelled": made.rows - made.bad,
        "bad_rows": made.bad,
        "bad_rows_file": None if made.bad_path is None else str(made.bad_path),
        "first_bad_rows": made.first_bad,
        "truncated": made.truncated,
        "mostly_unknown": made.mostly_unknown,
        "abstained": made.abstained,
        "resumed": made.resumed,
        "seconds": made.seconds,
        "texts_per_s": (made.rows - made.resumed) / made.seconds if made.seconds else 0.0,
        "tokens": made.tokens,
        "counts": made.counts,
        "changed_cells": made.changed_cells,
    }


def show(made: LabelledFile) -> None:
    from rich.text import Text

    from featcache.backbone.tokens.unknown_tokens import mostly_unknown_text

    labelled, held = made.rows - made.bad, made.abstained or 0
    console = out()
    rate = (made.rows - made.resumed) / made.seconds if made.seconds else 0.0
    whole = "{labelled:,} of {rows:,} rows labelled in {seconds} ({rate} texts/s): {path}"
    went_on = (
        "{labelled:,} of {rows:,} rows labelled, {resumed:,} of them in an earlier call in {seconds} "
        "({rate} texts/s): {path}"
    )
    said = _(
        went_on if made.resumed else whole, labelled=labelled - held, rows=made.rows, resumed=made.resumed,
        seconds=seconds_text(made.seconds), rate=short_count_text(rate), path=made.path,
    )  # fmt: skip
    console.print(said, soft_wrap=True)
    shown = table(*columns("label", ">rows", ">share"))
    ordered = sorted(made.counts.items(), key=lambda item: -item[1])
    for label, count in ordered[:SHOWN_LABELS]:
        shown.add_row(Text(label), f"{count:,}", f"{count / max(labelled, 1):.1%}")
    if made.abstained is not None:
        shown.add_row(Text(_("no answer"), style="italic"), f"{held:,}", f"{held / max(labelled, 1):.1%}")
    if shown.row_count:  # numbers are not counted
        console.print(shown)
    if len(ordered) > SHOWN_LABELS:
        console.print(_("and {count} more labels", count=len(ordered) - SHOWN_LABELS))
    if not made.rows:
        note(f"the input has no rows, so there are none in {made.path}")
    if made.truncated:
        note(f"{made.truncated:,} texts were longer than the maximum length and were truncated")
    if made.changed_cells:
        what = "cells that begin like a formula, so that no spreadsheet calculates them"
        note(f"a ' was put before {made.changed_cells:,} {what}; --raw-cells writes them as they are")
    if made.mostly_unknown:
        note(mostly_unknown_text(made.mostly_unknown, labelled))
    if made.bad:
        bad = "{count:,} rows could not be labelled, listed in {path}:"
        err().print(_(bad, count=made.bad, path=made.bad_path), soft_wrap=True)
        for row in made.first_bad:
            line = _("  line {line}: {problem}", line=row.line, problem=translated(row.problem))
            err().print(line, soft_wrap=True)
