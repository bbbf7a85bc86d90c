"""`featcache inspect` and `featcache report` as people call them, on a tiny backbone and hostile reviews."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import featcache_cli.main as command
from featcache_cli.main import main
from tests.support.cli_tools import (
    Cli,
    Result,
    arrow_in,
    edit_run,
    make_work,
    plain_terminal,
    read_rows,
    widest,
    write_rows,
)

COMMANDS = tuple(dict.fromkeys((*command.COMMANDS, "inspect", "report")))
SCRIPT = "<script>alert('1')</script> 房间好"


@pytest.fixture(scope="module")
def work(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on reviews with leaks, a hostile text, one of 100 kB, and an escape sequence."""
    folder = tmp_path_factory.mktemp("report")
    make_work(folder / "work", tiny("bert"), rows=90)
    with arrow_in(folder / "arrow"), contextlib.chdir(folder / "work"):
        train, test = (read_rows(f"reviews/{split}.jsonl") for split in ("train", "test"))
        pairs = [(row["text"], row["label"]) for row in test]
        pairs[:4] = [(row["text"], row["label"]) for row in train[:4]]
        pairs[4:7] = [(SCRIPT, "good"), ("坏" * 33_000, "bad"), ("差\x1b[31m|红", "bad")]
        write_rows(Path("reviews/test.jsonl"), pairs)
        assert main(["extract", "--all-splits", "--quiet"]) == 0
        assert main(["train-head", "--epochs", "5", "--quiet"]) == 0
        assert main(["train-head", "--head", "logistic", "--quiet"]) == 0
        assert main(["train-head", "--head", "centroid", "--view", "last/mean", "--quiet"]) == 0
    return folder / "work"


@pytest.fixture
def cli(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cli]:
    monkeypatch.setattr(command, "COMMANDS", COMMANDS)
    plain_terminal(monkeypatch)
    with arrow_in(tmp_path / "arrow"), contextlib.chdir(work):
        yield Cli(capsys)


# ---------------------------------------------------------------- inspect


def test_inspect_prints_within_80_columns_and_finds_the_leaks(cli: Cli) -> None:
    result = cli.ok("inspect", "--view", "last/mean")
    assert widest(result.out) <= 80 and "\x1b" not in result.out
    for words in ("Leakage", "Likely label errors", "Nearly equal", "Outliers", "leaked rows"):
        assert words in result.out, words


def test_inspect_json_has_every_leaked_row(cli: Cli) -> None:
    result = cli.ok("inspect", "--json", "--list", "500")
    leaked = {
        row["text"]: row
        for row in result.json["leakage"]["list"]
        if row["split"] == "test" and row["cosine"] == 1
    }
    train = read_rows("reviews/train.jsonl")
    for number, row in enumerate(train[:4], start=1):
        assert leaked[row["text"]]["row"] == number and leaked[row["text"]]["as"]["text"] == row["text"]
    pair = next(
        pair for pair in result.json["leakage"]["pairs"] if pair["split"] == "test" and pair["in"] == "train"
    )
    assert pair["equal"] >= 4


def test_inspect_list_limits_rows(cli: Cli) -> None:
    found = cli.ok("inspect", "--json", "--list", "2", "--threshold", "0.5").json
    assert len(found["leakage"]["list"]) == 2 < sum(pair["rows"] for pair in found["leakage"]["pairs"])
    assert cli.ok("inspect", "--json", "--list", "0").json["leakage"]["list"] == []


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["inspect", "--threshold", "2"], 2, ["--threshold 2"]),
        (["inspect", "--folds", "1"], 2, ["--folds 1"]),
        (["inspect", "--list", "-1"], 2, ["--list -1"]),
        (["inspect", "--view", "last/max"], 5, ["last/max"]),
        (["inspect", "--prompt", "other"], 5, ["prompt", "featcache extract"]),
        (["report", "nobody"], 6, ["nobody", "linear-last-cls-1"]),
        (["report", "--reports-dir", "nowhere"], 6, ["no runs"]),
        (["report", "--output", "page.pdf"], 2, [".html"]),
        (["report", "--map", "umap"], 2, ["UMAP", "pip install"]),
    ],
)
def test_inspect_and_report_refuse_invalid_arguments(
    cli: Cli, argv: list[str], code: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.reporting.numbers.find_spec", lambda name: None)
    cli.refused(code, argv, *words)


# ---------------------------------------------------------------- report


def test_a_report_is_three_files_beside_the_run(cli: Cli) -> None:
    result = cli.ok("report", "logistic-last-cls-1", "linear-last-cls-1")
    assert widest("\n".join(line for line in result.out.splitlines() if "report." not in line)) <= 80
    assert "\x1b" not in result.out and "have a text that an earlier split has" in " ".join(
        result.out.split()
    )
    folder = Path("reports/logistic-last-cls-1")
    page, text = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    document = json.loads((folder / "report.json").read_bytes())
    assert SCRIPT not in page and "<script" not in page and "\x1b" not in page and len(page) < 1_000_000
    assert document["about"]["run"] == "logistic-last-cls-1" and len(document["runs"]) == 2
    metrics = json.loads((folder / "run.json").read_bytes())["metrics"]["test"]
    assert document["headline"]["accuracy"]["value"] == metrics["accuracy"]
    assert f"{100 * metrics['accuracy']:.2f}\u00a0%" in page and f"{100 * metrics['accuracy']:.2f} %" in text
    assert document["without_leaks"]["removed"] >= 4 and document["map"]["method"] in ("pca", "umap")
    assert document["cost"]["texts_tutorial"] == 5 * (90 + 30) + 30
    assert document["truncated"]["cut"]["rows"] > 0 and document["notes"] == []
    wrong = {row["text"] for row in document["mistakes"]}
    assert wrong <= {
        row["text"] if len(row["text"]) < 2000 else row["text"][:2000] + "…" for row in shown_tests()
    }
    checks = {check["name"]: check["state"] for check in document["checks"]}
    assert checks["leaked rows"] == "bad" and checks["similar labels"] == "good"
    assert {"nearly equal rows", "likely label errors"} <= checks.keys()
    assert sum(cell["rows"] for cell in document["matrix"]) == 30 and document["majority"]["accuracy"] >= 0.5
    command = "featcache report logistic-last-cls-1 linear-last-cls-1"
    assert document["origin"]["command"] == command and command in page
    assert document["origin"]["files"] == [f"report.{kind}" for kind in ("html", "md", "json")]
    again = cli.ok("report", "logistic-last-cls-1", "linear-last-cls-1", "--quiet")
    assert (folder / "report.html").read_text(encoding="utf-8") == page and again.err == ""
    assert again.out.split() == [str(folder / f"report.{kind}") for kind in ("html", "md", "json")]


def shown_tests() -> list[dict[str, Any]]:
    """The test rows, as a report writes them."""
    return [row | {"text": row["text"].replace("\x1b", "�")} for row in read_rows("reviews/test.jsonl")]


def test_report_without_names_is_about_the_best_run(cli: Cli, tmp_path: Path) -> None:
    best = cli.ok("compare", "--json").json["best"]
    result = cli.ok("report", "--json", "--no-inspect", "--output", tmp_path / "a" / "page.html")
    assert result.json["report"]["about"]["run"] == best and len(result.json["report"]["runs"]) == 3
    assert result.json["report"]["data"] is None
    assert result.json["files"] == {
        kind: str(tmp_path / "a" / f"page.{kind}") for kind in ("html", "md", "json")
    }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["page.html", "page.json", "page.md"]
    assert json.loads((tmp_path / "a" / "page.json").read_bytes()) == result.json["report"]


def test_a_report_needs_neither_texts_nor_cache(cli: Cli, tmp_path: Path) -> None:
    os.rename("reviews", "elsewhere")
    os.rename("cache", "moved")
    try:
        result = cli.ok("report", "linear-last-cls-1", "--output", tmp_path / "page.html")
    finally:
        os.rename("elsewhere", "reviews")
        os.rename("moved", "cache")
    assert "note: texts are not shown" in result.out and "note: train features are not shown" in result.out
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_report_without_its_extra_says_so_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("featcache.reporting.build.build_report", lambda *args, **more: pytest.fail("work"))
    page = tmp_path / "page.html"
    cli.refused(2, ["report", "--output", str(page)], "matplotlib", "featcache[report]")
    assert not page.exists()


def test_report_of_a_damaged_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    path = Path("reports/linear-last-cls-1/predictions-test.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    try:
        result = cli("report", "linear-last-cls-1", "--output", tmp_path / "page.html")
    finally:
        path.write_bytes(whole)
    assert result.code == 6 and "predictions-test" in result.err and list(tmp_path.glob("page*")) == []


def test_report_ignores_a_replaced_cache_file(cli: Cli, tmp_path: Path) -> None:
    path = Path("reports/linear-last-cls-1/run.json")
    before = path.read_bytes()
    caches = json.loads(before)["caches"]
    caches["test"]["fingerprint"] = "0" * 64
    edit_run("linear-last-cls-1", caches=caches)
    try:
        result: Result = cli.ok(
            "report", "linear-last-cls-1", "--no-inspect", "--output", tmp_path / "page.html"
        )
    finally:
        path.write_bytes(before)
    assert "another file than the one the run was trained on" in " ".join(result.out.split())


def test_report_refuses_an_output_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = cli("report", "linear-last-cls-1", "--no-inspect", "--output", tmp_path / "file" / "page.html")
    assert result.code == 5 and "cannot write" in result.err
    (tmp_path / "page.html").mkdir()
    assert cli("report", "linear-last-cls-1", "--output", tmp_path / "page.html").code == 2
