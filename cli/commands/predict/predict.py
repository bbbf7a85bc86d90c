"""`featcache predict`: labels for texts given, piped or typed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import FeatcacheError, UsageError
from featcache.system.text import one_line
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated
from featcache_cli.chosen_run import (
    abstention_of,
    add_abstention_flags,
    add_backbone_flags,
    backbone_of,
    choose,
    load,
)
from featcache_cli.commands.predict import explain
from featcache_cli.commands.predict.file import add_file_flags, run_file
from featcache_cli.commands.predict.ray import run_ray
from featcache_cli.console import columns, err, note, out, print_error, print_json, table
from featcache_cli.engine import add_engine, engine_of
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

HISTORY_FILE = ".predict-history"  # in the folder of the runs
HISTORY_LINES = 1000
BARS = 10  # labels shown for a text typed
QUIT = ("q", ":q", ":quit", "quit", "exit")
HELP = ("help", ":help", ":h", "?")
ABOUT_PROMPT = """each line is a text to label; a whole file: featcache predict --input FILE --output FILE
  Up, Down   earlier texts
  Ctrl-C     clears the line; twice in a row it quits
  :help      this list
  :quit      quits, as q and Ctrl-D do"""

if TYPE_CHECKING:
    from featcache.prediction.predictor import NumberPrediction, Prediction, Predictor


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        "label texts or a file with a trained head; without either: interactive",
        'featcache predict "房间很干净，服务也好" "电池一天就坏了"\n'
        "featcache predict --run linear-last-mean-1\n"
        "featcache predict --input reviews.csv --output labelled.csv\n"
        "featcache predict --input 's3://in/*.parquet' --engine ray --output s3://out/",
        run,
        continues=True,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label")
    parser.add_argument("--pair", action="append", metavar="TEXT", help="second text, one for each TEXT")
    add_flag(parser, "--run", "run to use (default: best by validation)", dest="run_name", metavar="RUN")
    top = "show the K most probable labels (default: all)"
    add_flag(parser, "--top-k", top, kind=int, least=1, metavar="K")
    why = "show the words that decided, or the tokens looked at, of a head that reads words or token states"
    parser.add_argument("--explain", action="store_true", help=why)
    add_backbone_flags(parser)
    add_abstention_flags(parser)
    add_file_flags(parser)
    group = parser.add_argument_group("many files, into a folder")
    add_engine(group)
    add_flag(group, "--workers", "with --engine ray: actors (default: auto)", metavar="N")
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    from featcache.system.text import check_text

    if args.pair and len(args.pair) != len(args.texts):
        raise UsageError(f"{len(args.texts)} texts but {len(args.pair)} --pair; one is needed for each")
    if args.engine == "ray":
        return run_ray(args, choose(args))
    engine_of(args)
    if args.workers is not None:
        raise UsageError("--workers without --engine ray", hint="--engine ray")
    if args.input is not None or args.output is not None:
        return run_file(args, lambda: _file_predictor(args))
    if args.vectors is not None:
        raise UsageError(
            "--vectors is for the rows of a file",
            hint="--input texts.csv --vectors vectors.npy --output labelled.csv",
        )
    for number, text in enumerate(args.texts, start=1):  # refused before the model is loaded
        check_text(text, f"text {number}")
    predictor = load(args, choose(args))
    predictor.check_pairs(bool(args.pair))
    if predictor.head.numbers is not None and (args.explain or args.top_k):
        flag = "--explain" if args.explain else "--top-k"
        raise UsageError(f"{flag} is about labels, and this head predicts numbers", hint="leave it away")
    if args.texts and args.explain:
        _explain(predictor, args)
    elif args.texts:
        _show(predictor.predict_any(args.texts, args.pair), args)
    elif sys.stdin.isatty():
        _interactive(predictor, args)
    else:
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        _show(predictor.predict_any([line for line in lines if line.strip()]), args)
    return 0


def _file_predictor(args: argparse.Namespace) -> Predictor:
    """The run's predictor; with `--vectors` only the backbones that the head reads beside them are loaded."""
    if args.vectors is None:
        return load(args, choose(args))
    from featcache.prediction.vectors import VectorPredictor

    chosen, endpoint = choose(args), settings_of(args).endpoint
    choice = backbone_of(args, chosen)
    predictor = VectorPredictor.of_file(
        chosen, Path(args.vectors), args.array, choice=choice, endpoint=endpoint
    )
    if asked := abstention_of(args):
        predictor.abstain_at(asked)
    return predictor


def _explain(predictor: Predictor, args: argparse.Namespace) -> None:
    """Label the texts given, and show the words that decided."""
    predictions = predictor.predict(args.texts, args.pair)
    found = predictor.explain(predictions, args.pair)
    if args.json:
        pairs = zip(predictions, found, strict=True)
        print_json([record(one, args.top_k) | {"explanation": asdict(why)} for one, why in pairs])
    else:
        explain.show(predictions, found)


def _interactive(predictor: Predictor, args: argparse.Namespace) -> None:
    """Label each line typed, until q, the end of input, or Ctrl-C twice in a row."""
    note("type a text and press Enter; :help tells more, q quits")
    interrupted = False
    with _history(Path(settings_of(args).paths.reports_dir) / HISTORY_FILE):
        while True:
            try:
                text = _ask()
                if text.strip().lower() in QUIT:
                    return
                _answer(predictor, text, args)
                interrupted = False
            except KeyboardInterrupt:
                err().print()
                if interrupted:
                    return
                interrupted = True
                note("Ctrl-C again quits")


def _answer(predictor: Predictor, text: str, args: argparse.Namespace) -> None:
    """Label one line, or do what it asks for."""
    word = text.strip().lower()
    if word in HELP:
        note(ABOUT_PROMPT)
    elif re.match(r":[a-z]", word):
        note(f"there is no command {word.split()[0]}, and nothing was labelled; :help lists the commands")
    elif word:
        try:
            _show(predictor.predict_any([text]), args, alone=True)
        except FeatcacheError as error:
            print_error(error)


@contextmanager
def _history(path: Path) -> Iterator[None]:
    """Line editing for `input`, with the lines in `path` as its history, where there is readline."""
    _edit_whole_characters()
    try:
        import readline
    except ImportError:
        yield
        return
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that cannot be written to: no history
            readline.write_history_file(path)


def _edit_whole_characters() -> None:
    """Let readline edit UTF-8 where the locale has another encoding; else it edits single bytes.

    It takes its locale from the environment whenever it asks for a line, so the environment is changed.
    """
    import locale

    if hasattr(locale, "nl_langinfo") and locale.nl_langinfo(locale.CODESET).upper() != "UTF-8":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
            os.environ["LC_ALL"] = "C.UTF-8"


def _ask() -> str:
    """The next line, or `q` at the end of input; the prompt never goes into piped output."""
    try:
        if sys.stdout.isatty():
            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)
        return input()
    except EOFError:
        return "q"


def _show(
    predictions: list[Prediction] | list[NumberPrediction], args: argparse.Namespace, *, alone: bool = False
) -> None:
    """JSON, a line a text off a terminal, bars for a text typed, else a table."""
    from featcache.backbone.tokens.unknown_tokens import MOST, mostly_unknown_text
    from featcache.prediction.predictor import Prediction

    labels = [one for one in predictions if isinstance(one, Prediction)]
    numbers = [one for one in predictions if not isinstance(one, Prediction)]
    if args.json:
        print_json([*(record(one, args.top_k) for one in labels), *map(asdict, numbers)])
        return
    if numbers:
        _show_numbers(numbers)
    elif not out().is_terminal:
        for prediction in labels:
            label, text = one_line(prediction.label), one_line(prediction.text)
            print(label, f"{prediction.probability:.4f}", text, sep="\t")
        if held := sum(prediction.abstained for prediction in labels):
            note(f"{held} of {len(predictions)} texts have no answer; --json says why", quiet=args.quiet)
    elif alone:
        if labels[0].reason:
            out().print(translated(labels[0].reason), style="bold yellow")
        _print_bars(_top(labels[0], args.top_k or BARS))
    else:
        show_table(labels, args.top_k)
    truncated = sum(prediction.truncated for prediction in predictions)
    if truncated:
        note(
            f"{truncated} of {len(predictions)} texts were longer than the maximum length and were truncated",
            quiet=args.quiet,
        )
    unknown = sum(prediction.unknown_tokens >= MOST for prediction in predictions)
    if unknown:
        note(mostly_unknown_text(unknown, len(predictions)), quiet=args.quiet)


def _show_numbers(predictions: list[NumberPrediction]) -> None:
    """A table on a terminal, else a line a text: number, ends of its interval (or nothing), text."""
    rows = [
        [f"{one.number:.6g}", *("" if end is None else f"{end:.6g}" for end in (one.low, one.high))]
        for one in predictions
    ]
    if not out().is_terminal:
        for one, cells in zip(predictions, rows, strict=True):
            print(*cells, one_line(one.text), sep="\t")
        return
    shown = table(*columns(">number", ">from", ">to", "text"))
    for one, cells in zip(predictions, rows, strict=True):
        shown.add_row(*cells, one.text)
    out().print(shown)


def record(prediction: Prediction, top_k: int | None) -> dict[str, Any]:
    """One text as `--json` shows it."""
    return {
        "text": prediction.text,
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": _top(prediction, top_k),
        "truncated": prediction.truncated,
        "unknown_tokens": prediction.unknown_tokens,
        "abstained": prediction.abstained,
        "reason": prediction.reason,
        "out_of_scope": prediction.out_of_scope,
    }


def show_table(predictions: list[Prediction], top_k: int | None) -> None:
    """Label, probability and text; the other labels below the text where they are few."""
    from rich.text import Text

    shown = table(*columns("label", ">prob.", "text"))
    for prediction in predictions:
        others = list(_top(prediction, top_k).items())[1:]
        text = Text(prediction.text)
        if 1 < len(others) <= 4:
            text.append("\n" + ", ".join(f"{name} {value:.4f}" for name, value in others), "dim")
        if prediction.reason:
            text.append(f"\n{translated(prediction.reason)}", "yellow")
        label = (
            Text(_("no answer"), "yellow") if prediction.abstained else Text(prediction.label, style="bold")
        )
        shown.add_row(label, f"{prediction.probability:.4f}", text)
    out().print(shown)


def _print_bars(probabilities: dict[str, float]) -> None:
    """The most probable labels, one a line with a bar."""
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
