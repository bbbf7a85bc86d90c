"""The flags that choose runs and a backbone, and the runs and the predictor that they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import HeadError
from featcache_cli.console import err, note
from featcache_cli.options import add_flag, settings_of

if TYPE_CHECKING:
    from featcache.prediction.predictor import Predictor
    from featcache.runs.run import Run


def add_backbone_flags(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--device`: where the backbone of a run is now, and where it runs; no settings."""
    add_flag(parser, "--model", "folder of the backbone, if it has moved since")
    add_flag(parser, "--device", "auto, cpu, cuda, cuda:N or mps", "auto")


def named_runs(names: Sequence[str], reports: Path) -> list[Run]:
    """The runs of these names or folders, each once; without names all runs.

    Raises:
        HeadError: there are no runs in `reports`, or none of a name.
    """
    from featcache.runs.run import list_runs, load_run

    runs = [load_run(reports, name) for name in names] or list_runs(reports)
    if not runs:
        raise HeadError(f"no runs in {reports}", hint="train one with: featcache train-head --epochs 100")
    return list({run.folder.resolve(): run for run in runs}.values())


def choose(args: argparse.Namespace) -> Run:
    """The run that was named, or the best one by validation."""
    from featcache.runs.run import choose_run

    chosen = choose_run(Path(settings_of(args).paths.reports_dir), args.run_name)
    if args.run_name is None:
        accuracy = chosen.metric("validation", "accuracy")
        note(f"using {chosen.name} (best by validation: accuracy {accuracy:.4f})", quiet=args.quiet)
    return chosen


def load(args: argparse.Namespace, chosen: Run) -> Predictor:
    """The predictor of a run, with a spinner while it is loaded."""
    from rich.text import Text

    console = err()
    console.quiet = args.quiet
    with console.status(Text(f"loading {chosen.record.backbone.model}")):
        from featcache.prediction.predictor import Predictor

        return Predictor.from_run(chosen, model=args.model, device=args.device)
