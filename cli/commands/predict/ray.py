"""The part of `featcache predict` that labels many files with a Ray cluster."""

from __future__ import annotations

import argparse
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import SourceError, UsageError
from featcache_cli.chosen_run import abstention_of, backbone_of
from featcache_cli.commands.predict.file import document, fetched_source, open_input, read_settings, show
from featcache_cli.console import print_result
from featcache_cli.engine import engine_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.runs.run import Run


def run_ray(args: argparse.Namespace, run: Run) -> int:
    """Label what the paths or URLs of `--input` match into the folder `--output`."""
    from featcache.cluster.cluster import require_ray
    from featcache.cluster.output_parts import part_kind
    from featcache.cluster.predict import FilesToLabel, Reading, predict_with_ray
    from featcache.system.stores import is_remote

    if args.texts or args.pair or args.input == "-" or not args.input or not args.output:
        raise UsageError("--engine ray labels files", hint="--input 'reviews/*.parquet' --output labelled/")
    if args.input_format is not None:
        raise UsageError(
            "--input-format with --engine ray", hint="the names of the files must end in their format"
        )
    require_ray()
    sources = _sources(args.input)
    kinds = [part_kind(source) for source in sources]
    source = fetched_source(sources[0] if is_remote(sources[0]) else Path(sources[0]))
    first = open_input(args, source, kinds[0])
    form = (not args.no_header, args.prefix, args.raw_cells)
    reading = Reading(first.text, first.pair, *form, encoding=read_settings(args).encoding)
    with Meter(quiet=args.quiet) as meter:
        made = predict_with_ray(
            run, FilesToLabel(sources, args.output, reading, abstention_of(args)), engine_of(args),
            backbone=backbone_of(args, run), force=args.force, on_progress=meter,
        )  # fmt: skip
    print_result(args, document(made), lambda: show(made))
    return 0


def _sources(text: str) -> list[str]:
    """The files that a path or a URL matches, in the order of their names."""
    from featcache.system.stores import expanded, is_remote

    if is_remote(text):
        return expanded(text)
    found = [text] if Path(text).is_file() else sorted(glob(text, recursive=True))  # noqa: PTH207
    files = [str(Path(name).absolute()) for name in found if Path(name).is_file()]
    if not files:
        raise SourceError(f"no file matches {text}", hint="write the pattern as it is seen from this folder")
    return files
