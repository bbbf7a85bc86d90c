"""The commands and the Python that the documentation shows, run in a folder with small stand-ins.

A hub id that the pages use is a folder of that name here: `bert-base-chinese` is a small random backbone,
`lansinuote/ChnSentiCorp` a few rows. So blocks run as they stand. A block after the comment
`<!-- parsed only: REASON -->` is parsed and not run. A command whose line says `# exits with N` must do so.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featcache.demo.demo import MODEL_NAME
from featcache_cli.main import _parse, main
from tests.support.cli_tools import read_rows
from tests.support.review_files import write_reviews

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT, *(ROOT / name for name in ("docs", "benchmarks", "examples")))
    for path in (path.glob("*.md") if path == ROOT else path.rglob("*.md"))
    if path.name != "CHANGELOG.md"
)
# Commands that a page takes for granted.
BEFORE = {
    "docs/abstention.md": ("init --views 1/mean", "extract --all-splits"),
    "docs/attentive.md": ("init --max-length 32",),
    "docs/costs.md": ("init --dataset weighted", "extract --all-splits"),
    "docs/few-labels.md": ("init --max-length 32",),
    "docs/regression.md": ("init --dataset rated --task regression",),
}
ELSEWHERE = ("pip", "make", "python3", "python", "curl", "torchrun", "twine")  # other programs: not run here
_FENCE = re.compile(
    r"^(?:<!-- parsed only: (?P<reason>[^\n]+) -->\n)?(?P<indent> *)```(?P<language>sh|python)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_EXIT = re.compile(r"# exits with (\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` says why it is not run, None for one that is."""

    language: str
    text: str
    line: int
    reason: str | None


def blocks(page: str) -> list[Block]:
    """The `sh` and `python` blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            found["language"], re.sub(f"^{found['indent']}", "", found["text"], flags=re.M),
            text.count("\n", 0, found.start()) + 1, found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]  # fmt: skip


def command_lines(block: Block) -> Iterator[tuple[list[str], int]]:
    """The words of each command of a `sh` block, and the exit code that it must have."""
    for line in block.text.replace("\\\n", " ").splitlines():
        wanted = int(found[1]) if (found := _EXIT.search(line)) else 0
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                yield words, wanted


def check_parsed(page: str, block: Block) -> None:
    """Check that every featcache command of a block parses, and that its Python compiles."""
    if block.language == "python":
        compile(block.text, f"{page}:{block.line}", "exec")
        return
    for words, _ in command_lines(block):
        assert words[0] in ("featcache", "cd", "mkdir", "export", ".", *ELSEWHERE) or "/bin/" in words[0], (
            page, words,
        )  # fmt: skip
        if "featcache" in words[:8] and words[0] in ("featcache", "torchrun"):
            own = words[words.index("featcache") + 1 :]
            if own and own != ["-h"]:
                _parse(own)


def run_page(page: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the blocks of a page in the working folder, one after another; returns how many commands ran."""
    names: dict[str, Any] = {}
    count = 0
    for line in BEFORE.get(page, ()):
        assert main([*line.split(), "--quiet"]) == 0, line
    for block in blocks(page):
        check_parsed(page, block)
        if block.reason is not None:
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
            count += 1
            continue
        for words, wanted in command_lines(block):
            if words[0] == "mkdir":
                Path(words[-1]).mkdir(parents=True, exist_ok=True)
            elif words[0] == "cd":
                monkeypatch.chdir(words[1])
            elif words[0] == "export":
                monkeypatch.setenv(*words[1].split("=", 1))
            elif words[0] == "featcache":
                assert main(words[1:]) == wanted, f"{page}:{block.line}: {shlex.join(words)}"
                count += 1
    return count


def make_folder(folder: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the working folder that the pages assume, and go there."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "bert-base-chinese").symlink_to(bert)
    _write(folder / "lansinuote" / "ChnSentiCorp", lambda row: row | {"label": int(row["label"] == "good")})
    _write(folder / "weighted", lambda row: row | {"weight": 1 + len(row["text"]) % 3})
    _write(folder / "rated", lambda row: row | {"label": len(row["text"]) / 7})
    (folder / "costs.json").write_text(json.dumps({"bad": {"good": 5}, "good": {"bad": 1}}), "utf-8")
    every = [row for path in write_reviews(folder / "reviews", rows=330).values() for row in read_rows(path)]
    with open(folder / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["评论", "类别"])
        table.writerows([row["text"], "好" if row["label"] == "good" else "坏"] for row in every)
    return folder


def _write(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write reviews of which each row is changed."""
    for path in write_reviews(folder, rows=360).values():
        rows = [json.dumps(change(row), ensure_ascii=False) + "\n" for row in read_rows(path)]
        path.write_text("".join(rows), encoding="utf-8")


def with_demo_model(folder: Path, model: Path) -> None:
    """Let `featcache demo` in `folder` find its encoder as if it had been unpacked there before."""
    models = folder / "cache" / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / MODEL_NAME).symlink_to(model)
