"""What `featcache label --export` writes is what `featcache run` and `train-head` read, in every format."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from featcache.data.split import load_splits
from featcache.labelling.answers import AnswerLine, AnswersFile, AnswersHeader
from featcache.labelling.texts import TextsToLabel
from featcache.settings import load_settings
from tests.support.cli_tools import Cli

pytestmark = pytest.mark.usefixtures("arrow_cache")
GOOD, BAD = ("好房间", "服务很好", "good room"), ("坏房间", "酒店很差", "bad book")
TEXTS = [f"{(GOOD, BAD)[number % 2][number % 3]} {number}" for number in range(100)]
LABELLED, SEVERAL = 80, 20
RUN = ("--dtype", "float32", "--max-length", "16", "--views", "last/mean")


def answers(*, several: bool) -> list[AnswerLine]:
    """80 texts with labels, the last 20 of them confirmed in bulk, then ten skipped and ten "not sure"."""
    hashes, lines = TextsToLabel.of(TEXTS).hashes, []
    for number, text in enumerate(hashes):
        labels = (("good", "bad")[number % 2], *(("late",) if several and number < SEVERAL else ()))
        kind = "labels" if number < LABELLED else ("skip", "unsure")[number % 2]
        lines.append(
            AnswerLine(
                answer=kind,
                text=text,
                labels=labels if kind == "labels" else (),
                by="anna",
                time="2026",
                chosen="bulk" if LABELLED - 20 <= number < LABELLED else "margin",
            )
        )
    return lines


@pytest.fixture(params=[False, True], ids=["one label", "several labels"])
def several(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A folder with texts and their answers file."""
    monkeypatch.chdir(tmp_path)
    Path("texts.csv").write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    header = AnswersHeader(labels=("good", "bad", "late"), multi_label=request.param)
    AnswersFile(Path("texts.labels.jsonl"), header).append(*answers(several=request.param))
    return bool(request.param)


@pytest.mark.parametrize("name", ["labelled.csv", "labelled.jsonl", "labelled.parquet", "labelled"])
def test_an_export_is_trained_on(name: str, several: bool, cli: Cli, tiny: Any) -> None:
    exported = cli.ok("label", "texts.csv", "--export", name, "--json")
    assert exported.json["rows"] == LABELLED
    command = shlex.split(exported.err.splitlines()[-1])
    assert command[:3] == ["featcache", "run", name]
    data = ("--dataset", name, *command[3:], "--test-share", "0.1")
    trained = cli.ok("train-head", "--head", "lexical", *data, "--json").json
    assert sum(trained["rows"].values()) == LABELLED and len(trained["rows"]) == 3
    assert trained["label_names"] == (["bad", "good", "late"] if several else ["bad", "good"])
    assert trained["task"] == ("multi-label" if several else "single-label")
    if (several, name) in ((False, "labelled"), (True, "labelled.csv")):
        runs = cli.ok(*command[1:], *RUN, "--model", tiny("bert"), "--json").json["runs"]
        assert all(sum(run["rows"].values()) == LABELLED for run in runs) and len(runs) >= 3
        splits = load_splits(load_settings().data, ("train", "validation", "test"), seed=0)
        texts = {text for split in splits.values() for text in split.texts(slice(None))}
        assert texts == {*TEXTS[:LABELLED]}
