"""Everything that version 0.1.0 wrote is read, continued and answered as that version did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache.catalog import CacheFile
from featcache.system.downloads import FOLDER, key_of
from tests.support.cli_tools import Cli
from tests.support.extraction import assert_same_file
from tests.support.stock import one_thread

FIXTURE = Path(__file__).with_name("fixtures") / "version-0.1.zip"
TEXTS = ("房间很干净", "电池坏了", "good room")
PAIRS = (
    "--data-files", "train=pairs/train.jsonl,validation=pairs/validation.jsonl,test=pairs/test.jsonl",
    "--text-column", "premise", "--pair-column", "hypothesis", "--views", "last/cls",
)  # fmt: skip
TAGS = (
    "--data-files", "train=tags/train.jsonl,validation=tags/validation.jsonl,test=tags/test.jsonl",
    "--views", "last/mean",
)  # fmt: skip
MANY = (
    "--data-files", "train=many/train.jsonl,validation=many/validation.jsonl,test=many/test.jsonl",
    "--views", "last/cls", "--shard-size", "30kB", "--storage", "float32",
)  # fmt: skip
SINGLE_TEXT_RUNS = (
    "centroid-last-cls-1", "exact-last-cls-1", "linear-last-cls-1", "linear-last-cls-2", "linear-last-mean-1",
    "logistic-last-mean-1", "mlp-last-cls-1", "neighbours-last-cls-1", "top-blocks-1-last-cls-1",
)  # fmt: skip


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what version 0.1.0 left, as the working folder."""
    shutil.unpack_archive(FIXTURE, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a backbone fails the test."""
    monkeypatch.setattr(
        "featcache.backbone.load.load_backbone", lambda *_, **__: pytest.fail("the model was loaded")
    )


def expected(name: str) -> Any:
    return json.loads(Path("expected", name).read_text(encoding="utf-8"))


def check_metrics(metrics: Any, wanted: Any) -> None:
    """The same counts, and numbers up to the rounding of another processor."""
    if isinstance(wanted, dict):
        assert metrics.keys() >= wanted.keys()  # later versions may add keys
        for key, value in wanted.items():
            check_metrics(metrics[key], value)
    elif isinstance(wanted, list):
        for one, other in zip(metrics, wanted, strict=True):
            check_metrics(one, other)
    else:
        assert metrics == (pytest.approx(wanted, abs=2e-3) if isinstance(wanted, float) else wanted)


def check_answers(answers: Any, wanted: Any) -> None:
    """The same labels, and probabilities up to the rounding of another processor."""
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in wanted]
    for answer, other in zip(answers, wanted, strict=True):
        assert answer.keys() >= other.keys()  # later versions may add keys
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3)


@pytest.mark.parametrize("flags", [(), PAIRS, TAGS, MANY], ids=["reviews", "pairs", "tags", "shards"])
def test_extract_finds_the_sealed_files(
    earlier: Path, cli: Cli, no_model: None, flags: tuple[str, ...]
) -> None:
    splits = ("--split", "train") if flags is MANY else ("--all-splits",)
    done = cli.ok("extract", *splits, "--json", *flags).json
    assert all(split["cached"] and split["encoded"] == 0 for split in done["splits"])


@pytest.mark.parametrize("flags", [(), PAIRS, TAGS, MANY], ids=["reviews", "pairs", "tags", "shards"])
def test_extract_writes_the_same_sealed_files(earlier: Path, cli: Cli, flags: tuple[str, ...]) -> None:
    """The same names; and the same bytes, where this processor rounds as the one that made the fixture."""
    splits = ("--split", "train") if flags is MANY else ("--all-splits",)
    with one_thread():
        done = cli.ok("extract", *splits, "--json", "--cache-dir", "new", *flags).json
    for split in done["splits"]:
        path = Path(split["path"])
        assert_same_file(path, Path("cache", path.relative_to("new")))


@pytest.mark.parametrize("run", SINGLE_TEXT_RUNS)
def test_runs_predict_what_they_predicted(earlier: Path, cli: Cli, run: str) -> None:
    check_answers(cli.ok("predict", "--run", run, "--json", *TEXTS).json, expected("answers.json")[run])


def test_a_run_on_pairs_predicts_what_it_predicted(earlier: Path, cli: Cli) -> None:
    answers = cli.ok("predict", "--run", "linear-last-cls-3", "--json", "房间很好", "--pair", "差").json
    check_answers(answers, expected("answers.json")["linear-last-cls-3"])


def test_compare_says_the_same_of_the_runs(earlier: Path, cli: Cli) -> None:
    found, wanted = cli.ok("compare", "--json").json, expected("answers.json")["compare"]
    assert found.keys() >= wanted.keys()  # new keys may come
    assert [run["run"] for run in found["runs"]] == [run["run"] for run in wanted["runs"]]
    for run, other in zip(found["runs"], wanted["runs"], strict=True):
        assert run.keys() >= other.keys()  # new keys may come
        assert run["metrics"] == other["metrics"]


def test_cache_ls_lists_the_same_files(earlier: Path, cli: Cli) -> None:
    found, wanted = cli.ok("cache", "ls", "--json").json, expected("answers.json")["ls"]
    listed = {Path(file["path"]).name: file.keys() for file in found["files"]}
    for file in wanted["files"]:
        assert listed[Path(file["path"]).name] == file.keys()


def test_cache_verify_passes(earlier: Path, cli: Cli) -> None:
    cli.ok("cache", "verify")


def test_an_interrupted_extraction_is_resumed(earlier: Path, cli: Cli) -> None:
    flags = ("--split", "train", "--dataset", "half", "--views", "last/cls", "--batch-tokens", "64")
    with one_thread():
        (split,) = cli.ok("extract", *flags, "--json").json["splits"]
    assert split["encoded"] == 150 and split["rows"] == 300
    path = Path(split["path"])
    before = Path("expected") / path.name
    made, wanted = (CacheFile(each).features("last/cls").x for each in (path, before))
    np.testing.assert_allclose(made, wanted, rtol=2e-3, atol=2e-3)
    if made.tobytes() == wanted.tobytes():
        assert path.read_bytes() == before.read_bytes()


def test_an_interrupted_prediction_is_resumed(earlier: Path, cli: Cli) -> None:
    argv = ("--run", "linear-last-cls-1", "--input", "unlabelled.csv", "--output", "labelled.csv")
    assert cli.ok("predict", *argv, "--json").json["resumed"] == 1024
    lines = Path("labelled.csv").read_text(encoding="utf-8").splitlines()
    wanted = Path("expected/labelled.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:1025] == wanted[:1025] and len(lines) == len(wanted)
    columns = [[line.split(",")[:3] for line in each] for each in (lines, wanted)]
    assert columns[0] == columns[1]


def test_an_interrupted_finetuning_is_resumed(earlier: Path, cli: Cli) -> None:
    flags = ("--epochs", "3", "--train", "top-blocks:1", "--view", "last/mean")
    states = sorted(Path("cache").rglob("states/*.h5"))
    run = cli.ok("finetune", *flags, "--json").json
    assert not list(Path("reports").glob(".finetune-*"))
    assert sorted(Path("cache").rglob("states/*.h5")) == states  # the token states are used again
    answers = cli.ok("predict", "--run", run["run"], "--json", *TEXTS).json
    check_answers(answers, expected("resumed-finetune.json"))


def test_a_mirrored_cache_is_read(
    earlier: Path, cli: Cli, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store and its mirror, under the address that the store has here."""
    url = f"file://{Path('store').absolute()}"
    for kind in ("cache", "cards"):
        (folder,) = Path("mirror", kind).iterdir()
        folder.rename(folder.with_name(key_of(url)))
    monkeypatch.setenv(FOLDER, str(Path("mirror").absolute()))
    done = cli.ok("extract", "--all-splits", "--json", "--cache-dir", url).json
    assert all(split["cached"] for split in done["splits"])
    run = cli.ok("train-head", "--epochs", "5", "--cache-dir", url, "--json").json
    before = json.loads(Path("reports/linear-last-cls-1/run.json").read_bytes())
    check_metrics(run["metrics"], before["metrics"])
