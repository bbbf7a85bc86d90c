"""Flags: derived from the settings in `featcache.settings`, plus those every command has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich_argparse import RawDescriptionRichHelpFormatter

from featcache.errors import UsageError
from featcache.settings import Option, Settings, load_settings, options
from featcache.system.stores import is_remote, shown

TITLES = {
    "": "common",
    "backbone": "backbone",
    "data": "data",
    "features": "features",
    "head": "head",
    "paths": "folders",
}


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """A sub-command with the flags all have, and an example under its help."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
        formatter_class=RawDescriptionRichHelpFormatter,
        allow_abbrev=False,
    )
    add_common(parser)
    parser.set_defaults(parser=parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--json`, `--quiet`, `--debug`, `--config`: every command has them."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress, no notes")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("--config", metavar="FILE", help="settings file (default: featcache.toml here)")


def add_settings(parser: argparse.ArgumentParser, *sections: str, without: Sequence[str] = ()) -> None:
    """A flag for every setting in `sections` (`""` holds the seed), but for those `without`."""
    for section in sections:
        group = parser.add_argument_group(TITLES[section])
        for option in options().values():
            if option.section != section or option.name in without:
                continue
            help_text = option.help.replace("%", "%%")
            if option.default is not None and option.default not in ("", False):
                default = option.default
                shown = ",".join(default) if isinstance(default, tuple) else default
                help_text += f" (default: {shown})"
            if option.type is bool:
                group.add_argument(
                    option.flag, action=argparse.BooleanOptionalAction, default=None, help=help_text
                )
                continue
            metavar = "{" + ",".join(option.choices) + "}" if option.choices else _metavar(option)
            group.add_argument(option.flag, metavar=metavar, help=help_text)
            if option.name == "views":
                group.add_argument("--pooling", metavar="POOLING", help="short for --views last/POOLING")


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of a command: its flags, then the file, then the defaults."""
    given = {name: value for name, value in vars(args).items() if name in options() and value is not None}
    pooling = getattr(args, "pooling", None)
    if pooling is not None:
        if "views" in given:
            raise UsageError("--pooling and --views cannot be given together")
        given["views"] = ",".join(f"last/{name.strip()}" for name in pooling.split(","))
    if "dataset" in given and "data_files" in given:
        raise UsageError("--dataset and --data-files cannot be given together")
    if "dataset" in given:
        given["data_files"] = {}  # a dataset on the command line wins over files in the settings file
    settings = load_settings(given, path=args.config)
    if is_remote(settings.paths.reports_dir):
        raise UsageError(f"--reports-dir {shown(settings.paths.reports_dir)}: runs are kept in a folder")
    return settings


def _metavar(option: Option) -> str:
    kinds = {int: "N", float: "X", dict: "train=F,...", tuple: "A,B,..."}
    return kinds.get(option.type) or option.name.upper().rpartition("_")[2]
