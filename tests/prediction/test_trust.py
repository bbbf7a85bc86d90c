"""A model's own code runs by the word of this user alone, whatever a run or a cache record says."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from featcache.errors import BackboneError
from featcache.prediction.predictor import Predictor
from featcache_cli.main import main
from tests.support.cli_tools import Cli, arrow_in, edit_run
from tests.support.own_code import build_with_code
from tests.support.review_files import write_reviews

pytestmark = pytest.mark.bad_input("code run")


@dataclass(frozen=True)
class Work:
    """A folder with a run whose backbone has code of its own, and the file that the code writes to."""

    folder: Path
    mark: Path
    run: str = "linear-last-cls-1"

    def ran(self) -> bool:
        """Whether the code has run since the last call."""
        there = self.mark.exists()
        self.mark.unlink(missing_ok=True)
        return there


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    folder = tmp_path_factory.mktemp("own-code")
    work = Work(folder / "work", folder / "mark")
    build_with_code(folder / "model", work.mark)
    write_reviews(work.folder / "reviews", 40)
    with (
        pytest.MonkeyPatch.context() as patch,
        arrow_in(folder / "arrow"),
        contextlib.chdir(work.folder),
    ):
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        model = ["--model", str(folder / "model"), "--dataset", "reviews", "--dtype", "float32"]
        assert main(["extract", "--all-splits", "--quiet", *model, "--trust-remote-code"]) == 0
        assert main(["train-head", "--epochs", "2", "--quiet", *model, "--trust-remote-code"]) == 0
        assert work.ran()
        yield work


@pytest.fixture
def work(made: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A copy, as somebody else gets it: without a settings file, and with a run that claims to be trusted."""
    shutil.copytree(made.folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    made.ran()
    edit_run(made.run, backbone={"trust_remote_code": True})
    return Work(tmp_path / "work", made.mark)


COMMANDS = {
    "predict": ["predict", "好"],
    "export": ["export", "--output", "out"],
    "onnx": ["export", "--format", "onnx", "--output", "out"],
    "serve": ["serve", "--port", "0"],
    "file": ["predict", "--input", "reviews/test.jsonl", "--output", "out.jsonl"],
    "other-file": ["predict", "--config", "other.toml", "好"],
    "no": ["predict", "--config", "own.toml", "--no-trust-remote-code", "好"],
}


@pytest.mark.enable_socket  # for `serve`
@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_word_of_a_run_lets_no_code_run(work: Work, cli: Cli, name: str) -> None:
    write_settings(work)
    cli.refused(4, COMMANDS[name], "modeling_own.py")
    assert not work.ran()


def write_settings(work: Work) -> None:
    """A settings file that trusts this model, and one that trusts another."""
    model = work.mark.parent / "model"
    for name, named in (("own.toml", str(model)), ("other.toml", "somebody/else")):
        Path(name).write_text(f"[backbone]\nmodel = {named!r}\ntrust_remote_code = true\n")


@pytest.mark.parametrize(
    "how", [["--trust-remote-code"], ["--config", "own.toml"], ["--config", "other.toml", "--model", "MODEL"]]
)
def test_the_user_lets_it_run(work: Work, cli: Cli, how: list[str]) -> None:
    write_settings(work)
    model = str(work.mark.parent / "model")
    result = cli.ok("predict", "--json", *[model if part == "MODEL" else part for part in how], "好")
    assert work.ran() and result.json[0]["label"]


def test_changed_code_is_refused_though_it_is_trusted(work: Work, cli: Cli) -> None:
    model = work.folder / "model"
    shutil.copytree(work.mark.parent / "model", model)
    with (model / "modeling_own.py").open("a") as file:
        file.write("# changed\n")
    cli.refused(6, ["predict", "--trust-remote-code", "--model", model, "好"], "modeling_own.py")
    assert not work.ran()


def test_from_run_trusts_only_when_asked(work: Work) -> None:
    run = work.folder / "reports" / work.run
    with pytest.raises(BackboneError, match=r"code of its own \(modeling_own.py\)"):
        Predictor.from_run(run)
    assert not work.ran()
    assert Predictor.from_run(run, trust_remote_code=True).predict(["好"])
    assert work.ran()


def test_verify_runs_no_code_by_the_word_of_a_record(work: Work, cli: Cli) -> None:
    write_settings(work)
    argv = ["cache", "verify", "--reencode", "2", "--dataset", "reviews"]
    for more in ([], ["--config", "other.toml"]):
        result = cli(*argv, *more)
        assert result.code == 5 and "modeling_own.py" in result.err + result.out
        assert not work.ran()
    cli.ok(*argv, "--config", "own.toml")
    assert work.ran()
    cli.ok(*argv, "--trust-remote-code")
    assert work.ran()


def test_a_report_loads_no_model(work: Work, cli: Cli) -> None:
    cli.ok("report", "--split", "test")
    assert not work.ran()


def test_a_report_asks_no_server_that_only_the_run_names(work: Work, cli: Cli) -> None:
    url = "s3://somebody/else.csv"
    edit_run(work.run, data={"data_files": {"test": url}})
    result = cli.ok("report", "--json")
    (note,) = [note for note in result.json["report"]["notes"] if "texts are not shown" in note]
    assert url in note and "featcache.toml" in note
