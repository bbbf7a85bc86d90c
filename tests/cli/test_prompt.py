"""`featcache predict`: texts on the command line, through a pipe and at the prompt."""

from __future__ import annotations

import builtins
import io
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from tests.support.cli_tools import (
    Cli,
    Terminal,
    read_rows,
    shell,
    widest,
    write_rows,
)

SPLITS = ["train", "validation", "test"]
LINEAR, LOGISTIC = "linear-last-cls-1", "logistic-last-mean-1"

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_prediction_agrees_with_the_cached_features(cli: Cli, trained: Path) -> None:
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    cached = pq.read_table(f"reports/{LOGISTIC}/predictions-test.parquet").to_pydict()
    found = cli.ok("predict", "--run", LOGISTIC, "--json", *texts).json
    assert [one["text"] for one in found] == texts
    assert [one["label"] for one in found] == cached["prediction"]
    for number, one in enumerate(found):
        assert set(one["probabilities"]) == {"bad", "good"}
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probability"] == one["probabilities"][one["label"]] == max(one["probabilities"].values())
        assert one["probabilities"]["good"] == pytest.approx(cached["probability:good"][number], abs=2e-3)


def test_predict_prints_one_line_per_text(cli: Cli, trained: Path) -> None:
    result = cli.ok("predict", "房间很干净，服务也好", "坏\n电池  失望")
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert [line[2] for line in lines] == ["房间很干净，服务也好", "坏 电池 失望"]
    for label, probability, _ in lines:
        assert label in ("good", "bad") and 0.5 <= float(probability) <= 1
    assert f"using {LOGISTIC}" in result.err or f"using {LINEAR}" in result.err
    top = cli.ok("predict", "--top-k", "1", "--json", "好").json[0]
    assert list(top["probabilities"]) == [top["label"]]
    cut = cli.ok("predict", "好" * 40, "坏")
    assert "1 of 2 texts" in cut.err and len(cut.out.splitlines()) == 2


def test_predict_reads_piped_lines(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("好房间\r\n\n   \n坏电池\n"))
    assert [line.split("\t")[2] for line in cli.ok("predict").out.splitlines()] == ["好房间", "坏电池"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.ok("predict", "--json").json == []


def test_predict_json_prints_one_document_into_a_pipe(trained: Path) -> None:
    result = shell("predict", "--json", "--quiet", stdin="好房间\n坏电池\n")
    assert (result.code, result.err) == (0, "")
    assert [one["text"] for one in result.json] == ["好房间", "坏电池"]


def test_predict_interactive_ends_with_q(trained: Path) -> None:
    with Terminal("predict") as terminal:
        terminal.read_until("q quits")
        terminal.read_until("> ")
        for text in ("房间干净，服务好", "坏电池"):
            terminal.type(text + "\n")
            answer = terminal.read_until("\n> ")
            found = dict(re.findall(r"(good|bad) +([01]\.\d{4})", answer))
            assert set(found) == {"good", "bad"}
            assert sum(map(float, found.values())) == pytest.approx(1, abs=2e-4)
            assert re.search(r"good|bad", answer[answer.index(text) :])
        terminal.type("\n")  # an empty line asks for nothing
        assert "error" not in terminal.read_until("> ")
        terminal.type("q\n")
        assert terminal.finish() == 0
    assert "Traceback" not in terminal.seen


def test_predict_interactive_ends_with_the_input_and_writes_answers_to_a_file(trained: Path) -> None:
    with Terminal("predict", piped_out=True) as terminal:
        terminal.read_until("q quits")
        terminal.type("好房间\n")
        terminal.type("\x04")
        assert terminal.process.stdout
        out = terminal.process.stdout.read().decode()
        assert terminal.finish() == 0
    assert re.fullmatch(r"(good|bad)\t[01]\.\d{4}\t好房间\n", out)  # no prompt in the data


def test_predict_interactive_aligns_bars(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["good", "非常好的中文标签"]
    for split in SPLITS:
        rows = read_rows(f"reviews/{split}.jsonl")
        write_rows(Path(f"long/{split}.jsonl"), [(r["text"], names[r["label"] == "bad"]) for r in rows])
    where = ["--dataset", "long", "--reports-dir", "reports-long"]
    cli.ok("extract", "--all-splits", *where)
    cli.ok("train-head", "--epochs", "2", *where)
    answers = iter(["好", "q"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda *_: next(answers))
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = cli.ok("predict", "--reports-dir", "reports-long").out
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if "0." in line]
    assert [name for name in names if any(name in line for line in lines)] == names
    assert len({cell_len(line[: line.index("0.")]) for line in lines}) == 1, lines


def test_predict_table_keeps_brackets(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", cli.ok("predict", "[red]好[/red]", "坏[/]").out)
    assert "[red]好[/red]" in text and "坏[/]" in text and widest(text) <= 80
