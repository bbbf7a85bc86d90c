"""The `featcache` command: parsing, exit codes, and nothing heavy imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from rich_argparse import RawDescriptionRichHelpFormatter

from featcache.errors import FeatcacheError, UsageError
from featcache_cli.console import err, print_error

COMMANDS = ("init", "extract", "train_head", "compare", "predict", "cache", "run", "bench", "demo")

DESCRIPTION = """\
Run a frozen Transformer once over your texts, cache its features, train heads in seconds.

  featcache demo                              see it work, without any model hub
  featcache extract --all-splits              features of train, validation and test
  featcache train-head --epochs 100           a linear head on the cached features
  featcache compare                           the runs side by side
  featcache predict "房间很干净，服务也好"      backbone and head together again
"""

EXIT_CODES = """\
exit codes: 0 done, 2 usage, 3 data, 4 model, 5 cache, 6 head or run, 1 anything else,
130 interrupted (finished work is kept). Settings: flags, then featcache.toml, then defaults.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code: int = args.run(args) or 0
        sys.stdout.flush()
        return code
    except FeatcacheError as error:
        if args.debug:
            raise
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        if args.debug:
            raise
        err().print("\ninterrupted; finished work is kept, the same command goes on from it")
        return 130
    except BrokenPipeError:  # the reader of our stdout left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        print_error(
            FeatcacheError(
                f"unexpected {type(error).__name__}: {error}",
                hint="this is a defect of featcache; --debug shows where it happened",
            )
        )
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        hint = f"see: {self.prog} --help"
        print_error(UsageError(message, hint=hint))
        raise SystemExit(UsageError.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="featcache",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"featcache {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"featcache_cli.{name}").add(commands)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("featcache")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
