"""`featcache finetune`: train the highest blocks of the backbone together with a head."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache.finetuning.recipe import Recipe, load_recipe
from featcache.settings import options
from featcache.system.text import sparkline
from featcache.system.units import seconds_text, size_text
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated
from featcache_cli.chosen_run import add_name_flag, check_name, with_name
from featcache_cli.commands import train_head
from featcache_cli.console import note, out, print_result
from featcache_cli.options import Commands, add_command, add_flag, add_options, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.finetuning.tuning import TrainingStep
    from featcache.runs.run import Run

OWN = ("objective", "steps", "head_lr", "layer_decay", "clip")  # settings that a head alone does not have


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "finetune",
        "train the highest blocks with a head; the blocks below run once",
        "featcache finetune --train top-blocks:2 --epochs 3\n"
        "featcache finetune --train top-blocks:4 --lr 1e-4 --view last/mean,lexical\n"
        "featcache finetune --objective contrastive --rows-per-class 16",
        run,
        continues=True,
    )
    parts = "head (as train-head), top-blocks:N, positions, or all (default: top-blocks:2)"
    add_flag(parser, "--train", parts, metavar="PART")
    view = "last/POOLING, or last/POOLING,lexical with the words (default: the first of --views)"
    add_flag(parser, "--view", view)
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a killed training of the same settings from its last checkpoint (default: yes)",
    )
    add_name_flag(parser)
    add_options(parser, "training", list(options(Recipe).values()))
    add_settings(parser, "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    check_name(args)
    given = {name: getattr(args, name) for name in options(Recipe)}
    part, recipe = load_recipe(given, args.train, path=args.config)
    if part == "head":
        made = _train_head(args, given, recipe.rows_per_class)
    else:
        made = _finetune(args, part, recipe)
    made = with_name(made, args)
    found = made.record.to_json()
    more = {name: found.get(name) for name in ("bytes_cached", "finetune", "settings")}
    print_result(args, train_head.record(made) | more, lambda: show(made))
    train_head.note_saved(made, args)
    return 0


def show(run: Run) -> None:
    """Scores and history as of any head, then what it cost."""
    train_head.show(run)
    about = run.record.finetune
    if not about:
        return
    console = out()
    losses = [loss for step, loss in about.curve]
    if len(losses) > 1:
        course = "loss by step {line} {first:.3f} to {last:.3f}"
        line = sparkline(losses, 48)
        console.print(_(course, line=line, first=losses[0], last=losses[-1]), style="dim")
    if about.stopped:
        console.print(_("stopped: {reason}", reason=translated(about.stopped)))
    cached, seconds = run.record.bytes_cached, seconds_text(run.record.extraction_seconds)
    if cached:
        made = "token states cached: {size}, made once in {seconds}"
        console.print(_(made, size=size_text(cached), seconds=seconds), style="dim")
    rate = about.tokens / max(run.record.seconds, 1e-9)
    console.print(_("{steps:,} steps, {rate:,.0f} tokens/s", steps=about.steps, rate=rate), style="dim")


def _train_head(args: argparse.Namespace, given: dict[str, Any], drawn: int | None) -> Run:
    for name in OWN:
        if given.pop(name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for blocks, not for a head alone")
    del given["rows_per_class"]
    settings = settings_of(args, given)
    return train_head.train(settings, "linear", args.view, quiet=args.quiet, rows_per_class=drawn)


def _finetune(args: argparse.Namespace, part: str, recipe: Recipe) -> Run:
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.finetuning.finetune import finetune

    with TrainingMeter(part, quiet=args.quiet) as meter:
        made = finetune(
            settings, part, recipe, args.view, resume=args.resume, report=meter, progress=meter.train
        )
    if "test" not in made.record.metrics:
        note("no test split, so no test score", quiet=args.quiet)
    return made


class TrainingMeter(Meter):
    """Draws the making of states, then the steps of the training with their loss."""

    def __init__(self, part: str, *, quiet: bool) -> None:
        super().__init__(quiet=quiet, names={"encode": "states"})
        self.part = part
        self._loss: float | None = None
        self._accuracy: float | None = None

    def train(self, step: TrainingStep) -> None:
        if step.text:
            self.note(step.text)
        elif step.line:
            line = step.line
            self._accuracy = line.validation_accuracy
            said = "epoch {epoch}: train loss {train:.4f}, validation loss {held:.4f}, accuracy {score:.4f}"
            losses = {"train": line.train_loss, "held": line.validation_loss}
            self.note(_(said, epoch=line.epoch, score=self._accuracy, **losses))
        else:
            self._loss = step.loss if self._loss is None else 0.9 * self._loss + 0.1 * step.loss
            both = "loss {loss:.4f} validation {accuracy:.4f}"
            said = "loss {loss:.4f}" if self._accuracy is None else both
            info = _(said, loss=self._loss, accuracy=self._accuracy)
            self.step(f"train {self.part}", step.step, step.steps, info)
