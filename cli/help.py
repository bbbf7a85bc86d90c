"""`-h`: what a command does and its few flags that matter, on one screen; and the commands in groups.

Parsers are made in English; their texts are translated where they are shown, here and in `help_formatter`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from featcache.system.text import clip
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted, pgettext
from featcache_cli.line_breaks import wrapped

HELP_TEXT = "help"  # the context of texts of help in the catalogue
USAGE, EXAMPLE, DEFAULT = noted("usage: ", HELP_TEXT), noted("example:", HELP_TEXT), " (default: "
WORDS = (noted("yes", HELP_TEXT), noted("all", HELP_TEXT))  # defaults that are words, not values
PYTHONS_OWN = f"{DEFAULT}%(default)s)"  # what Python up to 3.12 adds to --flag and --no-flag

FLAGS = 5
WIDEST = 100
OUTPUT = ("--json", "--quiet", "--debug", "--lang", "--config", "--help", "-h")
FLAG_COLUMN = 24

# The commands by what they are for; every command is in one group.
GROUPS = {
    noted("begin", HELP_TEXT): ("run", "label", "demo", "init"),
    noted("step by step", HELP_TEXT): (
        "extract", "import", "train-head", "sweep", "blend", "finetune", "curve",
    ),
    noted("look at", HELP_TEXT): ("compare", "runs", "report", "inspect"),
    noted("use", HELP_TEXT): ("predict", "serve", "export"),
    noted("before and after", HELP_TEXT): ("plan", "cache", "bench", "completion"),
}  # fmt: skip
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
ALONE = noted(
    """\
usage: featcache COMMAND [flags]

Run a frozen Transformer once over your texts, cache its features, and train
heads in seconds.

  featcache run reviews.csv         from one file with labels to a verdict
  featcache demo                    see it work, without any model hub
  featcache compare                 the runs side by side
  featcache predict "房间很干净"    backbone and head together again
  featcache report                  a page to show, with figures

flags of a command: featcache COMMAND -h; every command: featcache --help""",
    HELP_TEXT,
)


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
        groups = (_padded(_title(title), 18) + listed(names) for title, names in GROUPS.items())
        return [*in_help(ALONE).splitlines(), "", *groups]
    named = [action for action in parser._actions if not action.option_strings]
    words = [_usage(action) for action in named]
    lines = [clip(in_help(USAGE) + " ".join([parser.prog, *words, "[flags]"]), width)]
    about = in_help((parser.description or "").strip()).splitlines()
    lines += ["", *(clip(line, width) for line in about), ""]
    for action in named:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                lines.append(_line(name, in_help(sub.description or ""), width))
        else:
            lines.append(_line(str(action.metavar), help_text(action), width))
    lines += [_line(flag, help, width) for flag, help in _flags(parser)]
    example = (parser.epilog or "").partition(f"{EXAMPLE}\n")[2].splitlines()
    if example:
        lines += ["", in_help(EXAMPLE), *(clip(line, width) for line in example[:3])]
    return [*lines, "", _("every flag: {command} --help", command=parser.prog)]


def grouped_commands(described: dict[str, str]) -> str:
    """The commands with their descriptions, in their groups."""
    parts = []
    for title, names in GROUPS.items():
        parts += [_title(title)]
        for name in names:
            first = f"  {name:12} "
            about = in_help(described[name]).rstrip(".。")
            parts += wrapped(first + about, 78, " " * len(first))
    return "\n".join(parts)


def in_help(text: str) -> str:
    """A text of help in the language that is spoken."""
    return pgettext(HELP_TEXT, text) if text else ""


def help_text(action: argparse.Action) -> str:
    """The help of an argument in the language that is spoken, with its default."""
    base, default = help_parts(action)
    if not default:
        return in_help(base)
    shown = in_help(default) if default in WORDS else default
    return _("{help} (default: {default})", help=in_help(base), default=shown)


def help_parts(action: argparse.Action) -> tuple[str, str]:
    """The help of an argument, and its default, if that is one word; several words are part of the help."""
    said = (action.help or "").removesuffix(PYTHONS_OWN).replace("%%", "%")
    base, mark, default = said.rpartition(DEFAULT)
    return (base, default.removesuffix(")")) if mark and " " not in default else (said, "")


def _flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The flags that matter, with what each takes, and their help."""
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    command = parser.prog.rpartition(" ")[2]
    first = [action.option_strings[0] for action in parser._actions if action.option_strings]
    chosen = MATTER.get(command, [flag for flag in first if flag not in OUTPUT])
    for flag in [flag for flag in chosen if flag in known][:FLAGS]:
        action = known[flag]
        takes = "" if action.nargs == 0 or action.metavar is None else f" {action.metavar}"
        yield flag + (takes if len(takes) <= FLAG_COLUMN - len(flag) - 3 else ""), help_text(action)


def _line(name: str, help: str, width: int) -> str:
    return clip(f"  {name:{FLAG_COLUMN - 3}} {' '.join(help.split())}", width)


def _title(group: str) -> str:
    """Of a group of commands, with a colon."""
    return _("{sentence}: ", sentence=in_help(group)).rstrip()


def _padded(text: str, cells: int) -> str:
    """`text` with blanks after it, as wide as so many terminal cells."""
    from rich.cells import cell_len

    return text + " " * (cells - cell_len(text))


def _usage(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return "COMMAND"
    name = str(action.metavar)
    return {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)
