"""The flags that choose runs and a backbone, and the runs and the predictor that they mean."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbone.model_files.kinds import ENDPOINT, kind_of
from featcache.errors import HeadError, UsageError
from featcache_cli.console import err, note
from featcache_cli.options import ONE_LEVEL, add_flag, settings_of

if TYPE_CHECKING:
    from featcache.finetuning.run_backbone import BackboneChoice
    from featcache.prediction.predictor import Predictor
    from featcache.runs.record import BackboneRecord
    from featcache.runs.run import Run
    from featcache.settings import AbstentionSettings, BackboneSettings


def add_backbone_flags(parser: argparse.ArgumentParser) -> None:
    """Where the backbone of a run is now, where it runs, and whether its own code may run; no settings."""
    moved = "folder of the backbone, if it has moved since; or the endpoint that texts may be sent to"
    add_flag(parser, "--model", moved)
    add_flag(parser, "--adapter", "folder of the backbone's adapter, if it has moved since")
    add_flag(parser, "--device", "auto, cpu, cuda, cuda:N or mps", "auto")
    code = "let the model's own Python code run; what the run says of that does not count"
    parser.add_argument("--trust-remote-code", action=argparse.BooleanOptionalAction, default=None, help=code)


def add_abstention_flags(parser: argparse.ArgumentParser) -> None:
    """Another level at which the head of a run gives no answer."""
    group = parser.add_argument_group("another level of a head that may give no answer")
    add_flag(group, "--max-error", "at most this share of its answers is wrong", kind=float, metavar="X")
    add_flag(group, "--coverage", "at least this share of texts is answered; 1: all", kind=float, metavar="X")
    add_flag(group, "--confidence", "with which that holds (default: 0.95)", kind=float, metavar="X")


def abstention_of(args: argparse.Namespace) -> AbstentionSettings | None:
    """The level that the flags name; None where they name none.

    Raises:
        UsageError: two levels, a level out of range, or a confidence alone.
    """
    from featcache.settings import AbstentionSettings, build_dataclass

    names = ("max_error", "coverage", "confidence")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if not given:
        return None
    if len(given.keys() & {"max_error", "coverage"}) != 1:
        raise UsageError("give one of --max-error and --coverage", hint=ONE_LEVEL)
    return build_dataclass(AbstentionSettings, given)


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


def add_name_flag(parser: argparse._ActionsContainer) -> None:
    """`--name` of the run that the command makes; see `check_name` and `with_name`."""
    add_flag(parser, "--name", "name of the run (default: its head and view, and a number)")


def check_name(args: argparse.Namespace) -> None:
    """Refuse `--name` before the work, not after it.

    Raises:
        HeadError: no name for a run, or one that is taken.
    """
    from featcache.runs.run import check_run_name

    if args.name is not None:
        check_run_name(Path(settings_of(args).paths.reports_dir), args.name)


def with_name(made: Run, args: argparse.Namespace) -> Run:
    """A new run under the name that was asked for.

    Raises:
        HeadError: another run has taken the name since; the new one keeps the name that it has.
    """
    from featcache.runs.run import rename_run

    if args.name is None:
        return made
    try:
        return rename_run(made, args.name)
    except HeadError as error:
        raise HeadError(f"{error.what}; the new run is {made.name}", hint=error.hint) from error


def choose(args: argparse.Namespace) -> Run:
    """The run that was named, or the best one by validation."""
    from featcache.runs.run import choose_run

    chosen = choose_run(Path(settings_of(args).paths.reports_dir), args.run_name)
    if args.run_name is None:
        by, name = ("RMSE", "rmse") if chosen.record.numbers else ("accuracy", "accuracy")
        found = chosen.metric("validation", name, clean=True)
        note(f"using {chosen.name} (best by validation: {by} {found:.4f})", quiet=args.quiet)
    return chosen


def backbone_of(args: argparse.Namespace, chosen: Run) -> BackboneChoice:
    """What the flags and the settings file say about the backbone of a run.

    The settings file trusts a model that the user names, in it or by `--model`; none that only the run names.
    Of several backbones it names the endpoints that may be asked; their own code runs by the flag alone.
    """
    from featcache.finetuning.run_backbone import BackboneChoice

    given = BackboneChoice(args.model, device=args.device, adapter=args.adapter)
    own, named = settings_of(args).backbone, chosen.record.backbone.named
    if named:
        asked = ",".join(filter(None, [*_endpoints_of(own, named), args.model])) or None
        return replace(given, model=asked, trust_remote_code=bool(args.trust_remote_code))
    if kind_of(own.model) == ENDPOINT and own.model == chosen.record.backbone.model and not args.model:
        return replace(given, model=own.model)
    if args.trust_remote_code is not None:
        return replace(given, trust_remote_code=args.trust_remote_code)
    if own.trust_remote_code and own.model == (args.model or chosen.record.backbone.model):
        return replace(given, model=own.model, revision=own.revision, hub=own.hub, trust_remote_code=True)
    return replace(given, trust_remote_code=bool(args.model) and own.trust_remote_code)


def _endpoints_of(own: BackboneSettings, named: Mapping[str, BackboneRecord]) -> list[str]:
    """Of the several backbones of a run the endpoints that the settings file names too, `A=openai+...`."""
    mine = {"": own.model} | (own.backbones or {})
    same = [name for name, record in named.items() if mine.get(name) == record.model]
    return [f"{name}={mine[name]}" for name in same if kind_of(mine[name]) == ENDPOINT]


def load(args: argparse.Namespace, chosen: Run) -> Predictor:
    """The predictor of a run, with a spinner while it is loaded."""
    from rich.text import Text

    asked = abstention_of(args)
    if asked:
        chosen.head().abstaining_at(asked)  # refused before the model is loaded
    console = err()
    console.quiet = args.quiet
    with console.status(Text(f"loading {chosen.record.backbone.model}")):
        from featcache.prediction.predictor import Predictor

        choice = asdict(backbone_of(args, chosen))
        predictor = Predictor.from_run(chosen, **choice, endpoint=settings_of(args).endpoint)
    if asked:
        predictor.abstain_at(asked)
    return predictor
