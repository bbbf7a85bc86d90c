"""`featcache label` as a real process: keys, a page, kills in between, export and agreement."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.chinese import english_words
from tests.support.cli_tools import Cli, Result, environment, shell, start

WORDS = ("好房间", "坏房间", "服务很好", "酒店很差", "电池便宜", "书很贵", "good room", "bad book")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> Path:
    """A folder with 80 texts without labels and settings of a tiny backbone."""
    rows = [f"{WORDS[number % 8]} {number}" for number in range(80)]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    settings = f'[backbone]\nmodel = "{tiny("bert")}"\n[features]\nviews = ["last/mean"]\n'
    (tmp_path / "featcache.toml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def typed(keys: str, *more: str) -> Result:
    return shell("label", "texts.csv", "--terminal", "--annotator", "anna", *more, stdin=keys)


def test_keys_in_a_terminal(work: Path) -> None:
    done = typed("1" * 10 + "2" * 10 + "usn" + "alate\n" + "mlong day\n3" + "i" + "q", "--labels", "good,bad")
    assert done.code == 0, done.err
    lines = lines_of(work / "texts.labels.jsonl")
    assert lines[0]["labels"] == ["good", "bad"]
    told = [(line["answer"], *line["labels"]) for line in lines[1:]]
    assert told == [
        *[("labels", "good")] * 10, *[("labels", "bad")] * 10, ("undo",), ("skip",), ("unsure",),
        ("new label", "late"), ("labels", "late"),
    ]  # fmt: skip
    assert lines[-1]["note"] == "long day" and lines[-1]["by"] == "anna"
    assert "of 80 texts have labels" in done.err and "of 80 texts have labels" in done.out
    assert "featcache run texts_20_labels" in done.err
    again = typed("1q", "--json")
    assert again.json["labelled"] == 21
    assert len(lines_of(work / "texts.labels.jsonl")) == len(lines) + 1


def test_several_labels_and_many_labels_in_a_terminal(work: Path) -> None:
    names = [f"topic {number}" for number in range(11)]
    keys = "12\n" + "1113\n" + "ltopic 10\n\n" + "ltopic 1\n" + "\ngq"
    done = typed(keys, "--labels", ",".join(names), "--multi-label")
    assert done.code == 0, done.err
    given = [line["labels"] for line in lines_of(work / "texts.labels.jsonl")[1:]]
    assert given == [["topic 0", "topic 1"], ["topic 0", "topic 2"], ["topic 10"], ["topic 1"]]
    assert "No guess" in done.err


def test_the_terminal_in_chinese(work: Path) -> None:
    keys = "12" * 3 + "usn" + "a晚到\n" + "m长\n3" + "gi" + "x\x1b[A" + "q"
    done = typed(keys, "--labels", "好评,差评", "--multi-label", "--lang", "zh")
    assert done.code == 0, done.err
    said = re.sub(r"^(?:.*\n)?.*(好房间|坏房间|good room|bad book).*$", "", done.err, flags=re.MULTILINE)
    assert english_words(said + done.out, "anna text texts labels jsonl bert") == []
    assert len(lines_of(work / "texts.labels.jsonl")) == 1 + 1 + 1 + 1  # an arrow is no key


WITHOUT_A_HUB = """
import shutil, sys
from featcache.demo import demo
from featcache_cli.main import main
demo.build_model = lambda to, **_: shutil.copytree(sys.argv[1], to)
sys.exit(main(sys.argv[2:]))
"""


def test_without_a_hub_the_embedded_encoder_is_used(work: Path, tiny: Any) -> None:
    (work / "featcache.toml").unlink()
    command = [sys.executable, "-c", WITHOUT_A_HUB, str(tiny("bert")), "label", "texts.csv", "--terminal"]
    command += ["--labels", "good,bad", "--dtype", "float32", "--max-length", "16"]
    with (
        (work / "said").open("wb") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, env=environment()) as process,
    ):
        assert process.stdin
        process.stdin.write(b"12")  # labelling does not wait for it
        while "embedded encoder multilingual-e5-small is" not in (work / "said").read_text("utf-8"):
            assert process.poll() is None, (work / "said").read_text("utf-8")
            process.stdin.write(b"i")
            process.stdin.flush()
            time.sleep(0.2)
        process.stdin.close()
    assert process.returncode == 0
    assert "Looking for the model bert-base-chinese" in (work / "said").read_text("utf-8")
    assert len(lines_of(work / "texts.labels.jsonl")) == 3


@contextmanager
def page(*more: str) -> Iterator[tuple[str, Any]]:
    command = ["label", "texts.csv", "--port", "0", "--json", "--quiet", *more]
    process = start(command, environment())
    try:
        assert process.stdout and process.stderr
        content = b""
        while not content.endswith(b"}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            content += line
        yield json.loads(content)["url"], process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


@pytest.mark.enable_socket
def test_a_killed_page_goes_on_with_every_answer(work: Path) -> None:
    pytest.importorskip("fastapi")
    answered = []
    for labels in (["--labels", "good,bad"], [], []):
        with page(*labels) as (url, process):
            state = ask(url, "/state")
            assert state["labelled"] == len(answered)
            for number in range(9):
                row = state["asked"]["row"]
                assert row not in answered
                answered.append(row)
                label = state["labels"][number % 2]
                state = ask(url, "/answer", {"row": row, "labels": [label]})
            os.kill(process.pid, signal.SIGKILL)
    assert len(lines_of(work / "texts.labels.jsonl")) == 1 + len(answered)
    with page() as (url, process):
        assert ask(url, "/state")["labelled"] == 27
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_labels_may_have_a_chinese_comma_between_them(work: Path) -> None:
    assert typed("2q", "--labels", "好评，差评 , 其他").code == 0
    header, line = lines_of(work / "texts.labels.jsonl")
    assert header["labels"] == ["好评", "差评", "其他"] and line["labels"] == ["差评"]


def test_export_and_agreement(work: Path, cli: Cli) -> None:
    typed("12121212q", "--labels", "good,bad")
    assert shell("label", "texts.csv", "--terminal", "--annotator", "ben", stdin="2222q").code == 0
    written = cli.ok("label", "texts.csv", "--export", "labelled.jsonl", "--json").json
    assert written["rows"] == len(lines_of(work / "labelled.jsonl")) == 12
    found = cli.ok("label", "texts.csv", "--agreement", "--json").json
    assert found["texts"] == 0
    assert "no text has answers of two people" in cli.ok("label", "texts.csv", "--agreement").out
    cli.refused(2, ["label", "texts.csv", "--export", "texts.csv"], "that is a file that is read")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ("--labels is needed",)),
        (["--labels", "good"], ("--labels is needed",)),
        (["--labels", "good,good"], ("there twice",)),
        (["--export", "a.csv"], ("there are no answers",)),
        (["--labels", "a,b", "--annotator", " "], ("--annotator is empty",)),
        (["--labels", "a,b", "--strategy", "best"], ("unknown --strategy",)),
    ],
)
def test_what_cannot_begin_is_refused(work: Path, cli: Cli, more: list[str], words: tuple[str, ...]) -> None:
    result = cli("label", "texts.csv", "--terminal", *more)
    assert result.code == 2
    for word in words:
        assert word in result.err


def test_labels_of_an_earlier_session_are_not_replaced(work: Path, cli: Cli) -> None:
    typed("1q", "--labels", "good,bad")
    cli.refused(2, ["label", "texts.csv", "--terminal", "--labels", "good,poor"], "without 'poor'")
    cli.refused(2, ["label", "texts.csv", "--terminal", "--multi-label"], "one label a text")
