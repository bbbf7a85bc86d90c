"""`featcache init`: write featcache.toml here."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from featcache.errors import UsageError
from featcache.settings import CONFIG_FILE, to_toml
from featcache.system.durable import write_file
from featcache_cli.console import note, print_json
from featcache_cli.options import add_command, add_settings, settings_of


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "init",
        "write featcache.toml in this folder",
        "featcache init --model bert-base-chinese --dataset lansinuote/ChnSentiCorp\n"
        "featcache init --data-files train=train.tsv,test=test.tsv --pooling mean",
    )
    parser.add_argument("--force", action="store_true", help="replace a featcache.toml that is there")
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    file = Path(args.config or CONFIG_FILE)
    if file.exists() and not args.force:
        raise UsageError(f"{file} is there already", hint="change it by hand, or replace it: --force")
    args.config = os.devnull  # the new file holds the flags and the defaults, nothing older
    write_file(file, to_toml(settings_of(args)).encode("utf-8"))
    note(f"wrote {file}; next: featcache extract --all-splits", quiet=args.quiet)
    if args.json:
        print_json({"path": str(file)})
    return 0
