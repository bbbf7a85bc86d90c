"""`featcache finetune`: blocks of the backbone trained above a cut, with a head."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.finetuning.recipe import Recipe, load_recipe
from featcache.settings import options
from featcache.system.text import sparkline
from featcache.system.units import seconds_text, size_text
from featcache_cli.commands import train_head
from featcache_cli.console import note, out, print_json
from featcache_cli.options import add_command, add_settings, settings_of
from featcache_cli.progress import ExtractionMeter

if TYPE_CHECKING:
    from featcache.finetuning.tuning import TrainingStep
    from featcache.runs.run import Run
    from featcache.system.progress import Progress

OWN = ("head_lr", "layer_decay", "clip")  # what a head alone has not


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "finetune",
        "train the highest blocks with a head; what lies below runs once",
        "featcache finetune --train top-blocks:2 --epochs 3\n"
        "featcache finetune --train all --lr 5e-5 --dropout 0.1",
    )
    parser.add_argument(
        "--train",
        metavar="PART",
        help="head (as train-head), top-blocks:N, positions, or all (default: top-blocks:2)",
    )
    parser.add_argument("--view", help="last/POOLING (default: the first of --views)")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where a killed training of the same settings stood (default: yes)",
    )
    group = parser.add_argument_group("training")
    for option in options(Recipe).values():
        shown = "" if option.default is None else f" (default: {option.default})"
        metavar = "{" + ",".join(option.choices) + "}" if option.choices else _metavar(option.type)
        group.add_argument(option.flag, metavar=metavar, help=option.help.replace("%", "%%") + shown)
    add_settings(parser, "backbone", "data", "features", "paths", "")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in options(Recipe)}
    args.train, recipe = load_recipe(given, args.train, path=args.config)
    if args.train == "head":
        made = _train_head(args, given)
    else:
        for name in options(Recipe):  # of the same names as settings of heads, which are not meant here
            setattr(args, name, None)
        made = _finetune(args, recipe)
    if args.json:
        found = made.record.to_json()
        more = {name: found.get(name) for name in ("bytes_cached", "finetune", "settings")}
        print_json(train_head.record(made) | more)
    else:
        show(made)
        note(f"saved in {made.folder}; next: featcache compare, featcache predict", quiet=args.quiet)
    return 0


def show(run: Run) -> None:
    """Scores and history as of any head, then what it cost."""
    train_head.show(run)
    about = run.record.finetune
    if not about:
        return
    console = out()
    losses = [loss for _, loss in about.curve]
    if len(losses) > 1:
        console.print(
            f"loss by step {sparkline(losses, 48)} {losses[0]:.3f} to {losses[-1]:.3f}", style="dim"
        )
    if about.stopped:
        console.print(f"stopped: {about.stopped}")
    cached, seconds = run.record.bytes_cached, run.record.extraction_seconds
    below = f"states cached: {size_text(cached)}, made once in {seconds_text(seconds)}; " if cached else ""
    rate = about.tokens / max(run.record.seconds, 1e-9)
    console.print(f"{below}{about.steps:,} steps, {rate:,.0f} tokens/s", style="dim")


def _train_head(args: argparse.Namespace, given: dict[str, Any]) -> Run:
    for name in OWN:
        if given[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for blocks, not for a head alone")
    return train_head.train(settings_of(args), "linear", args.view, quiet=args.quiet)


def _finetune(args: argparse.Namespace, recipe: Recipe) -> Run:
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.finetuning.finetune import finetune

    with TuningMeter(args.train, quiet=args.quiet) as meter:
        made = finetune(
            settings, args.train, recipe, args.view, resume=args.resume, report=meter, progress=meter.train
        )
    if "test" not in made.record.metrics:
        note("no test split, so no test score", quiet=args.quiet)
    return made


def _metavar(kind: type) -> str:
    return "N" if kind is int else "X"


class TuningMeter(ExtractionMeter):
    """Draws the making of states, then the steps of the training with their loss."""

    def __init__(self, part: str, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.part = part
        self._loss: float | None = None
        self._validation = ""

    def __call__(self, event: Progress) -> None:
        if event.stage == "encode":
            self.step(f"states {event.split}", event.done, event.total)
        else:
            super().__call__(event)

    def train(self, step: TrainingStep) -> None:
        if step.text:
            self.note(step.text)
        elif step.line:
            line = step.line
            self._validation = f" validation {line.validation_accuracy:.4f}"
            self.note(
                f"epoch {line.epoch}: train loss {line.train_loss:.4f}, validation loss "
                f"{line.validation_loss:.4f}, accuracy {line.validation_accuracy:.4f}"
            )
        else:
            self._loss = step.loss if self._loss is None else 0.9 * self._loss + 0.1 * step.loss
            info = f"loss {self._loss:.4f}{self._validation}"
            self.step(f"train {self.part}", step.step, step.steps, info)
