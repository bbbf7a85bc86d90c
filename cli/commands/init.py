"""`featcache init`: write featcache.toml here."""

from __future__ import annotations

import argparse
from pathlib import Path

from featcache.errors import UsageError
from featcache.settings import CONFIG_FILE
from featcache.settings_file import to_toml
from featcache.system.durable import write_file
from featcache_cli.console import note, print_result
from featcache_cli.options import Commands, add_command, add_settings, settings_of


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "init",
        "write featcache.toml in this folder",
        "featcache init --model bert-base-chinese --dataset lansinuote/ChnSentiCorp\n"
        "featcache init --data-files train=train.tsv,test=test.tsv --pooling mean",
        run,
    )
    parser.add_argument("--force", action="store_true", help="replace a featcache.toml that is there")
    parser.set_defaults(places=("--config",))
    add_settings(parser, "backbone", "data", "features", "endpoint", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    file = Path(args.config or CONFIG_FILE)
    if file.exists() and not args.force:
        raise UsageError(f"{file} exists already", hint="edit it, or replace it with --force")
    settings = settings_of(args, file=False)  # the new file holds nothing of an older one
    write_file(file, to_toml(settings).encode("utf-8"))
    note(f"wrote {file}; next: featcache extract --all-splits", quiet=args.quiet)
    print_result(args, {"path": str(file)}, lambda: None)
    return 0
