"""The flags that choose what does the work: this machine, or a Ray cluster."""

from __future__ import annotations

import argparse

from featcache.cluster.cluster import Engine

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


def engine_of(args: argparse.Namespace) -> Engine:
    """The engine that the flags ask for."""
    return Engine(args.engine, args.workers, args.ray_address)
