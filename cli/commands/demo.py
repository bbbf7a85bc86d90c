"""`featcache demo`: `featcache run` on a real encoder and real reviews, without any hub."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from featcache.errors import UsageError
from featcache.settings import CONFIG_FILE, Settings
from featcache.settings_file import to_toml
from featcache.system.durable import write_file
from featcache.system.units import seconds_text
from featcache_cli.commands.predict import predict
from featcache_cli.commands.run import document, run_all
from featcache_cli.console import note, print_json
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

TEXTS = (
    "房间干净，服务热情，离地铁站也近，下次还会住。",
    "电池用了一个星期就坏了，客服一直推脱，太失望了。",
    "The book arrived late and half of the pages were missing.",
)


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        "run on an embedded encoder and reviews; writes featcache.toml",
        "featcache demo\nfeatcache demo --rows 1000",
        run,
        continues=True,
    )
    add_flag(parser, "--rows", "reviews to use", 10_000, least=100)
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    settings = _demo_settings(args)
    _write_settings(settings)
    _prepare(settings, args)
    everything = run_all(settings, quiet=args.quiet, show=not args.json)
    predictions = _predict(settings, args)
    seconds = time.perf_counter() - began
    if args.json:
        made = {"seconds": round(seconds, 2), **document(everything), "predictions": predictions}
        print_json(made)
    note(f"the demo took {seconds_text(seconds)}", quiet=args.quiet)
    note(f"{CONFIG_FILE} is written: every featcache command works here as typed", quiet=args.quiet)
    return 0


def _demo_settings(args: argparse.Namespace) -> Settings:
    from featcache.cache.cache import Cache
    from featcache.demo.demo import MODEL_NAME, PROMPT

    cache = Cache.open(settings_of(args, file=False).paths.cache_dir).folder
    own = {
        "model": str(cache / "models" / MODEL_NAME),
        "dataset": str(cache / "data" / "demo-reviews"),
        "views": ("last/mean", "last/cls"),
        "prompt": PROMPT,
    }
    return settings_of(args, own, file=False)


def _write_settings(settings: Settings) -> None:
    """Write featcache.toml; another one that is there is not replaced."""
    file, content = Path(CONFIG_FILE), to_toml(settings).encode("utf-8")
    if file.exists() and file.read_bytes() != content:
        raise UsageError(
            f"another {CONFIG_FILE} is here already",
            hint="run the demo in a folder of its own: mkdir demo && cd demo && featcache demo",
        )
    write_file(file, content)


def _prepare(settings: Settings, args: argparse.Namespace) -> None:
    """Write the encoder and the reviews, which the packages of the demo extra contain."""
    from featcache.demo.demo import build_model, build_reviews

    with Meter(quiet=args.quiet) as meter:
        began = time.perf_counter()
        build_model(Path(settings.backbone.model), on_progress=lambda now: meter.note(now.text))
        meter.note(f"encoder ready after {seconds_text(time.perf_counter() - began)}")
    tenth = args.rows // 10
    rows = {"train": args.rows - 2 * tenth, "validation": tenth, "test": tenth}
    build_reviews(Path(settings.data.dataset), rows=rows)


def _predict(settings: Settings, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the best head predicts for a few texts."""
    from featcache.prediction.predictor import Predictor
    from featcache.runs.run import choose_run

    chosen = choose_run(Path(settings.paths.reports_dir), None)
    predictions = Predictor.from_run(chosen).predict(TEXTS)
    if not args.json:
        predict.show_table(predictions, top_k=None)
    return [predict.record(prediction, None) for prediction in predictions]
