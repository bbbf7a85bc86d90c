"""`featcache plan`: what an extraction will take, from a short measured sample."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache.system.units import count_text, parse_count, seconds_text, size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import ngettext
from featcache.translation.sentences import translated
from featcache_cli.commands.extract import SPLITS
from featcache_cli.console import columns, note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.planning.answer import Ask, CorpusPlan

WORKERS = {
    "workers": "processes (default: one for each GPU, or one for each machine)",
    "gpus": "GPUs in all (default: processors do the work)",
    "nodes": "machines (default: 1, or one for each 8 GPUs)",
}
RATES = {
    "sample_seconds": (20.0, "seconds of encoding on this machine"),
    "tokens": (None, "mean tokens of a text; plans with made-up texts and needs no data; needs --rows"),
    "rate": (None, "texts a second of one worker; then nothing is measured"),
    "tokens_rate": (None, "tokens a second of one worker; then nothing is measured"),
    "tflops": (None, "peak of one GPU in TFLOP/s; then nothing is measured"),
    "share": (None, "share of --tflops that is reached (default: as published, 0.25 to 0.31 by text length)"),
    "efficiency": (0.95, "assumed rate of several workers over the sum of their rates"),
}


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        "estimate the time, disk, memory and cost of an extraction",
        "featcache plan --rows 100M --price 0.4\n"
        "featcache plan --rows 1e9 --gpus 64 --tflops 989 --price 2.5",
        run,
    )
    group = parser.add_argument_group("what is planned")
    split_help = "train, validation or test; may be repeated (default: train)"
    group.add_argument("--split", action="append", choices=SPLITS, metavar="SPLIT", help=split_help)
    add_flag(group, "--rows", "rows of the corpus: 100M, 1e9 (default: those of the source)", metavar="N")
    for name, help in WORKERS.items():
        add_flag(group, f"--{name}", help, kind=int)
    add_flag(group, "--price", "price of a GPU for an hour; without --gpus, of a machine", kind=float)
    group = parser.add_argument_group("rates")
    for name, (default, help) in RATES.items():
        add_flag(group, f"--{name.replace('_', '-')}", help, default, kind=float)
    add_settings(parser, "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    ask = _ask(args, settings.paths.shard_size)
    from featcache.planning.estimate import plan

    splits = list(dict.fromkeys(args.split or ["train"]))
    made = plan(settings, splits, ask, lambda what: note(what, quiet=args.quiet))
    print_result(args, made.document, lambda: show(made))
    return 0


def _ask(args: argparse.Namespace, shard_size: str) -> Ask:
    from featcache.cache.shards import parse_shard_size
    from featcache.planning.answer import Ask

    return Ask(
        rows=None if args.rows is None else parse_count(args.rows, "--rows"),
        shard_bytes=parse_shard_size(shard_size),
        price=args.price,
        **{name: getattr(args, name) for name in (*WORKERS, *RATES)},
    )


def show(made: CorpusPlan) -> None:
    """Print the plan, the facts behind it, notes and warnings, and the command that runs it."""
    from featcache.planning.answer import TOKENIZING

    console = out()
    who = _("{gpus:,} GPUs", gpus=made.gpus or 0)
    if not made.gpus:
        who = ngettext("{count:,} worker", "{count:,} workers", made.workers)
    machines = ngettext("{count:,} machine", "{count:,} machines", made.nodes)
    headline = "{rows:,} rows, {who} on {machines}: {seconds}, {stage} takes longest"
    about = {"seconds": seconds_text(made.seconds.value), "stage": translated(made.slowest)}
    console.print(_(headline, rows=made.rows, who=who, machines=machines, **about))
    shown = table(*columns("plan"), ">", *columns(">95 % interval"), "")
    estimates = [(_("time"), made.seconds, seconds_text), (_("texts/s"), made.texts_per_second, count_text)]
    estimates += [(_("tokens"), made.tokens, count_text)]
    if made.cost is not None:
        estimates.append((_("cost"), made.cost, lambda value: f"{value:,.2f}"))
    for name, estimate, written in estimates:
        ends = _("{low} to {high}", low=written(estimate.low), high=written(estimate.high))
        between = "-" if estimate.low == estimate.high else ends
        shown.add_row(name, written(estimate.value), between, translated(estimate.how))
        if estimate is made.seconds:
            for stage, seconds in made.stages.items():
                when = _("meanwhile") if stage == TOKENIZING else ""
                if seconds:
                    shown.add_row(f"  {translated(stage)}", seconds_text(seconds), "", when)
    for name, size, how in _sizes(made):
        shown.add_row(name, size, "", translated(how))
    console.print(shown)
    console.print()
    shown = table(*columns("built on"), ">", "")
    for fact in made.facts:
        shown.add_row(*map(translated, (fact.name, fact.value, fact.how)))
    console.print(shown)
    for text in made.notes:
        console.print(_("note: {text}", text=translated(text)), style="dim")
    for text in made.warnings:
        console.print(_("warning: {text}", text=translated(text)), style="bold yellow")
    console.print()
    for line in command_lines(made.command):
        console.print(line, soft_wrap=True)


def _sizes(made: CorpusPlan) -> list[tuple[str, str, str]]:
    """Name, size and origin of the rows without an interval."""
    from featcache.planning.answer import COMPUTED, MEASURED

    sizes = [
        (_("sealed cache"), size_text(made.cache_bytes), COMPUTED),
        (_("unfinished units beside it"), size_text(made.staging_bytes), COMPUTED),
        (_("free on that disk"), size_text(made.free_bytes), MEASURED),
        (_("shards"), f"{made.shards:,}", COMPUTED),
    ]
    if made.memory is not None:
        sizes.append((_("memory of a worker"), size_text(made.memory), MEASURED))
    sizes.append((_("memory to find equal rows"), size_text(made.row_memory), COMPUTED))
    if made.gpu_memory is not None:
        sizes.append((_("memory of a GPU"), size_text(made.gpu_memory), MEASURED))
    return sizes


def command_lines(words: Sequence[str], width: int = 76) -> list[str]:
    """A command, broken into lines that a shell joins; a flag stays with its value."""
    lines, line = [], ""
    for number, word in enumerate(words):
        quoted = shlex.quote(word)
        new = word.startswith("--") and line
        value = f" {shlex.quote(words[number + 1])}" if new and number + 1 < len(words) else ""
        if new and len(f"{line} {quoted}{value}") > width:
            lines.append(f"{line} \\")
            line = f"  {quoted}"
        else:
            line = f"{line} {quoted}" if line else quoted
    return [*lines, line]
