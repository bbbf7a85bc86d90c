"""`featcache run`: extract all splits, train heads of rising depth and their baselines, compare."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.cache.view_names import LEXICAL
from featcache.errors import NoInnerLayers
from featcache.fingerprint import REGRESSION
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
        "featcache run --model bert-base-chinese --dataset lansinuote/ChnSentiCorp",
        run,
        continues=True,
    )
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    results, runs = run_all(settings_of(args), quiet=args.quiet, show=not args.json)
    if args.json:
        print_json(document(results, runs))
    return 0


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
    runs = [train_head.train(settings, kind, view, quiet=quiet) for kind, view in wanted]
    if show and numbers:
        show_number_runs(runs)
    elif show:
        best = best_run(runs)
        compare.show(runs, best, compare.compared_with(best, runs))
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
