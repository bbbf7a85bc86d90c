"""`featcache predict`: labels for texts given, piped or typed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import FeatcacheError, UsageError
from featcache_cli.commands.engine import add_engine, engine_of
from featcache_cli.commands.predict.file import add_flags, run_file
from featcache_cli.commands.predict.ray import run_ray
from featcache_cli.console import err, note, out, print_error, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

HISTORY_FILE = ".predict-history"  # in the folder of the runs
HISTORY_LINES = 1000
BARS = 10  # labels shown for a text typed

if TYPE_CHECKING:
    from featcache.prediction.predictor import Prediction, Predictor
    from featcache.runs.run import Run


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "predict",
        "label texts or a file with a trained head; without either: interactive",
        'featcache predict "房间很干净，服务也好" "电池一天就坏了"\n'
        "featcache predict --run linear-last-mean-1\n"
        "featcache predict --input reviews.csv --output labelled.csv\n"
        "featcache predict --input 's3://in/*.parquet' --engine ray --output s3://out/",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label")
    parser.add_argument("--pair", action="append", metavar="TEXT", help="second text, one for each TEXT")
    parser.add_argument(
        "--run", dest="run_name", metavar="RUN", help="run to use (default: best by validation)"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="show the K most probable labels (default: all)"
    )
    parser.add_argument("--model", help="folder of the backbone, if it has moved since")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add_flags(parser)
    group = parser.add_argument_group("many files, into a folder")
    add_engine(group)
    group.add_argument("--workers", metavar="N", help="with --engine ray: actors (default: auto)")
    add_settings(parser, "paths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.top_k is not None and args.top_k < 1:
        raise UsageError(f"--top-k {args.top_k}: at least 1")
    if args.pair and len(args.pair) != len(args.texts):
        raise UsageError(f"{len(args.texts)} texts but {len(args.pair)} --pair; one is needed for each")
    if args.engine == "ray":
        return run_ray(args, choose(args))
    engine_of(args)
    if args.workers is not None:
        raise UsageError("--workers without --engine ray", hint="--engine ray")
    if args.input is not None or args.output is not None:
        return run_file(args, lambda: load(args, choose(args)))
    _refuse_empty(args.texts)
    predictor = load(args, choose(args))
    predictor.check_pairs(bool(args.pair))
    if args.texts:
        _show(predictor.predict(args.texts, args.pair), args)
    elif sys.stdin.isatty():
        _interactive(predictor, args)
    else:
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        _show(predictor.predict([line for line in lines if line.strip()]), args)
    return 0


def _refuse_empty(texts: list[str]) -> None:
    """Said before the model is loaded."""
    from featcache.system.text import check_text

    for number, text in enumerate(texts, start=1):
        check_text(text, f"text {number}")


def choose(args: argparse.Namespace) -> Run:
    """The run asked for, or the best one."""
    from featcache.runs.run import choose_run

    chosen = choose_run(Path(reports_dir(args)), args.run_name)
    if args.run_name is None:
        accuracy = chosen.metric("validation", "accuracy")
        note(f"using {chosen.name} (best by validation: accuracy {accuracy:.4f})", quiet=args.quiet)
    return chosen


def load(args: argparse.Namespace, chosen: Run) -> Predictor:
    """The predictor of a run, with a spinner meanwhile."""
    from rich.text import Text

    console = err()
    console.quiet = args.quiet
    with console.status(Text(f"loading {chosen.record.backbone.model}")):
        from featcache.prediction.predictor import Predictor

        return Predictor.from_run(chosen, model=args.model, device=args.device)


def reports_dir(args: argparse.Namespace) -> str:
    """`--model` and `--device` of this command say where a run's backbone lies now: no settings."""
    others = dict.fromkeys(("model", "device", "text_column", "pair_column"))
    return settings_of(argparse.Namespace(**{**vars(args), **others})).paths.reports_dir


def _interactive(predictor: Predictor, args: argparse.Namespace) -> None:
    """Label each line typed, until q or the end of input."""
    note("type a text and press Enter; q quits")
    with _history(reports_dir(args)):
        _answer_lines(predictor, args)


def _answer_lines(predictor: Predictor, args: argparse.Namespace) -> None:
    while True:
        try:
            text = _ask()
        except EOFError:
            break
        if text.strip() in ("q", "Q"):
            break
        if text.strip():
            try:
                _show(predictor.predict([text]), args, alone=True)
            except FeatcacheError as error:
                print_error(error)


@contextmanager
def _history(reports_dir: str) -> Iterator[None]:
    """Line editing for `input`, with the lines typed before; where there is no readline, without."""
    _edit_whole_characters()
    try:
        import readline
    except ImportError:
        yield
        return
    path = Path(reports_dir) / HISTORY_FILE
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that cannot be written to: no history
            readline.write_history_file(path)


def _edit_whole_characters() -> None:
    """Readline edits bytes, not characters, where the locale has no UTF-8; typed is UTF-8 all the same.

    It sets its locale by the environment whenever a line is asked for, so that is where it is told.
    """
    import locale

    if hasattr(locale, "nl_langinfo") and locale.nl_langinfo(locale.CODESET).upper() != "UTF-8":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
            os.environ["LC_ALL"] = "C.UTF-8"


def _ask() -> str:
    """A line typed; the prompt is no data, so it goes to stderr where stdout is not the terminal."""
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


def _show(predictions: list[Prediction], args: argparse.Namespace, *, alone: bool = False) -> None:
    """JSON, a line a text off a terminal, bars for a text typed, else a table."""
    if args.json:
        print_json([record(prediction, args.top_k) for prediction in predictions])
        return
    if not out().is_terminal:
        for prediction in predictions:
            text = " ".join(prediction.text.split())
            print(prediction.label, f"{prediction.probability:.4f}", text, sep="\t")
    elif alone:
        _print_bars(_top(predictions[0], args.top_k or BARS))
    else:
        show_table(predictions, args.top_k)
    cut = sum(prediction.truncated for prediction in predictions)
    if cut:
        note(
            f"{cut} of {len(predictions)} texts were longer than the longest length and were cut",
            quiet=args.quiet,
        )


def record(prediction: Prediction, top_k: int | None) -> dict[str, Any]:
    """One text as `--json` shows it."""
    return {
        "text": prediction.text,
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": _top(prediction, top_k),
        "truncated": prediction.truncated,
    }


def show_table(predictions: list[Prediction], top_k: int | None) -> None:
    """Label, probability and text; the other labels below the text where they are few."""
    from rich.text import Text

    shown = table([("label", "left"), ("prob.", "right"), ("text", "left")])
    for prediction in predictions:
        others = list(_top(prediction, top_k).items())[1:]
        text = Text(prediction.text)
        if 1 < len(others) <= 4:
            text.append("\n" + ", ".join(f"{name} {value:.4f}" for name, value in others), "dim")
        label = Text(prediction.label, style="bold")
        shown.add_row(label, f"{prediction.probability:.4f}", text)
    out().print(shown)


def _print_bars(probabilities: dict[str, float]) -> None:
    """The most probable labels; `--top-k` shows more or fewer."""
    from rich.cells import cell_len
    from rich.text import Text

    width = max(cell_len(name) for name in probabilities)
    for number, (name, value) in enumerate(probabilities.items()):
        blanks = " " * (width - cell_len(name))
        line = Text(f"  {name}{blanks} {value:7.4f} ", style="bold" if number == 0 else "")
        out().print(line + Text("█" * round(30 * value), style="cyan"))


def _top(prediction: Prediction, count: int | None) -> dict[str, float]:
    """The most probable labels, best first."""
    ordered = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    return dict(ordered[:count])
