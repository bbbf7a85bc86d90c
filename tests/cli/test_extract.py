"""`featcache extract`: what it prints, counts and keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featcache.settings import load_settings
from tests.support.cli_tools import (
    Cli,
    encoder_is_not_called,
    read_rows,
    widest,
    write_rows,
)

SPLITS = ["train", "validation", "test"]

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_extract_once(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli.ok("extract", "--split", "train", "--split", "test", "--json")
    splits = first.json["splits"]
    assert [split["split"] for split in splits] == ["train", "test"]
    assert [split["rows"] for split in splits] == [60, 20]
    for split in splits:
        assert split["cached"] is False and split["seconds"] > 0
        assert re.fullmatch("[0-9a-f]{64}", split["fingerprint"])
        assert Path(split["path"]).is_file() and split["fingerprint"][:12] in split["path"]
        rows = [row["text"] for row in read_rows(f"reviews/{split['split']}.jsonl")]
        assert split["truncated"] == sum(len(text) + 2 > 16 for text in rows) > 0  # a token a character
    assert 0 < splits[0]["loading_seconds"] < splits[0]["seconds"] and splits[1]["loading_seconds"] == 0
    assert "loading bert" in first.err
    encoder_is_not_called(monkeypatch)
    again = cli.ok("extract", "--split", "train", "--split", "test", "--json").json["splits"]
    assert all(split["cached"] and split["loading_seconds"] == 0 for split in again)
    for key in ("rows", "truncated", "fingerprint", "path"):
        assert [split[key] for split in again] == [split[key] for split in splits]


def test_truncation_is_counted_on_stderr(cli: Cli, work: Path) -> None:
    long, short = "好" * 40, "好房间"
    write_rows(work / "reviews" / "train.jsonl", [(long, 1), (short, 0), (long + "坏", 0), (short + "差", 1)])
    for _ in range(2):  # encoded, then served from the cache
        result = cli.ok("extract", "--split", "train")
        assert re.search(r"train: 2 of 4 texts \(50\.0%\)", result.err)
        assert "50.0%" not in result.out
    assert cli.ok("extract", "--split", "train", "--max-length", "64").err.count("%") == 0


def test_unknown_tokens_are_said_where_they_are_many(cli: Cli, work: Path) -> None:
    write_rows(work / "reviews" / "train.jsonl", [("好房间 สวัสดี", 1), ("好", 0), ("坏 สวัสดี", 0), ("差", 1)])
    for _ in range(2):  # encoded, then served from the cache
        told = cli.ok("extract", "--split", "train").err
        assert "train: 25.0% of the tokens are unknown to the model's vocabulary; is the model meant" in told
    assert cli.ok("extract", "--split", "train", "--json").json["splits"][0]["unknown_tokens"] == 0.25
    described = " ".join(cli.ok("cache", "info", "--all").out.split())
    assert "25.0% of the tokens are not in the model's vocabulary" in described
    write_rows(work / "reviews" / "train.jsonl", [("好房间", 1), ("好", 0)])
    assert "unknown" not in cli.ok("extract", "--split", "train").err


def test_pooling_is_short_for_views(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--all-splits", "--pooling", "mean")
    long = cli.ok("extract", "--all-splits", "--views", "last/mean", "--json").json["splits"]
    assert all(split["cached"] and split["views"] == ["last/mean"] for split in long)
    assert cli.ok("train-head", "--pooling", "mean", "--epochs", "2", "--json").json["view"] == "last/mean"
    cli.ok("extract", "--all-splits", "--pooling", "max,cls")
    run = cli.ok("train-head", "--pooling", "max,cls", "--view", "last/cls", "--epochs", "2", "--json").json
    assert run["view"] == "last/cls"


def test_one_file_can_be_two_splits(cli: Cli, work: Path) -> None:
    """A data set without test labels is often given its validation file as test, too."""
    files = "train=reviews/train.jsonl,validation=reviews/test.jsonl,test=reviews/test.jsonl"
    splits = cli.ok("extract", "--all-splits", "--data-files", files, "--json").json["splits"]
    assert [split["split"] for split in splits] == SPLITS
    metrics = cli.ok("train-head", "--epochs", "2", "--data-files", files, "--json").json["metrics"]
    assert metrics["validation"] == metrics["test"]


def test_a_dataset_on_the_command_line_wins_over_files_in_the_settings(cli: Cli, work: Path) -> None:
    cli.ok("init", "--force", "--model", load_settings().backbone.model, "--data-files", "train=gone.tsv")
    write_rows(Path("small/train.jsonl"), [("好", 1), ("坏", 0), ("很好", 1), ("很坏", 0)])
    write_rows(Path("small/dev.jsonl"), [("好", 1)])
    splits = cli.ok("extract", "--split", "train", "--dataset", "small", "--json").json["splits"]
    assert splits[0]["rows"] == 4


def test_progress_bars_stay_on_the_terminal(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = cli.ok("extract", "--split", "train")
    assert "\x1b" not in piped.err + piped.out and "\r" not in piped.err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("featcache_cli.progress.FIRST_BAR", 0.0)
    drawn = cli.ok("extract", "--split", "test", "--json")
    assert "extract test" in drawn.err and "\x1b" in drawn.err
    assert len(drawn.json["splits"]) == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_other_tables_fit_the_terminal_with_full_names(damaged: bool, cli: Cli, work: Path) -> None:
    texts = [cli.ok("extract", "--all-splits", "--views", "last/cls,last/mean,last/max,-2/mean,-3/cls").out]
    texts.append(cli.ok("extract", "--all-splits", "--views", "last/mean").out)  # another file each
    texts.append(cli.ok("train-head", "--view", "last/mean", "--views", "last/mean").out)
    if damaged:
        path = next(Path("cache").rglob("validation-*.h5"))
        path.write_bytes(path.read_bytes()[:-100])
    texts.append(cli.ok("cache", "ls").out)
    for text in texts:
        assert widest(text) <= 80 and "…" not in text
    for path in Path("cache").rglob("*.h5"):
        assert path.name in texts[-1]
    for split in SPLITS:
        path = next(Path("cache").rglob(f"{split}-*.h5"))
        assert any(path.name in text for text in texts[:2])


def test_extract_table_fits_large_numbers(capsys: pytest.CaptureFixture[str], cli: Cli) -> None:
    from featcache.extraction.extracted import Extracted
    from featcache_cli.commands.extract import show

    path = Path("cache/a/b/validation-0123456789ab.h5")
    big = (1_234_567, 4321.0, False, 1_234_000, 567, 99, 123_456_789, "0" * 64, path, ("last/cls",), 512)
    show([Extracted("validation", *big)])
    text = capsys.readouterr().out
    assert widest(text) <= 80 and "…" not in text
    for number in ("1,234,567", "1,234,000", "123,456,789", "1 h 12 min"):
        assert number in text
    assert "loading" not in text
    show([Extracted("validation", *big, loading_seconds=721.0)])
    text = capsys.readouterr().out
    assert " 1 h 0 min " in text and "loading: 12 min 1 s for libraries and the model" in text


def test_negative_views_need_no_equals_sign(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--all-splits", "--views", "-1/mean,last/cls", "--quiet")
    run = cli.ok(
        "train-head", "--views", "-1/mean,last/cls", "--view", "-1/mean", "--epochs", "1", "--json"
    ).json
    assert run["view"].endswith("/mean")
