"""`featcache demo`, with a tiny encoder, and the commands after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.settings import load_settings
from featcache.system.progress import OnProgress, Progress
from tests.support.cli_tools import (
    Cli,
    encoder_is_not_called,
    widest,
)
from tests.support.review_files import write_reviews

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture
def small_demo(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """`featcache demo` with a tiny encoder and made-up reviews in place of the packaged ones."""

    def build_model(folder: Path, *, on_progress: OnProgress) -> Path:
        on_progress(Progress("note", text="building"))
        return Path(shutil.copytree(tiny("bert"), folder, dirs_exist_ok=True))

    def build_reviews(folder: Path, *, rows: dict[str, int]) -> dict[str, Path]:
        return write_reviews(folder, rows["train"])

    monkeypatch.setattr("featcache.demo.demo.build_model", build_model)
    monkeypatch.setattr("featcache.demo.demo.build_reviews", build_reviews)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path / "demo")
    return tmp_path / "demo"


def test_commands_work_after_the_demo(cli: Cli, small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = cli.ok("demo", "--rows", "100")
    for words in ("train", "linear-last-mean-1", "logistic-last-mean-1", "房间干净"):
        assert words in shown.out
    assert widest(shown.out) <= 100
    settings = load_settings()
    assert settings.features.prompt == "query: " and Path(settings.backbone.model).is_dir()
    with monkeypatch.context() as patch:
        encoder_is_not_called(patch)
        assert all(s["cached"] for s in cli.ok("extract", "--all-splits", "--json").json["splits"])
        assert cli.ok("extract", "--split", "train", "--split", "test", "--json").json["splits"]
        assert cli.ok("train-head", "--epochs", "100", "--json").json["view"] == "last/mean"
        cli.ok("compare")
        cli.ok("cache", "ls")
    assert cli.ok("predict", "文本", "文本", "--json").json[0]["text"] == "文本"
    document = cli.ok("demo", "--rows", "100", "--json").json  # a second time, in the same folder
    assert all(split["cached"] for split in document["splits"])
    assert len(document["predictions"]) == 3 and len(document["runs"]) == 7


def test_demo_keeps_an_existing_settings_file(cli: Cli, small_demo: Path) -> None:
    Path("featcache.toml").write_text("seed = 7\n")
    cli.refused(2, ["demo"], "featcache.toml", "folder of its own")
    assert Path("featcache.toml").read_text() == "seed = 7\n"
