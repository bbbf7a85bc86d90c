"""`featcache import`: vectors that were made elsewhere, into the cache."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.system.text import readable
from featcache.system.units import seconds_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.importing.api import Imported

SPLITS = ("train", "validation", "test")
STAGES = {"check": noted("check vectors", "stage"), "seal": noted("write vectors", "stage")}
SHOWN_LABELS = 12


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import",
        "put vectors that were made elsewhere into the cache, for heads on vectors:NAME",
        "featcache import vectors.npy --texts texts.csv --as NAME\n"
        "featcache import test.npy --texts test.csv --split test --as NAME",
        run,
    )
    kinds = "npy, npz, parquet with a column of lists, h5, safetensors, or a folder of dataset.save_to_disk"
    parser.add_argument("vectors", metavar="VECTORS", help=kinds)
    add_flag(
        parser,
        "--texts",
        "file with the texts and labels, a row for each vector",
        metavar="FILE",
        required=True,
    )
    add_flag(
        parser,
        "--as",
        "name of the vectors, for --model vectors:NAME",
        dest="name",
        metavar="NAME",
        required=True,
    )
    whole = "train, validation or test (default: train rows, of which validation is held out)"
    parser.add_argument("--split", choices=SPLITS, metavar="SPLIT", help=whole)
    add_flag(parser, "--describe-model", "what made the vectors, in your words", metavar="TEXT")
    add_flag(parser, "--array", "array or column with the vectors (default: the only one)", metavar="NAME")
    key = "column of the texts, and array or column beside the vectors, that must be equal row by row"
    add_flag(parser, "--order-key", key, metavar="NAME")
    storage = "float16 or float32 (default: float16 stays, all others become float32)"
    parser.add_argument("--storage", choices=("float16", "float32"), metavar="TYPE", help=storage)
    add_settings(parser, "data", "paths", "", without=("dataset", "dataset_revision", "data_files"))


def run(args: argparse.Namespace) -> int:
    from featcache.importing.api import VectorsToImport, import_file

    settings = settings_of(args, {"data_files": {args.split or "train": args.texts}})
    asked = VectorsToImport(
        name=args.name, model=args.describe_model, array=args.array, order_key=args.order_key,
        storage=args.storage,
    )  # fmt: skip
    with Meter(quiet=args.quiet, names=STAGES) as meter:
        found = import_file(settings, Path(args.vectors), asked, args.split, on_progress=meter)
    for text in dict.fromkeys(text for one in found for text in one.notes):
        note(text, quiet=args.quiet)
    print_result(args, {"splits": [record(one) for one in found]}, lambda: show(found))
    if not args.json:
        note(_next(found, args.name), quiet=args.quiet)
    return 0


def _next(found: Sequence[Imported], name: str) -> str:
    splits = {one.split for one in found}
    if splits == {"train"}:
        return _("next: featcache import FILE --texts FILE --split validation --as {name}", name=name)
    return _("next: featcache train-head --model vectors:{name}", name=name)


def record(one: Imported) -> dict[str, Any]:
    """One split as `--json` shows it."""
    return {
        "split": one.split,
        "rows": one.rows,
        "width": one.width,
        "dtype": one.dtype,
        "storage": one.storage,
        "seconds": round(one.seconds, 3),
        "cached": one.cached,
        "fingerprint": one.fingerprint,
        "path": str(one.path),
        "labels": one.labels,
    }


def show(found: Sequence[Imported]) -> None:
    """A table of the splits, and their labels."""
    shown = table(*columns("split", ">rows", ">numbers in a vector", "type", ">seconds", "file"))
    for one in found:
        kept = one.dtype if one.dtype == one.storage else f"{one.dtype} -> {one.storage}"
        seconds = _("cached") if one.cached else seconds_text(one.seconds)
        shown.add_row(_(one.split), f"{one.rows:,}", f"{one.width:,}", kept, seconds, one.path.name)
    out().print(shown)
    for one in found:
        ordered = sorted(one.labels.items(), key=lambda item: -item[1])
        counts = listed(f"{readable(name)} ({rows:,})" for name, rows in ordered[:SHOWN_LABELS])
        text = _("labels of {split}: {counts}", split=_(one.split), counts=counts or _("numbers"))
        out().print(text, soft_wrap=True, markup=False, highlight=False)
