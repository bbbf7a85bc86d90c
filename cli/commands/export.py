"""`featcache export`: a run as a model that other tools load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featcache_cli.chosen_run import choose
from featcache_cli.console import err, note, out, print_result
from featcache_cli.options import Commands, add_command, add_flag, add_settings

if TYPE_CHECKING:
    from featcache.export.reference import ExportedModel

FORMATS = ("huggingface", "onnx")


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        "write a run as a Hugging Face model, or as ONNX",
        "featcache export linear-last-cls-1 --output my-model\n"
        "featcache export linear-last-mean-1 --format onnx --output my-onnx",
        run,
    )
    parser.add_argument("run_name", nargs="?", metavar="RUN", help="default: best by validation")
    add_flag(parser, "--format", "what is written", "huggingface", choices=FORMATS)
    add_flag(parser, "--output", "where to write (default: the name of the run, here)", metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="replace the folder that is there")
    add_flag(parser, "--model", "folder of the backbone, if it has moved since")
    add_flag(parser, "--adapter", "folder of the backbone's adapter, if it has moved since")
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    chosen = choose(args)
    folder = Path(args.output or chosen.name)
    console = err()
    console.quiet = args.quiet
    with console.status("comparing logits"):
        made = _exporter(args.format)(
            chosen, folder, model=args.model, adapter=args.adapter, force=args.force
        )
    document = {"folder": str(made.folder), "class": made.model_class, "compared": made.compared,
                "largest_difference": made.difference}  # fmt: skip
    if made.own_difference is not None:
        document["largest_difference_own"] = made.own_difference

    def show() -> None:
        out().print(f"{made.folder}: {made.model_class}", soft_wrap=True)
        text = f"logits on {made.compared} texts differ from the run's by at most {made.difference:.1e}"
        if made.own_difference is not None:
            text += f" in float32, {made.own_difference:.1e} as its predictor computes"
        note(text, quiet=args.quiet)

    print_result(args, document, show)
    return 0


def _exporter(name: str) -> Callable[..., ExportedModel]:
    if name == "onnx":
        from featcache.export.onnx import export_onnx

        return export_onnx
    from featcache.export.huggingface import export_huggingface

    return export_huggingface
