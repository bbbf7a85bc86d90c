"""The `featcache` command: parsing and exit codes; heavy modules are imported when they are needed."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any, NoReturn

import featcache
from featcache.errors import DiskError, FeatcacheError, UsageError, closest
from featcache.system.hub.listener import listening
from featcache.system.machine import short_waits
from featcache.system.outside import outside_error
from featcache.system.packages import version_notes
from featcache.translation.language import LANGUAGES, in_language, language_from, noted
from featcache.translation.language import gettext as _
from featcache_cli.console import err, note, print_error
from featcache_cli.help import HELP_TEXT, add_help_flags, grouped_commands, in_help, print_short_help
from featcache_cli.progress import DOWNLOAD, Meter

COMMANDS = (
    "init", "extract", "import_", "train_head", "sweep", "blend", "finetune", "curve", "compare", "report",
    "inspect", "predict", "label", "serve", "plan", "export", "cache", "run", "runs", "bench", "demo",
    "completion",
)  # fmt: skip
INTERRUPTED = 130
CONTINUES = noted("what is finished is kept, and the same command continues from it")

DESCRIPTION = noted(
    """\
Run a frozen Transformer once over your texts, cache its features,
train heads in seconds. To begin: featcache run reviews.csv
""",
    HELP_TEXT,
)

EXIT_CODES = noted(
    """\
exit codes: 0 done, 2 usage, 3 data, 4 model, 5 cache, or the disk is full
or refuses, 6 head or run, 7 worse than another run (compare --fail-if-worse),
1 anything else, 130 interrupted.
Settings come from flags, then featcache.toml, then the defaults.
""",
    HELP_TEXT,
)


def word_of(module: str) -> str:
    """The word of the command in a module: `train-head` of `train_head`, `import` of `import_`."""
    return module.rstrip("_").replace("_", "-")


def main(argv: list[str] | None = None) -> int:
    """Run one command in the language of this user, and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    with in_language(_language(words)):
        return _main(words)


def _language(argv: Sequence[str]) -> str:
    """What `--lang` says, also of an error in the other flags; else the environment, if it can be shown."""
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    asked.add_argument("--lang", choices=LANGUAGES)
    try:
        if (found := asked.parse_known_args(argv)[0].lang) is not None:
            return str(found)
        "中".encode(sys.stderr.encoding or "ascii")
    except (argparse.ArgumentError, UnicodeEncodeError):
        return "en"
    return language_from(os.environ)


def _main(argv: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # Chinese text must not fail on an ASCII terminal
    os.environ.update(short_waits(os.environ))
    debug = "--debug" in argv
    args = argparse.Namespace(continues=False, places=())
    try:
        args = _parse(argv)
        for text in version_notes():
            note(text, quiet=getattr(args, "quiet", False))
        with listening(Meter(quiet=getattr(args, "quiet", False), names=DOWNLOAD)):
            # What programs read has one language.
            with in_language("en") if getattr(args, "json", False) else nullcontext():
                code: int = args.run(args) or 0
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse after --help or --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        goes_on = _("interrupted; {continues}", continues=_(CONTINUES))
        err().print("\n" + (goes_on if args.continues else _("interrupted")))
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed our stdout, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(outside_error(error) or _defect(error), args, debug)


def _explain(error: FeatcacheError, args: argparse.Namespace, debug: bool) -> int:
    """Print the error with what this command can do about it; returns the exit code."""
    if debug:
        traceback.print_exc()
    else:
        more = tuple(_what_to_do(error, args))
        try:
            print_error(error, *more)
        except ImportError:  # rich is the package that is missing
            print(f"error: {error}", *more, sep="\n", file=sys.stderr)
    return error.exit_code


def _what_to_do(error: FeatcacheError, args: argparse.Namespace) -> Iterator[str]:
    if isinstance(error, UsageError) and not error.hint and hasattr(args, "parser"):
        yield f"see: {args.parser.prog} --help"
    if not isinstance(error, DiskError):
        return
    flags = [flag for flag in args.places if flag in args.parser._option_string_actions]
    if flags:
        yield _("or write to another place: {flags}", flags=", ".join(flags))
    if args.continues:
        yield _(CONTINUES)


def _defect(error: Exception) -> FeatcacheError:
    what = f"unexpected {type(error).__name__}: {error}"
    return FeatcacheError(what, hint="this is a defect of featcache; --debug shows where it happened")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Say which command or choice may be meant."""
        known = [str(choice) for choice in action.choices or ()]
        if action.choices is None or value in action.choices:
            return
        close, name = closest(str(value), known), action.option_strings[-1:] or ["command"]
        there = f"did you mean {close}?" if close else f"there are: {', '.join(known)};"
        what = f"{self.prog}: unknown {name[0]} {str(value)!r}"
        raise UsageError(what, hint=f"{there} see: {self.prog} --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    words = _joined(argv)
    args, unknown = _parser(words[:1]).parse_known_args(words)
    if unknown:
        parser: argparse.ArgumentParser = args.parser
        known = list(parser._option_string_actions)
        close = closest(unknown[0].partition("=")[0], known)
        ask = f"did you mean {close}? " if close else ""
        raise UsageError(
            f"{parser.prog}: unknown argument {unknown[0]!r}", hint=f"{ask}see: {parser.prog} --help"
        )
    return args


def _joined(argv: Sequence[str]) -> list[str]:
    """`--view -4/mean` as `--view=-4/mean`, because argparse takes `-4/mean` for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-\d+/", word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser(first: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Of all commands, or of the one that the first word names: the others take time to import."""
    from featcache_cli.help_formatter import HelpFormatter  # here: a package that is missing is explained

    parser = _Parser(
        prog="featcache",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    add_help_flags(parser)
    parser.add_argument("--version", action="version", version=f"featcache {featcache.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    asked = [name for name in COMMANDS if word_of(name) in first and name != "completion"]
    for name in asked or COMMANDS:
        import_module(f"featcache_cli.commands.{name}").add(commands)
    if not asked:
        about = {name: command.description or "" for name, command in commands.choices.items()}
        parser.description = f"{in_help(DESCRIPTION)}\n{grouped_commands(about)}"
    parser.epilog = EXIT_CODES
    parser.set_defaults(parser=parser, root=parser, run=_begin)
    return parser


def _begin(args: argparse.Namespace) -> int:
    """`featcache` alone: the commands, on one screen."""
    print_short_help(args.parser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
