"""`featcache run SOURCE`: extract all splits, train heads of rising depth and their baselines, compare."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.cache.view_names import LEXICAL
from featcache.data.test_split import with_test_split
from featcache.errors import NoInnerLayers, UsageError
from featcache.fingerprint import REGRESSION
from featcache.settings import CONFIG_FILE, load_settings
from featcache.settings_file import to_toml
from featcache.system.durable import write_file
from featcache_cli.commands import compare, extract, train_head
from featcache_cli.console import note, print_json
from featcache_cli.number_runs import show_number_runs
from featcache_cli.options import Commands, add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.extraction.job import Extracted
    from featcache.runs.run import Run
    from featcache.settings import Settings


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "extract all splits, train heads and their baselines, compare",
        "featcache run reviews.csv\nfeatcache run lansinuote/ChnSentiCorp --model bert-base-chinese",
        run,
        continues=True,
    )
    about = "file, folder, URL or hub id, as --dataset; featcache.toml is then written for the other commands"
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=about)
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = _settings(args)
    results, runs = run_all(settings, quiet=args.quiet, show=not args.json)
    if args.json:
        print_json(document(results, runs))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """Those of the command, with a test split where files have none; SOURCE has them written down."""
    if args.source is not None and (args.dataset is not None or args.data_files is not None):
        raise UsageError("SOURCE and --dataset or --data-files cannot be given together")
    settings = settings_of(args, {} if args.source is None else {"dataset": args.source})
    data, decided = with_test_split(settings.data)
    settings = replace(settings, data=data)
    if decided is not None:
        note(decided, quiet=args.quiet)
    file = Path(args.config or CONFIG_FILE)
    if args.source is not None and not file.exists():
        write_file(file, to_toml(settings).encode("utf-8"))
        note(f"wrote {file}: the other commands work here as typed", quiet=args.quiet)
    elif decided is not None and load_settings(path=args.config) != settings:
        flag = f"--test-share {data.test_share:g}" if data.test_share else f"--test-split {data.test_split}"
        note(f"the other commands need {flag}, too, or a line of it in {file}", quiet=args.quiet)
    return settings


def document(results: list[Extracted], runs: list[Run]) -> dict[str, Any]:
    """What `--json` prints of `run_all`."""
    return {
        "splits": [extract.record(result) for result in results],
        "runs": [train_head.record(run) for run in runs],
    }


def run_all(settings: Settings, *, quiet: bool, show: bool) -> tuple[list[Extracted], list[Run]]:
    """Extract, train and compare; prints the tables on stdout if `show`.

    Trained are the words alone, a linear head and scikit-learn's logistic regression on each view, and
    logistic regression over depth, without and with the words. Where labels are numbers, a linear head and
    ridge regression on each view, and ridge regression over depth.
    """
    from featcache.runs.run import best_run
    from featcache.runs.words import CountedWords

    asked = [view for view in settings.features.views if view != DEPTH] or ["last/cls"]
    settings, results = _extract(settings, quiet=quiet)
    if show:
        extract.show(results, quiet=quiet)
    numbers = settings.data.task == REGRESSION
    kinds = ("linear", "ridge") if numbers else ("linear", "logistic")
    wanted = [(kind, view) for view in asked for kind in kinds]
    if not numbers:
        wanted.insert(0, (LEXICAL, LEXICAL))
    if DEPTH in settings.features.views:
        deep = [("ridge", DEPTH)] if numbers else [("exact", DEPTH), ("exact", f"{DEPTH},{LEXICAL}")]
        wanted += deep
    words = CountedWords()  # counted and fitted once for both heads that read them
    runs = [train_head.train(settings, kind, view, quiet=quiet, words=words) for kind, view in wanted]
    if show and numbers:
        show_number_runs(runs)
    elif show:
        best = best_run(runs)
        compare.show(runs, best, compare.compared_with(best, runs))
        note('next: featcache predict "TEXT", featcache report', quiet=quiet)
    return results, runs


def _extract(settings: Settings, *, quiet: bool) -> tuple[Settings, list[Extracted]]:
    """Extract the views that are asked for and those of depth; without these where the model has none."""
    views = tuple(dict.fromkeys((*settings.features.views, DEPTH)))
    deep = replace(settings, features=replace(settings.features, views=views))
    try:
        return deep, extract.extract_splits(deep, extract.SPLITS, quiet=quiet)
    except NoInnerLayers as error:
        if DEPTH in settings.features.views:
            raise
        note(f"no head over depth: {error.what}", quiet=quiet)
        return settings, extract.extract_splits(settings, extract.SPLITS, quiet=quiet)
