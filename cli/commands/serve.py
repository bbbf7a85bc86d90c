"""`featcache serve`: a trained head behind HTTP, with a page to try it on."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache_cli.commands.predict.predict import choose, load
from featcache_cli.console import note, print_json
from featcache_cli.options import add_command, add_settings

if TYPE_CHECKING:
    from featcache.runs.run import Run
    from featcache.serving.app import Limits, RunInfo

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LIMITS = (
    ("--max-body", "body_bytes", "bytes of a request"),
    ("--max-texts", "texts", "texts of a request"),
    ("--max-characters", "characters", "characters of a request"),
    ("--deadline", "seconds", "seconds a request may take"),
    ("--queue", "queue_texts", "texts that may wait for the model"),
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "serve",
        "answer HTTP requests with a trained head, and show a page to try it on",
        "featcache serve --port 8000",
    )
    parser.add_argument("--run", dest="run_name", metavar="RUN", help="default: best by validation")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (default: 8000)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="also answer requests for this host name; needed behind a proxy",
    )  # fmt: skip
    parser.add_argument("--model", help="folder of the backbone, if it has moved since")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group = parser.add_argument_group("limits")
    for flag, name, what in LIMITS:
        group.add_argument(flag, dest=f"limit_{name}", type=_count, metavar="N", help=what)
    add_settings(parser, "paths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}", hint="pip install 'featcache[serve]'")
    from featcache.serving.server import bind, keep_few_kernels, serve

    listening = bind(args.host, args.port)  # a port that is taken is said before the model is loaded
    with listening:
        chosen = choose(args)
        keep_few_kernels()
        predictor = load(args, chosen)
        from featcache.serving.app import LOCAL_NAMES, Service

        hosts = tuple(dict.fromkeys((*LOCAL_NAMES, args.host, *args.allow_host)))
        service = Service(predictor, _limits(args), _about(chosen), hosts)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if args.json:
            print_json({"url": url})
        note(f"listening on {url} (Ctrl-C stops)", quiet=args.quiet)
        serve(service, listening)
    note("stopped; every accepted request was answered", quiet=args.quiet)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from featcache.serving.app import Limits

    given = {name: getattr(args, f"limit_{name}") for _, name, _ in LIMITS}
    return replace(Limits(), **{name: value for name, value in given.items() if value is not None})


def _about(chosen: Run) -> RunInfo:
    """The run as `/info` shows it."""
    from featcache.serving.app import RunInfo

    metrics, record = chosen.record.metrics, chosen.record
    return RunInfo(chosen.name, record.head, record.created, metrics.get("test") or metrics.get("validation"))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number
