"""Several backbones in one head: extracted apart, read side by side, predicted with one pass of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.prediction.predictor import Predictor
from featcache.runs.run import load_run
from tests.support.cli_tools import Cli, edit_run, make_work
from tests.support.extraction import counted
from tests.support.static_models import table_of, write_model2vec
from tests.support.stock import encoder, load

USAGE, MISS, HEAD = 2, 5, 6
TEXTS = ["房间干净，服务好", "坏电池 失望", "好 ☃"]
BOTH = ("--backbones", "A=potion,B=b.toml", "--views", "last/cls,A:last/auto,B:-2/mean")
VIEW = "A:last/mean-normalized,B:-2/mean,last/cls"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """Extracted by three backbones, with a run of all of them."""
    folder = make_work(tmp_path_factory.mktemp("joined") / "work", tiny("bert"))
    write_model2vec(folder / "potion", table_of())
    (folder / "b.toml").write_text(
        f'[backbone]\nmodel = "{tiny("roberta")}"\ndtype = "float32"\n[features]\nprompt = "good "\n'
    )
    return folder


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Path:
    monkeypatch.chdir(template)
    if not Path("reports").exists():
        extracted = cli.ok("extract", "--all-splits", *BOTH, "--json").json["splits"]
        assert [one["split"] for one in extracted] == ["train", "validation", "test"] * 3
        cli.ok(
            "train-head",
            "--head",
            "ridge",
            *BOTH,
            "--view",
            "A:last/auto,B:-2/mean,last/cls",
            "--name",
            "all",
        )
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def by_hand(tiny: Callable[[str], Path]) -> np.ndarray:
    """The probabilities of the head `all` of features that each backbone makes alone."""
    head = load_run(Path("reports"), "all").head()
    made = [
        encoder(load(Path("potion")), "last/mean-normalized", storage="float16"),
        encoder(load(tiny("roberta")), "-2/mean", storage="float16", prompt="good "),
        encoder(load(tiny("bert")), "last/cls", storage="float16", max_length=16),
    ]
    return head.predict_proba(np.concatenate([next(iter(one(TEXTS).views.values())) for one in made], axis=1))


def test_a_head_of_three_backbones_predicts_with_one_pass_of_each(
    work: Path, cli: Cli, tiny: Callable[[str], Path]
) -> None:
    run = load_run(Path("reports"), "all")
    assert run.record.view == VIEW and sorted(run.record.backbone.named) == ["", "A", "B"]
    assert {one.name for one in run.head().encoder.named} == {"", "A", "B"}
    predictor = Predictor.from_run(run)
    with counted() as passes:
        found = predictor.predict_proba(TEXTS)
    assert passes == [3, 3, 3]
    np.testing.assert_allclose(found, by_hand(tiny), atol=1e-3)
    said = cli.ok("predict", "--run", "all", *TEXTS, "--json").json
    assert [one["label"] for one in said] == [predictor.label_names[i] for i in found.argmax(1)]


def test_other_commands_read_such_a_run(work: Path, cli: Cli) -> None:
    Path("in.csv").write_text("text\n房间干净\n坏电池\n", encoding="utf-8")
    assert (
        cli.ok("predict", "--run", "all", "--input", "in.csv", "--output", "out.csv", "--json").json[
            "labelled"
        ]
        == 2
    )
    assert "all" in cli.ok("compare").out
    notes = json.loads(cli.ok("report", "all", "--json").out)
    assert "not shown" not in json.dumps(notes)
    swept = cli.ok("sweep", *BOTH, "--view", "A:last/auto,last/cls", "--subsets", "all", "--json").json
    assert {trial["view"] for trial in swept["trials"]} == {
        "A:last/mean-normalized", "last/cls", "A:last/mean-normalized,last/cls",
    }  # fmt: skip
    words = ("--view", "A:last/auto,lexical", "--name", "words")
    cli.ok("train-head", "--head", "logistic", *BOTH, *words)
    assert cli.ok("predict", "--run", "words", *TEXTS, "--json").json


def test_a_backbone_that_moved_is_named(work: Path, cli: Cli) -> None:
    Path("potion").rename("moved")
    cli.refused(4, ("predict", "--run", "all", *TEXTS), "potion")
    cli.refused(
        USAGE, ("predict", "--run", "all", *TEXTS, "--model", "moved"), "named", "--model NAME=FOLDER"
    )
    assert cli.ok("predict", "--run", "all", *TEXTS, "--model", "A=moved", "--json").json
    cli.refused(HEAD, ("predict", "--run", "all", *TEXTS, "--model", "A=moved,B=moved"), "other files")
    cli.refused(HEAD, ("export", "all", "--output", "o"), "several backbones")
    edit_run("all", backbone={"named": {}})
    cli.refused(
        HEAD, ("predict", "--run", "all", *TEXTS, "--model", "A=moved"), "does not say which backbone"
    )


def test_what_is_not_there_is_said(work: Path, cli: Cli) -> None:
    train = ("train-head", "--head", "ridge")
    cli.refused(USAGE, (*train, "--view", "C:last/cls"), "no backbone has the name C", "--backbones")
    cli.refused(USAGE, (*train, *BOTH, "--view", "C:last/cls"), "named are A, B")
    miss = cli(*train, *BOTH, "--view", "A:last/max,last/cls")
    assert miss.code == MISS and "backbone A" in miss.err and "--views=last/cls,A:last" in miss.err
    rows = Path("reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    Path("reviews/train.jsonl").write_text("\n".join(rows[1:]) + "\n", encoding="utf-8")
    cli.ok("extract", "--all-splits", "--model", "potion", "--views", "last/auto", "--max-length", "512")
