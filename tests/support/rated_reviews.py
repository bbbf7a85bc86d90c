"""Reviews whose labels are numbers: their length and how good they are, with some noise."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from featcache_cli.main import main
from tests.support.cli_tools import write_rows

RIDGE, LINEAR = "ridge-last-mean-1", "linear-last-cls-1"  # the runs of `make_rated`


def rated_rows(count: int, seed: int) -> list[tuple[str, float]]:
    """Texts with numbers from about -1 to 5."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        good, length = draw.random(), draw.randint(4, 14)
        kinds = ("好喜欢净便宜" if draw.random() < good else "坏差失望慢贵" for _ in range(length))
        words = map(draw.choice, kinds)
        number = 3 * good + 0.1 * length + draw.gauss(0, 0.2)
        rows.append(("房间" + "".join(words), round(number, 3)))
    return rows


def write_rated(folder: Path, rows: int = 120) -> None:
    """`rows` train rows, half of that in validation and test, of which a few leak."""
    train = rated_rows(rows, 0)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "validation.jsonl", rated_rows(rows // 2, 1))
    write_rows(folder / "test.jsonl", [*rated_rows(rows // 2 - 3, 2), *train[:3]])


def make_rated(folder: Path, model: Path) -> Path:
    """A folder with rated reviews, their features, and the runs `RIDGE` and `LINEAR`."""
    write_rated(folder / "reviews")
    with contextlib.chdir(folder):
        argv = ["init", "--quiet", "--model", str(model), "--dataset", "reviews", "--task", "regression"]
        assert main([*argv, "--dtype", "float32", "--views", "last/cls,last/mean"]) == 0
        for command in (
            ("extract", "--all-splits"),
            ("train-head", "--head", "ridge", "--view", "last/mean"),
            ("train-head", "--view", "last/cls", "--epochs", "30", "--lr", "0.01"),
        ):
            assert main([*command, "--quiet"]) == 0
    return folder
