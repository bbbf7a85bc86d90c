"""`featcache serve`: a trained head behind HTTP, with a page to try it on."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from featcache.system.packages import require_extra
from featcache_cli.chosen_run import add_abstention_flags, add_backbone_flags, choose, load
from featcache_cli.console import note, print_json
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.runs.run import Run
    from featcache.serving.app import RunInfo
    from featcache.serving.request import Limits

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LIMITS = (
    ("--max-body", "body_bytes", "bytes of a request"),
    ("--max-texts", "texts", "texts of a request"),
    ("--max-characters", "characters", "characters of a request"),
    ("--deadline", "seconds", "seconds a request may take"),
    ("--queue", "queue_texts", "texts that may wait for the model"),
    ("--max-file", "file_bytes", "bytes of a file to be labelled; 0: no files are taken"),
    ("--max-file-rows", "file_rows", "rows of such a file"),
)


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "serve",
        "answer HTTP requests with a trained head, and show a page to try it on",
        "featcache serve --port 8000",
        run,
    )
    add_flag(parser, "--run", "default: best by validation", dest="run_name", metavar="RUN")
    add_flag(parser, "--host", "address to listen on", "127.0.0.1")
    add_flag(parser, "--port", "0: a free one", 8000)
    hosts = "also answer requests for this host name; needed behind a proxy"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=hosts)
    shown = "show three texts of the test split on the page (default: if only this machine can reach it)"
    parser.add_argument("--examples", action=argparse.BooleanOptionalAction, default=None, help=shown)
    add_backbone_flags(parser)
    add_abstention_flags(parser)
    group = parser.add_argument_group("limits")
    for flag, name, what in LIMITS:
        least = 0 if name == "file_bytes" else 1
        add_flag(group, flag, what, kind=int, least=least, dest=f"limit_{name}")
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    require_extra("serve", "serve", NEEDED)
    from featcache.serving.server import bind, keep_few_kernels, serve

    listening = bind(args.host, args.port)  # before the model is loaded: the port may be taken
    with listening:
        chosen = choose(args)
        keep_few_kernels()
        predictor = load(args, chosen)
        from featcache.serving.app import LOCAL_NAMES, Service
        from featcache.serving.examples import examples_of

        hosts = tuple(dict.fromkeys((*LOCAL_NAMES, args.host, *args.allow_host)))
        own = set(hosts) <= set(LOCAL_NAMES)
        shown = own if args.examples is None else args.examples
        examples = partial(examples_of, chosen, settings_of(args).data) if shown else None
        service = Service(predictor, _limits(args), _about(chosen), hosts, examples)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if args.json:
            print_json({"url": url})
        note(f"listening on {url} (Ctrl-C stops)", quiet=args.quiet)
        if shown:
            about = "the page shows three texts of the test split to everybody who opens it"
            note(f"{about}; --no-examples leaves them out", quiet=args.quiet)
        elif args.examples is None:
            about = "others may open the page, so it shows no texts of the test split"
            note(f"{about}; --examples shows three", quiet=args.quiet)
        serve(service, listening)
    note("stopped; every accepted request was answered", quiet=args.quiet)
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from featcache.serving.request import Limits

    given = {name: getattr(args, f"limit_{name}") for _, name, _ in LIMITS}
    return replace(Limits(), **{name: value for name, value in given.items() if value is not None})


def _about(chosen: Run) -> RunInfo:
    """The run as `/info` shows it."""
    from featcache.serving.app import RunInfo

    metrics, record = chosen.record.metrics, chosen.record
    scores = metrics.get("test") or metrics.get("validation")
    return RunInfo(chosen.name, record.head, record.created, scores, record.data)
