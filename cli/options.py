"""Commands and their flags, and how flags, `featcache.toml` and defaults become `Settings`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from featcache.backbone.model_files.kinds import VECTORS, kind_of
from featcache.errors import UsageError
from featcache.option import Option
from featcache.settings import Settings, build_settings, load_settings, options
from featcache.system.stores import is_remote, shown
from featcache.translation.language import LANGUAGES
from featcache_cli.help import EXAMPLE, add_help_flags
from featcache_cli.help_formatter import HelpFormatter

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

TITLES = {
    "": "common",
    "backbone": "which model, and where it runs",
    "data": "which texts and labels",
    "features": "how a text becomes a vector",
    "head": "how the head is trained",
    "abstention": "when the head gives no answer",
    "endpoint": "a model behind an endpoint (--model openai+http://...)",
    "paths": "folders",
}  # of the groups of settings in --help: what the user decides
PLACES = ("--cache-dir", "--reports-dir", "--output")  # flags that name where a command writes
ONE_LEVEL = "--max-error answers as many texts as it allows"
OWN_METAVARS = {"--prices": "MODEL=X,...", "--backbones": "A=MODEL,..."}
METAVARS = {int: "N", float: "X", dict: "train=F,...", tuple: "A,B,..."}


def add_command(
    commands: Commands,
    name: str,
    help: str,
    example: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    *,
    continues: bool = False,
) -> argparse.ArgumentParser:
    """A sub-command with the flags that all have, and an example under its help.

    Args:
        run: does the work and returns the exit code; None where the command has sub-commands itself.
        continues: after an interruption or an error, the same command goes on from what it had finished.
    """
    parser = commands.add_parser(
        name,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"{EXAMPLE}\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add_help_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress, no notes")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    spoken = "language of what is printed: en or zh (default: FEATCACHE_LANG, else the locale)"
    group.add_argument("--lang", choices=LANGUAGES, help=spoken)
    group.add_argument("--config", metavar="FILE", help="settings file (default: featcache.toml here)")
    parser.set_defaults(parser=parser, settings=(), places=PLACES, continues=continues)
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_flag(
    parser: argparse._ActionsContainer,
    flag: str,
    help: str,
    default: Any = None,
    *,
    kind: type = str,
    choices: Collection[str] = (),
    least: float | None = None,
    **more: Any,
) -> None:
    """A flag with a value; its help ends with its default, and its metavar tells its kind.

    Args:
        kind: type of the value; that of `default` where there is one.
        least: the smallest number that is accepted.
        more: for `ArgumentParser.add_argument`.
    """
    kind = kind if default is None else type(default)
    metavar = more.pop("metavar", None) or _metavar(kind, choices, flag)
    more |= {"choices": tuple(choices)} if choices else {}
    parser.add_argument(
        flag, type=_parser_of(kind, flag, least), default=default, metavar=metavar,
        help=_with_default(help, default), **more,
    )  # fmt: skip


def add_settings(parser: argparse.ArgumentParser, *sections: str, without: Sequence[str] = ()) -> None:
    """A flag for every setting in `sections` (`""` holds the seed) except those in `without`."""
    added = [
        option
        for section in sections
        for option in options().values()
        if option.section == section and option.name not in without
    ]
    for section in sections:
        add_options(parser, TITLES[section], [option for option in added if option.section == section])
    known = parser.get_default("settings")
    parser.set_defaults(settings=(*known, *(option.name for option in added)))


def add_options(parser: argparse.ArgumentParser, title: str, added: Sequence[Option]) -> None:
    """A group of flags, one for each setting; a flag that is not given has the value None."""
    group = parser.add_argument_group(title)
    for option in added:
        help = _with_default(option.help, option.default)
        if option.type is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(option.flag, action=action, default=None, help=help)
            continue
        group.add_argument(option.flag, metavar=_metavar(option.type, option.choices, option.flag), help=help)
        if option.name == "views":
            poolings = "auto, cls, mean, last, max, weightedmean, mean_sqrt_len; joined as in cls+mean"
            help = f"short for --views last/POOLING: {poolings}"
            group.add_argument("--pooling", metavar="POOLING", help=help)


def settings_of(
    args: argparse.Namespace, more: Mapping[str, Any] | None = None, *, file: bool = True
) -> Settings:
    """The settings of a command: its flags from `add_settings`, then the file, then the defaults.

    Args:
        more: further values by name, which count as flags; None values count as not given.
        file: read the settings file.
    """
    values = {name: getattr(args, name) for name in args.settings} | dict(more or {})
    given = {name: value for name, value in values.items() if value is not None}
    pooling = getattr(args, "pooling", None)
    if pooling is not None:
        if "views" in given:
            raise UsageError("--pooling and --views cannot be given together")
        given["views"] = ",".join(f"last/{name.strip()}" for name in pooling.split(","))
    if "dataset" in given and "data_files" in given:
        raise UsageError("--dataset and --data-files cannot be given together")
    if "max_error" in given and "coverage" in given:
        raise UsageError("--max-error and --coverage cannot be given together", hint=ONE_LEVEL)
    if "dataset" in given:
        given["data_files"] = {}  # a dataset on the command line wins over files in the settings file
    settings = load_settings(given, path=args.config) if file else build_settings(given)
    if is_remote(settings.paths.reports_dir):
        raise UsageError(f"--reports-dir {shown(settings.paths.reports_dir)}: runs are kept in a folder")
    if kind_of(settings.backbone.model) == VECTORS:
        from featcache.importing.find import with_imported_texts

        return with_imported_texts(settings)
    return settings


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """`100,1000` as numbers.

    Raises:
        UsageError: something else; the message names `flag`.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        hint = "write them as in 100,1000,10000"
        raise UsageError(f"{flag} {text}: whole numbers are needed", hint=hint) from None


def _with_default(help: str, default: Any) -> str:
    text = help.replace("%", "%%")
    if default is None or default is False or default in ("", []):
        return text
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"{text} (default: {shown:g})" if isinstance(shown, float) else f"{text} (default: {shown})"


def _metavar(kind: Any, choices: Collection[str], flag: str) -> str:
    if choices:
        return "{" + ",".join(choices) + "}"
    return OWN_METAVARS.get(flag) or METAVARS.get(kind) or flag.upper().rpartition("-")[2]


def _parser_of(kind: type, flag: str, least: float | None) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if least is not None and not value >= least:
            raise UsageError(f"{flag} {text}: at least {least}")
        return value

    parse.__name__ = kind.__name__  # argparse names it: "invalid int value"
    return parse
