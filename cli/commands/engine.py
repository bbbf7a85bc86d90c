"""The flags that say what does the work: this machine, or a Ray cluster."""

from __future__ import annotations

import argparse

from featcache.errors import UsageError

ENGINES = ("local", "ray")


def add_engine(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        metavar="{local,ray}",
        help="this machine, or a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="the Ray cluster; auto: the one this machine is of (default: a Ray of its own)",
    )


def check_engine(args: argparse.Namespace) -> None:
    """Refuse what only has a meaning with Ray."""
    if args.engine != "ray" and args.ray_address is not None:
        raise UsageError("--ray-address without --engine ray", hint="--engine ray")
