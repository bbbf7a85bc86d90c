"""`featcache demo`: the main job on a real encoder and real reviews, without any hub."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.settings import (
    CONFIG_FILE,
    DataSettings,
    FeatureSettings,
    Settings,
    build_settings,
    to_toml,
)
from featcache.system.durable import write_file
from featcache.system.units import seconds_text
from featcache_cli.commands import extract, train_head
from featcache_cli.commands.predict import predict
from featcache_cli.commands.run import run_all
from featcache_cli.console import note, print_json
from featcache_cli.options import add_command, add_settings
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.extraction.job import Extracted
    from featcache.runs.run import Run

TEXTS = (
    "房间干净，服务热情，离地铁站也近，下次还会住。",
    "电池用了一个星期就坏了，客服一直推脱，太失望了。",
    "The book arrived late and half of the pages were missing.",
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "demo",
        "the main job on an embedded encoder and reviews; leaves a featcache.toml",
        "featcache demo\nfeatcache demo --rows 1000",
    )
    parser.add_argument(
        "--rows", type=int, default=10_000, metavar="N", help="reviews to use (default: 10000)"
    )
    add_settings(parser, "paths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.rows < 100:
        raise UsageError(f"--rows {args.rows}: at least 100")
    began = time.perf_counter()
    settings = _demo_settings(args)
    _leave_settings(settings)
    _prepare(settings, args)
    results, runs = _run(settings, args)
    predictions = _predict(settings, args)
    seconds = time.perf_counter() - began
    if args.json:
        print_json(
            {
                "seconds": round(seconds, 2),
                "splits": [extract.record(result) for result in results],
                "runs": [train_head.record(run) for run in runs],
                "predictions": predictions,
            }
        )
    note(f"the demo took {seconds_text(seconds)}", quiet=args.quiet)
    note(f"{CONFIG_FILE} is written: every featcache command works here as typed", quiet=args.quiet)
    return 0


def _demo_settings(args: argparse.Namespace) -> Settings:
    from featcache.cache.cache import Cache
    from featcache.demo.demo import MODEL_NAME, PROMPT

    given = {"cache_dir": args.cache_dir, "reports_dir": args.reports_dir}
    paths = build_settings({key: value for key, value in given.items() if value}).paths
    cache = Cache.open(paths.cache_dir).folder
    defaults = Settings()
    return replace(
        defaults,
        backbone=replace(defaults.backbone, model=str(cache / "models" / MODEL_NAME)),
        data=DataSettings(dataset=str(cache / "data" / "demo-reviews")),
        features=FeatureSettings(views=("last/mean", "last/cls"), prompt=PROMPT),
        paths=paths,
    )


def _leave_settings(settings: Settings) -> None:
    """Write featcache.toml, unless it is there with something else in it."""
    file, content = Path(CONFIG_FILE), to_toml(settings).encode("utf-8")
    if file.exists() and file.read_bytes() != content:
        raise UsageError(
            f"there is another {CONFIG_FILE} here already",
            hint="run the demo in a folder of its own: mkdir demo && cd demo && featcache demo",
        )
    write_file(file, content)


def _prepare(settings: Settings, args: argparse.Namespace) -> None:
    """The encoder and the reviews, out of the packages of the demo extra."""
    from featcache.demo.demo import build_model, build_reviews

    with Meter(quiet=args.quiet) as meter:
        began = time.perf_counter()
        build_model(Path(settings.backbone.model), on_progress=lambda now: meter.note(now.text))
        meter.note(f"encoder ready after {seconds_text(time.perf_counter() - began)}")
    tenth = args.rows // 10
    rows = {"train": args.rows - 2 * tenth, "validation": tenth, "test": tenth}
    build_reviews(Path(settings.data.dataset), rows=rows)


def _run(settings: Settings, args: argparse.Namespace) -> tuple[list[Extracted], list[Run]]:
    return run_all(settings, quiet=args.quiet, show=not args.json)


def _predict(settings: Settings, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the best head says of a few texts."""
    from featcache.prediction.predictor import Predictor
    from featcache.runs.run import choose_run

    chosen = choose_run(Path(settings.paths.reports_dir), None)
    predictions = Predictor.from_run(chosen).predict(TEXTS)
    if not args.json:
        predict.show_table(predictions, top_k=None)
    return [predict.record(prediction, None) for prediction in predictions]
