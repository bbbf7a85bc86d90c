"""`featcache predict` over files and at the prompt, `featcache serve` as a command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_tools import (
    Cli,
    Terminal,
    environment,
    make_one_run,
    read_rows,
    shell,
    widest,
)

DATA, USAGE = 3, 2
HEAD = "linear-last-mean-1"
ROWS = "id,text\n1,房间干净，服务好\n2,  \n3,坏电池 失望\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """Extracted, with one run."""
    return make_one_run(tmp_path_factory.mktemp("predict"), tiny("bert"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


# ---------------------------------------------------------------- files


def test_predict_labels_a_file(cli: Cli, trained: Path) -> None:
    Path("in.csv").write_text(ROWS, encoding="utf-8")
    result = cli.ok("predict", "--input", "in.csv", "--output", "out.jsonl")
    assert "2 of 3 rows labelled" in result.out and "out.jsonl" in result.out
    assert "1 row could not be labelled" in result.err and "line 3" in result.err
    assert widest(result.out) <= 80
    said = {row["id"]: row["prediction"] for row in read_rows("out.jsonl")}
    direct = cli.ok("predict", "房间干净，服务好", "坏电池 失望", "--json").json
    assert said == {"1": direct[0]["label"], "2": None, "3": direct[1]["label"]}
    found = cli.ok("predict", "--input", "in.csv", "--output", "out.jsonl", "--force", "--json").json
    assert (found["rows"], found["labelled"], found["bad_rows"], found["output"]) == (3, 2, 1, "out.jsonl")
    assert found["bad_rows_file"] == "out.jsonl.bad.jsonl" and sum(found["counts"].values()) == 2


def test_predict_says_that_a_file_has_a_header_alone(cli: Cli, trained: Path) -> None:
    Path("in.csv").write_text("id,text\n")
    result = cli.ok("predict", "--input", "in.csv", "--output", "out.csv")
    assert "the input has no rows, so there are none in out.csv" in result.err
    assert Path("out.csv").read_text().startswith("id,text,prediction,probability,")
    assert len(Path("out.csv").read_text().splitlines()) == 1


def test_predict_reads_standard_input(trained: Path) -> None:
    argv = ["--input", "-", "--input-format", "csv", "--output", "out.csv", "--json"]
    result = shell("predict", *argv, stdin=ROWS)
    assert result.code == 0 and result.json["rows"] == 3
    assert Path("out.csv").read_text(encoding="utf-8").startswith("id,text,prediction,probability,")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("--input in.csv", USAGE, ("--output",)),
        ("--output out.csv", USAGE, ("--input",)),
        ("--input in.csv --output out.xls", USAGE, ("out.xls", "csv")),
        ("--input in.doc --output out.csv", USAGE, ("in.doc", "--input-format")),
        ("--input in.csv --output in.csv --force", USAGE, ("is the input",)),
        ("--input in.csv --output there.csv", USAGE, ("there already", "--force")),
        ("--input in.csv --output .", USAGE, ()),
        ("--input gone.csv --output out.csv", DATA, ("gone.csv",)),
        ("--input in.csv --output out.csv 好", USAGE, ("together",)),
        ("--input in.csv --output out.csv --text-column nope", DATA, ("nope", "'text'")),
        ("--input - --input-format parquet --output out.csv", USAGE, ("standard input",)),
        ("--input in.csv --input-format x --output out.csv", USAGE, ("--input-format x",)),
    ],
)
def test_invalid_arguments_are_refused_before_the_model_is_loaded(
    argv: str, code: int, words: tuple[str, ...], cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("featcache.backbone.load.load_backbone", loaded)
    Path("in.csv").write_text(ROWS, encoding="utf-8")
    Path("there.csv").write_text("mine")
    cli.refused(code, ["predict", *argv.split()], *words)


def test_predict_refuses_pairs_for_a_head_of_single_texts(cli: Cli, trained: Path) -> None:
    """The run records whether it was trained on pairs."""
    path = Path(f"reports/{HEAD}/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pairs": False}))
    Path("in.csv").write_text("sentence1,sentence2\n好,坏\n", encoding="utf-8")
    cli.refused(6, ["predict", "好", "--pair", "坏"], "single texts")
    cli.refused(6, ["predict", "--input", "in.csv", "--output", "out.csv"], "single texts")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pairs": True}))
    cli.refused(6, ["predict", "好"], "pairs of texts", "--pair")
    assert cli.ok("predict", "好", "--pair", "坏").out


def test_predict_uses_columns_of_the_settings_file(cli: Cli, trained: Path) -> None:
    """They are used if the file has them; a flag is always used."""
    settings = Path("featcache.toml")
    settings.write_text(
        settings.read_text(encoding="utf-8").replace("# text_column =", 'text_column = "body"'),
        encoding="utf-8",
    )
    assert 'text_column = "body"' in settings.read_text(encoding="utf-8")
    Path("own.jsonl").write_text('{"text": "", "body": "好"}\n', encoding="utf-8")
    cli.ok("predict", "--input", "own.jsonl", "--output", "own-out.jsonl")
    assert read_rows("own-out.jsonl")[0]["prediction"]
    Path("other.jsonl").write_text('{"text": "好"}\n', encoding="utf-8")
    cli.ok("predict", "--input", "other.jsonl", "--output", "other-out.jsonl")
    assert read_rows("other-out.jsonl")[0]["prediction"]


# ---------------------------------------------------------------- the prompt


def history() -> list[str]:
    return Path("reports/.predict-history").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("locale", ["C", pytest.param("C.UTF-8", marks=pytest.mark.slow)])
def test_predict_interactive_edits_chinese_characters(locale: str, trained: Path) -> None:
    """Backspace, arrows and the line before, on characters of three bytes and two columns."""
    Path("reports/.predict-history").write_text("旧的一句\n", encoding="utf-8")
    with Terminal("predict", LC_ALL=locale) as terminal:
        terminal.read_until("> ")
        terminal.type("好房坏\x7f间")  # backspace
        terminal.type("\x1b[D\x1b[D\x1b[D很\x01真\n")  # three to the left, then to the beginning
        assert "good" in terminal.read_until("\n> ")
        terminal.type("\x1b[A电\n")  # the line before, and a character more
        terminal.read_until("\n> ")
        terminal.type("\x1b[A\x1b[A\x1b[A\n")  # of an earlier session
        terminal.read_until("\n> ")
        terminal.type("\x04")
        assert terminal.finish() == 0
    assert history() == ["旧的一句", "真很好房间", "真很好房间电", "旧的一句"]


# ---------------------------------------------------------------- serve

SERVE = """
import sys
import featcache_cli.main as command
command.COMMANDS = tuple(dict.fromkeys((*command.COMMANDS, "serve")))
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_serve_answers_and_stops(trained: Path, cli: Cli) -> None:
    pytest.importorskip("fastapi")
    argv = [sys.executable, "-c", SERVE, "serve", "--port", "0", "--json", "--max-texts", "2"]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout and process.stderr
        lines = ""
        while "}" not in lines:
            lines += process.stdout.readline()
        url = json.loads(lines)["url"]
        body = json.dumps({"texts": ["好房间", "坏电池"]}).encode()
        asked = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as reply:
            found = json.load(reply)["predictions"]
        with urllib.request.urlopen(f"{url}/info", timeout=60) as reply:
            info = json.load(reply)
        assert info["run"] == HEAD and info["limits"]["texts"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    direct = cli.ok("predict", "好房间", "坏电池", "--json").json
    assert [one["label"] for one in found] == [one["label"] for one in direct]
