"""`-h`: what a command does and its few flags that matter, on one screen; and the commands in groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from featcache.system.text import clip

FLAGS = 5
WIDEST = 100
OUTPUT = ("--json", "--quiet", "--debug", "--lang", "--config", "--help", "-h")
FLAG_COLUMN = 24

# The commands by what they are for; every command is in one group.
GROUPS = {
    "begin": ("run", "label", "demo", "init"),
    "step by step": ("extract", "import", "train-head", "sweep", "blend", "finetune", "curve"),
    "look at": ("compare", "runs", "report", "inspect"),
    "use": ("predict", "serve", "export"),
    "before and after": ("plan", "cache", "bench", "completion"),
}
# The flags of `-h`; of a command that is not here its first ones.
MATTER = {
    "run": ("--model", "--views", "--text-column", "--label-column", "--max-length"),
    "init": ("--model", "--dataset", "--data-files", "--views", "--pooling"),
    "extract": ("--all-splits", "--split", "--model", "--dataset", "--views"),
    "import": ("--as", "--texts", "--split", "--describe-model", "--order-key"),
    "train-head": ("--head", "--view", "--epochs", "--rows-per-class", "--name"),
    "sweep": ("--view", "--lr", "--seeds", "--subsets", "--name"),
    "predict": ("--run", "--input", "--output", "--top-k", "--explain"),
    "label": ("--labels", "--terminal", "--annotator", "--strategy", "--export"),
    "plan": ("--rows", "--gpus", "--tflops", "--price", "--split"),
}


TOP = "featcache"
ALONE = """\
usage: featcache COMMAND [flags]

Run a frozen Transformer once over your texts, cache its features, and train
heads in seconds.

  featcache run reviews.csv         from one file with labels to a verdict
  featcache demo                    see it work, without any model hub
  featcache compare                 the runs side by side
  featcache predict "房间很干净"    backbone and head together again
  featcache report                  a page to show, with figures

flags of a command: featcache COMMAND -h; every command: featcache --help"""


class ShortHelp(argparse.Action):
    """Print `short_help` and leave."""

    def __init__(self, option_strings: list[str], dest: str, **more: Any) -> None:
        nothing = argparse.SUPPRESS
        super().__init__(option_strings, nothing, nargs=0, default=nothing, help=more["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print_short_help(parser)
        parser.exit()


def add_help_flags(parser: argparse.ArgumentParser) -> None:
    """`-h` for one screen, `--help` for everything; the parser is made with `add_help=False`."""
    parser.add_argument("-h", action=ShortHelp, help="what matters, on one screen")
    parser.add_argument("--help", action="help", help="this help, with every flag")


def print_short_help(parser: argparse.ArgumentParser) -> None:
    """One screen about a command."""
    from featcache_cli.console import out

    console = out()
    for line in short_help(parser, min(console.width, WIDEST)):
        console.print(line, soft_wrap=True)


def short_help(parser: argparse.ArgumentParser, width: int) -> list[str]:
    """At most 24 lines, none wider than `width`."""
    if parser.prog == TOP:
        groups = (f"{title + ':':18}{', '.join(names)}" for title, names in GROUPS.items())
        return [*ALONE.splitlines(), "", *groups]
    named = [action for action in parser._actions if not action.option_strings]
    words = [_usage(action) for action in named]
    lines = [clip(" ".join(["usage:", parser.prog, *words, "[flags]"]), width)]
    about = (parser.description or "").strip().splitlines()
    lines += ["", *(clip(line, width) for line in about), ""]
    for action in named:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                lines.append(_line(name, sub.description or "", width))
        else:
            lines.append(_line(str(action.metavar), action.help or "", width))
    lines += [_line(flag, help, width) for flag, help in _flags(parser)]
    example = (parser.epilog or "").partition("example:\n")[2].splitlines()
    if example:
        lines += ["", "example:", *(clip(line, width) for line in example[:3])]
    return [*lines, "", f"every flag: {parser.prog} --help"]


def grouped_commands(described: dict[str, str]) -> str:
    """The commands with their descriptions, in their groups."""
    parts = []
    for title, names in GROUPS.items():
        parts += [f"{title}:"]
        for name in names:
            first = f"  {name:12} "
            parts += wrap(first + described[name].rstrip("."), 78, subsequent_indent=" " * len(first))
    return "\n".join(parts)


def _flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The flags that matter, with what each takes, and their help."""
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    command = parser.prog.rpartition(" ")[2]
    first = [action.option_strings[0] for action in parser._actions if action.option_strings]
    chosen = MATTER.get(command, [flag for flag in first if flag not in OUTPUT])
    for flag in [flag for flag in chosen if flag in known][:FLAGS]:
        action = known[flag]
        takes = "" if action.nargs == 0 or action.metavar is None else f" {action.metavar}"
        yield flag + (takes if len(takes) <= FLAG_COLUMN - len(flag) - 3 else ""), action.help or ""


def _line(name: str, help: str, width: int) -> str:
    return clip(f"  {name:{FLAG_COLUMN - 3}} {' '.join(help.replace('%%', '%').split())}", width)


def _usage(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return "COMMAND"
    name = str(action.metavar)
    return {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)
