"""`featcache export`: a run as a model that other tools load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featcache_cli.commands.predict.predict import choose
from featcache_cli.console import err, note, out, print_json
from featcache_cli.options import add_command, add_settings

if TYPE_CHECKING:
    from featcache.export.reference import ExportedModel

FORMATS = ("huggingface", "onnx")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "export",
        "write a run as a Hugging Face model, or as ONNX",
        "featcache export linear-last-cls-1 --output my-model\n"
        "featcache export linear-last-mean-1 --format onnx --output my-onnx",
    )
    parser.add_argument("run_name", nargs="?", metavar="RUN", help="default: best by validation")
    parser.add_argument("--format", choices=FORMATS, default="huggingface", help="default: huggingface")
    parser.add_argument("--output", metavar="FOLDER", help="default: the name of the run, here")
    parser.add_argument("--force", action="store_true", help="replace the folder that is there")
    parser.add_argument("--model", help="folder of the backbone, if it has moved since")
    add_settings(parser, "paths")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    chosen = choose(args)
    folder = Path(args.output or chosen.name)
    console = err()
    console.quiet = args.quiet
    with console.status("comparing logits"):
        made = _exporter(args.format)(chosen, folder, model=args.model, force=args.force)
    if args.json:
        document = {"folder": str(made.folder), "class": made.model_class, "compared": made.compared,
                    "largest_difference": made.difference}  # fmt: skip
        if made.own_difference is not None:
            document["largest_difference_own"] = made.own_difference
        print_json(document)
        return 0
    out().print(f"{made.folder}: {made.model_class}", soft_wrap=True)
    said = f"logits on {made.compared} texts differ from the run's by at most {made.difference:.1e}"
    if made.own_difference is not None:
        said += f" in float32, {made.own_difference:.1e} as its predictor computes"
    note(said, quiet=args.quiet)
    return 0


def _exporter(name: str) -> Callable[..., ExportedModel]:
    if name == "onnx":
        from featcache.export.onnx import export_onnx

        return export_onnx
    from featcache.export.huggingface import export_huggingface

    return export_huggingface
