"""Memory of an extraction does not grow with the rows: texts and vectors stream through.

What is measured is the child's own VmHWM, the highest resident set since its exec: anonymous memory
and mapped file pages (libraries, the Arrow file of the texts) alike, so it is an upper bound of what was
held. (`ru_maxrss` would do only outside of pytest: it keeps the parent's size across exec.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from tests.support.cli_tools import environment
from tests.support.tiny import VOCABULARY, build

FEW = 20_000  # already several units
WIDTH = 256
VIEWS = ("last/mean", "0/mean")
ROW_BYTES = len(VIEWS) * WIDTH * 4  # float32: 40,000 rows are 82 MB, 200,000 rows 410 MB
BOUND = 300 << 20

CHILD = """
import re, sys
from pathlib import Path
from featcache_cli.main import main
code = main(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
sys.exit(code)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM from /proc")


@pytest.fixture(scope="module")
def peak(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], int]:
    """`peak(rows, kind)`: bytes resident at most while so many short texts are extracted; once each."""
    folder = tmp_path_factory.mktemp("memory")
    model = build(
        "bert", folder / "model", hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=8,
        intermediate_size=64,
    )  # fmt: skip
    known: dict[tuple[int, str], int] = {}

    def measured(rows: int, kind: str) -> int:
        if (rows, kind) not in known:
            known[rows, kind] = extract(model, folder / f"{rows}-{kind}", rows, kind)
        return known[rows, kind]

    return measured


def extract(model: Path, folder: Path, rows: int, kind: str) -> int:
    folder.mkdir()
    files = [f"train={write_texts(folder / f'train.{kind}', rows)}"]
    files += [f"validation={write_texts(folder / f'validation.{kind}', 20)}"]  # else it is held out of train
    argv = ["extract", "--quiet", "--split", "train", "--model", model, "--data-files", ",".join(files)]
    argv += ["--views", ",".join(VIEWS), "--storage", "float32", "--dtype", "float32", "--device", "cpu"]
    argv += ["--cache-dir", folder / "cache"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment(HF_DATASETS_CACHE=str(folder / "arrow"), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "cache").rglob("*.h5")
    with h5py.File(path) as file:
        assert file["row_hash"].shape == (rows, 32)
    assert path.stat().st_size > rows * ROW_BYTES
    path.unlink()
    return int(done.stdout.split()[-1])


def write_texts(path: Path, rows: int) -> Path:
    """Short texts, no two the same: the row's number spelled in words of the vocabulary."""
    words = [word for word in VOCABULARY[5:] if len(word) == 1 and word.isalpha()][:20]
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("text,label\n")
        for row in range(rows):
            text = "".join(words[row // 20**place % 20] for place in range(5)) + "好坏书很"[: 1 + row % 4]
            label = "good" if row % 2 else "bad"
            line = f"{text},{label}" if path.suffix == ".csv" else json.dumps({"text": text, "label": label})
            file.write(line + "\n")
    return path


@pytest.mark.slow
def test_memory_is_bounded(peak: Callable[[int, str], int]) -> None:
    check(peak, 60_000, "jsonl", ROW_BYTES * 40_000 * 3 // 4)  # of the 40,000 rows more


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_memory_of_200_000_rows_is_bounded(kind: str, peak: Callable[[int, str], int]) -> None:
    check(peak, 200_000, kind, BOUND)


@pytest.mark.slow
def test_a_million_rows_are_labelled_in_bounded_memory(trained: Path) -> None:
    few, many = labelled(trained, FEW), labelled(trained, 1_000_000)
    print(f"predict: {FEW} rows {few / 2**20:.0f} MiB, 1000000 rows {many / 2**20:.0f} MiB")
    assert many - few < 100 << 20, (few, many)


def labelled(folder: Path, rows: int) -> int:
    """Bytes resident at most while so many rows of a csv file are labelled; every row comes out, in order."""
    source, target = write_texts(folder / f"{rows}.csv", rows), folder / f"{rows}-labelled.csv"
    argv = ["predict", "--quiet", "--run", "linear-last-cls-1", "--input", source, "--output", target]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, argv)], capture_output=True, text=True, timeout=1800,
        check=False, cwd=folder, env=environment(OMP_NUM_THREADS="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with source.open(encoding="utf-8") as given, target.open(encoding="utf-8") as made:
        next(given), next(made)
        count = 0
        for one, other in zip(given, made, strict=True):
            assert other.startswith(one.rstrip("\n"))
            count += 1
    assert count == rows
    return int(done.stdout.split()[-1])


def check(peak: Callable[[int, str], int], rows: int, kind: str, bound: int) -> None:
    few, many = peak(FEW, kind), peak(rows, kind)
    print(f"{kind}: {FEW} rows {few / 2**20:.0f} MiB, {rows} rows {many / 2**20:.0f} MiB")
    assert bound < ROW_BYTES * rows  # else the whole matrix could be held and not be noticed
    assert many - few < bound, (few, many)
