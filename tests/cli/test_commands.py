"""The commands, as a user types them: what they print, where, and what they leave behind."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from featcache.settings import Settings, load_settings, options
from featcache.system.progress import OnProgress, Progress
from featcache_cli.main import COMMANDS as modules
from featcache_cli.main import _parser, main
from tests.support.cli_tools import (
    Cli,
    Terminal,
    contents,
    edit_run,
    environment,
    read_rows,
    shell,
    widest,
    write_rows,
)
from tests.support.review_files import write_reviews

CONTRACT = ("init", "extract", "train-head", "compare", "predict", "cache", "run", "demo")
COMMANDS = sorted({*CONTRACT, *(name.replace("_", "-") for name in modules)})
SPLITS = ["train", "validation", "test"]
LINEAR, LOGISTIC = "linear-last-cls-1", "logistic-last-mean-1"
HEAVY = {"torch", "transformers", "datasets", "sklearn"}

pytestmark = pytest.mark.usefixtures("arrow_cache")


def encoder_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("featcache.backbone.load.load_backbone", refuse)


# --- help ---------------------------------------------------------------------------------------


def test_help_is_quick_and_names_commands_and_exit_codes() -> None:
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        capture_output=True,
        text=True,
        env=environment(COLUMNS="80"),
    )
    assert done.returncode == 0 and done.stderr == "HEAVY []\n"
    for command in COMMANDS:
        assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE), command
    codes = re.search(r"exit codes: (.*?)\n\n|exit codes: (.*)", done.stdout, re.DOTALL)
    assert codes
    for number in ("0 done", "2 usage", "3 data", "4 model", "5 cache", "6 head", "1 anything", "130"):
        assert number in " ".join(codes[0].split())


def test_commands_without_a_model_do_not_import_torch(trained: Path) -> None:
    code = (
        "import sys\n"
        "from featcache_cli.main import main\n"
        "assert main(['compare']) == main(['cache', 'ls']) == main(['extract', '--help']) == 0\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_parses(command: str, cli: Cli) -> None:
    text = cli.ok(command, "--help").out
    examples = [line.strip() for line in text.partition("\nexample:\n")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        argv = shlex.split(example)
        assert argv[:2] == ["featcache", command]
        assert _parser().parse_args(argv[1:]).run


@pytest.mark.parametrize("command", ["init", "extract", "train-head", "run"])
def test_commands_have_the_common_flags(command: str, cli: Cli) -> None:
    flags = (
        "--model --revision --dataset --data-files --text-column --pair-column --label-column "
        "--label-names --views --pooling --prompt --max-length --batch-tokens --dtype --device "
        "--cache-dir --reports-dir --seed --json --quiet"
    )
    text = cli.ok(command, "--help").out
    assert [flag for flag in flags.split() if not re.search(rf"{flag}\b", text)] == []
    for default in ("bert-base-chinese", "lansinuote/ChnSentiCorp"):
        assert default in text


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal(command: str, cli: Cli) -> None:
    text = cli.ok(*command.split(), "--help").out
    assert widest(text) <= 80, [line for line in text.splitlines() if cell_len(line) > 80]


# --- init ---------------------------------------------------------------------------------------


def test_init_writes_flags_and_keeps_an_existing_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.ok("init").out == ""
    assert load_settings() == Settings()
    before = Path("featcache.toml").read_bytes()
    cli.refused(2, ["init", "--model", "other"], "featcache.toml", "--force")
    assert Path("featcache.toml").read_bytes() == before
    argv = ["--force", "--model", "other", "--pooling", "mean", "--data-files", "train=a.tsv,test=b.tsv"]
    assert cli.ok("init", "--json", *argv).json == {"path": "featcache.toml"}
    settings = load_settings()
    assert settings.backbone.model == "other" and settings.features.views == ("last/mean",)
    assert settings.data.data_files == {"train": "a.tsv", "test": "b.tsv"}
    cli.ok("init", "--force", "--seed", "3")  # a new file holds nothing of the old one
    assert load_settings() == Settings(seed=3)


# --- the main job, step by step ------------------------------------------------------------------


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


def test_train_head_reports_the_scores_of_its_predictions(cli: Cli, trained: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    from tests.support.calibration_error import expected_calibration_error

    result = cli.ok("train-head", "--epochs", "5", "--json")
    run = result.json
    assert (run["run"], run["head"], run["view"]) == ("linear-last-cls-2", "linear", "last/cls")
    assert run["seconds"] > 0 and re.fullmatch("[0-9a-f]{64}", run["fingerprint"])
    assert set(run["metrics"]) == set(SPLITS) and run["epochs"] == 5
    for split in ("validation", "test"):
        table = pq.read_table(f"reports/{run['run']}/predictions-{split}.parquet").to_pydict()
        truth = [row["label"] for row in read_rows(f"reviews/{split}.jsonl")]
        assert table["label"] == truth
        names = ["bad", "good"]
        probabilities = np.array([table[f"probability:{name}"] for name in names]).T
        guesses = [names[i] for i in probabilities.argmax(axis=1)]
        assert run["metrics"][split] == pytest.approx(
            {
                "accuracy": accuracy_score(truth, guesses),
                "macro_f1": f1_score(truth, guesses, average="macro"),
                "micro_f1": f1_score(truth, guesses, average="micro"),
                "weighted_f1": f1_score(truth, guesses, average="weighted"),
                "log_loss": log_loss(truth, probabilities, labels=names),
                "ece": expected_calibration_error(probabilities, np.array([names.index(t) for t in truth])),
            }
        )
    assert run["metrics"]["test"]["accuracy"] > 0.6  # the labels can be learned
    plain = cli.ok("train-head", "--epochs", "5")
    for split in SPLITS:
        accuracy = 100 * run["metrics"][split]["accuracy"]
        assert re.search(rf"^ {split} +\d+ +{accuracy:.2f} ", plain.out, re.MULTILINE)


def test_the_best_epoch_is_chosen_on_validation(cli: Cli, trained: Path) -> None:
    run = cli.ok("train-head", "--epochs", "40", "--lr", "0.05", "--json").json
    history = json.loads(Path("reports", run["run"], "run.json").read_text())["history"]
    best = max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert run["best_epoch"] == best["epoch"] < 40
    found = run["calibration"]
    assert found["log_loss_before"] == pytest.approx(best["validation_loss"], rel=1e-3)
    assert run["metrics"]["validation"]["log_loss"] == pytest.approx(found["log_loss_after"])
    assert found["log_loss_after"] <= found["log_loss_before"] + 1e-9


def test_the_same_seed_gives_the_same_head(cli: Cli, trained: Path) -> None:
    one, two, other = (cli.ok("train-head", "--json", "--epochs", "3", "--seed", s).json for s in "001")
    assert one["run"] != two["run"]
    assert one["metrics"] == two["metrics"] != other["metrics"]
    heads = [Path("reports", run["run"], "head.safetensors").read_bytes() for run in (one, two, other)]
    assert heads[0] == heads[1] != heads[2]


def test_without_a_test_split_there_is_no_test_score(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--split", "train", "--split", "validation")
    result = cli.ok("train-head", "--epochs", "2", "--json")
    assert set(result.json["metrics"]) == {"train", "validation"}
    assert "featcache extract --split test" in result.err
    assert " - " in cli.ok("compare").out  # no number where there is none


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


def test_compare_and_cache_ls_print_json(cli: Cli, trained: Path) -> None:
    document = cli.ok("compare", "--json").json
    assert {run["run"] for run in document["runs"]} == {LINEAR, LOGISTIC}
    assert [run["run"] for run in cli.ok("compare", "--json", LINEAR).json["runs"]] == [LINEAR]
    files = cli.ok("cache", "ls", "--json").json["files"]
    assert {file["split"]: file["rows"] for file in files} == {"train": 60, "validation": 20, "test": 20}
    for file in files:
        assert file["views"] == ["last/cls", "last/mean"] and file["status"] == "sealed"
    info = cli.ok("cache", "info", files[0]["fingerprint"][:6], "--json").json["files"]
    assert [file["path"] for file in info] == [files[0]["path"]]


def test_cache_rm_removes_only_the_named_file(cli: Cli, trained: Path) -> None:
    files = {Path(file["path"]) for file in cli.ok("cache", "ls", "--json").json["files"]}
    gone = next(path for path in files if path.name.startswith("validation"))
    size = gone.stat().st_size
    result = cli.ok("cache", "rm", gone.name, "--json")
    assert result.json == {"removed": [str(gone)], "bytes": size}
    left = {path for path in Path("cache").rglob("*") if path.is_file()}
    assert {path for path in left if path.suffix == ".h5"} == files - {gone}
    assert not [path for path in left if path.stem == gone.stem]  # its record and lock went with it
    again = cli.ok("extract", "--all-splits", "--json").json["splits"]
    assert [split["cached"] for split in again] == [True, False, True]
    cli.ok("cache", "rm", "--all")
    assert cli.ok("cache", "ls", "--json").json == {"files": []}
    assert "extract" in cli.ok("cache", "ls").err


@pytest.mark.parametrize("command", ["compare", "cache info", "predict"])
def test_flags_are_accepted_before_names(command: str, cli: Cli, trained: Path) -> None:
    name = {"compare": LINEAR, "predict": "好"}.get(command) or next(Path("cache").rglob("test-*.h5")).name
    before, after = (cli.ok(*command.split(), *argv) for argv in (["--json", name], [name, "--json"]))
    assert re.sub(r'"age_seconds": [0-9.]+', "", before.out) == re.sub(
        r'"age_seconds": [0-9.]+', "", after.out
    )


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


def test_run_extracts_trains_and_compares(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = cli.ok("run", "--epochs", "3", "--json").json
    assert [split["split"] for split in document["splits"]] == SPLITS
    made = [(run["head"], run["view"], set(run["metrics"])) for run in document["runs"]]
    depth = "-2/cls,-2/mean,-3/cls,-3/mean,last/cls,last/mean"
    kinds = [(kind, view) for view in ("last/cls", "last/mean") for kind in ("linear", "logistic")]
    kinds = [("lexical", "lexical"), *kinds, ("exact", depth), ("exact", f"{depth},lexical")]
    assert made == [(*kind, set(SPLITS)) for kind in kinds]
    assert {run["run"] for run in cli.ok("compare", "--json").json["runs"]} == {
        run["run"] for run in document["runs"]
    }
    encoder_is_not_called(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    again = cli.ok("run", "--epochs", "3")
    for split in SPLITS:
        assert re.search(rf"^ {split} +\d+ +cached ", again.out, re.MULTILINE)
    for name in ("no-backbone-2", "linear-last-cls-2", "logistic-last-mean-2", "exact-depth-lexical-2"):
        assert name in again.out


# --- demo ---------------------------------------------------------------------------------------


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
    cli.ok("run", "--epochs", "2")
    document = cli.ok("demo", "--rows", "100", "--json").json  # a second time, in the same folder
    assert all(split["cached"] for split in document["splits"])
    assert len(document["predictions"]) == 3 and len(document["runs"]) == 7


def test_demo_keeps_an_existing_settings_file(cli: Cli, small_demo: Path) -> None:
    Path("featcache.toml").write_text("seed = 7\n")
    cli.refused(2, ["demo"], "featcache.toml", "folder of its own")
    assert Path("featcache.toml").read_text() == "seed = 7\n"


# --- settings -----------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_defaults(cli: Cli, trained: Path) -> None:
    file = Path("featcache.toml")
    text = file.read_text(encoding="utf-8")

    def epochs(*flags: str) -> int:
        return int(cli.ok("train-head", "--json", *flags).json["epochs"])

    assert epochs() == options()["epochs"].default == 100
    file.write_text(text.replace("epochs = 100", "epochs = 7"), encoding="utf-8")
    assert (epochs(), epochs("--epochs", "3")) == (7, 3)
    file.rename("elsewhere.toml")
    assert epochs("--config", "elsewhere.toml") == 7


def test_a_dataset_on_the_command_line_wins_over_files_in_the_settings(cli: Cli, work: Path) -> None:
    cli.ok("init", "--force", "--model", load_settings().backbone.model, "--data-files", "train=gone.tsv")
    write_rows(Path("small/train.jsonl"), [("好", 1), ("坏", 0), ("很好", 1), ("很坏", 0)])
    write_rows(Path("small/dev.jsonl"), [("好", 1)])
    splits = cli.ok("extract", "--split", "train", "--dataset", "small", "--json").json["splits"]
    assert splits[0]["rows"] == 4


# --- streams ------------------------------------------------------------------------------------


def test_quiet_prints_nothing_to_stderr(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: bars and spinners would show
    commands = (
        "init --force --dtype float32 --dataset reviews --model " + load_settings().backbone.model,
        "extract --split train --split validation --max-length 16",  # truncated, and no test split
        "train-head --epochs 2 --max-length 16",
        "run --epochs 2",
        "compare",
        "predict 好房间",
        "predict --json " + "好" * 99,
        "cache ls",
        "cache rm --all",
        "cache ls",
    )
    noisy = {command: cli.ok(*command.split(), "--quiet").err for command in commands}
    assert {command: err for command, err in noisy.items() if err} == {}


def test_stdout_has_only_data(cli: Cli, work: Path) -> None:
    """Each of these prints only its document on stdout."""
    first = cli.ok("extract", "--all-splits", "--max-length", "512", "--json")
    assert "longest text: 64 tokens" in first.err  # what was done otherwise than asked
    assert set(first.json) == {"splits"}
    cli.ok("extract", "--all-splits")
    cli.ok("train-head", "--epochs", "2")
    for argv in (["train-head", "--epochs", "2"], ["compare"], ["predict", "好"], ["cache", "ls"], ["run"]):
        assert cli.ok(*argv, "--json").json
    assert cli.ok("predict", "好").out.count("\n") == 1


# Foreground and background colours; 0, 1 and 2 (plain, bold, dim) are none.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@pytest.mark.parametrize("argv", ["--help", "compare", "compare nonsense"])
def test_colour_is_printed_only_on_a_terminal(argv: str, trained: Path) -> None:
    code = 6 if "nonsense" in argv else 0
    with Terminal(*argv.split()) as terminal:
        assert terminal.finish() == code
    assert COLOUR.search(terminal.seen)
    with Terminal(*argv.split(), NO_COLOR="1") as terminal:
        assert terminal.finish() == code
    assert "compare" in terminal.seen or LINEAR in terminal.seen
    assert not COLOUR.search(terminal.seen)
    piped = shell(*argv.split())
    assert piped.code == code and "\x1b" not in piped.out + piped.err


def test_progress_bars_stay_on_the_terminal(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = cli.ok("extract", "--split", "train")
    assert "\x1b" not in piped.err + piped.out and "\r" not in piped.err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("featcache_cli.progress.FIRST_BAR", 0.0)
    drawn = cli.ok("extract", "--split", "test", "--json")
    assert "extract test" in drawn.err and "\x1b" in drawn.err
    assert len(drawn.json["splits"]) == 1


@pytest.mark.parametrize(
    "argv", ["compare", "compare --json", f"compare {LINEAR}", "cache ls", "cache info --all", "--help"]
)
def test_a_closed_pipe_is_no_error(argv: str, trained: Path) -> None:
    """`featcache compare | head -1`, where the reader has ended before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "featcache_cli.main", *argv.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("argv", ["--help", "compare", "cache ls"])
def test_chinese_is_escaped_on_an_ascii_stream(argv: str, trained: Path) -> None:
    result = shell(*argv.split(), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (result.code, result.err) == (0, "")


# --- interactive --------------------------------------------------------------------------------


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


# --- tables -------------------------------------------------------------------------------------


@pytest.fixture
def many_runs(trained: Path) -> list[str]:
    """Runs with the numbers of BERT-base on ChnSentiCorp."""
    names = ["linear-last-cls-12", "logistic-last-mean-12", "logistic--4-mean-3"]
    kinds = [("linear", "last/cls"), ("logistic", "last/mean"), ("logistic", "-4/mean")]
    for name, (head, view) in zip(names, kinds, strict=True):
        shutil.copytree(f"reports/{LINEAR}", f"reports/{name}")
        numbers = {"seconds": 12.34, "extraction_seconds": 1234.5, "parameters": 1538, "epochs": 100}
        edit_run(name, head=head, view=view, **numbers)
    shutil.rmtree(f"reports/{LINEAR}")
    shutil.rmtree(f"reports/{LOGISTIC}")
    return names


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_fits_the_terminal_with_full_names(
    columns: int, cli: Cli, many_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = cli.ok("compare").out
    assert widest(text) <= columns
    assert "…" not in text
    for name in many_runs:
        assert name in text
    for words in ("12.3s", *(("1,538", "1234s", "100") if columns == 120 else ())):
        assert words in text
    one = cli.ok("compare", many_runs[0]).out
    assert widest(one) <= columns and "…" not in one


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


LABELS = ["[red]", "[/b]坏", "一个非常非常非常非常非常非常非常长的中文标签"]


@pytest.mark.parametrize("count", [3, 10])
def test_compare_prints_label_names_unchanged(count: int, cli: Cli, work: Path) -> None:
    """Brackets are not markup, and long names are not shortened; above 8 classes other tables are shown."""
    names = LABELS + [f"[bold]{number}" for number in range(count - 3)]
    for number, split in enumerate(SPLITS):
        rows = [(f"{'好坏差'[i % 3]}房间{'书' * (i + number)}", names[i % count]) for i in range(4 * count)]
        write_rows(Path(f"odd/{split}.jsonl"), rows)
    where = ["--dataset", "odd"]
    cli.ok("extract", "--all-splits", *where)
    run = cli.ok("train-head", "--epochs", "3", "--json", *where).json
    assert sorted(run["label_names"]) == sorted(names)
    cli.ok("train-head", "--epochs", "3", *where)
    text = cli.ok("compare", run["run"]).out
    assert widest(text) <= 80
    classes, confusion = text.split("class (test)")[1].split("true", 1)
    for name in names:
        assert name in classes, (name, classes)
    if count == 3:
        for name in names:
            assert re.search(rf"^ {re.escape(name)} +\d", confusion, re.MULTILINE), (name, confusion)
        assert "[red]" in confusion.splitlines()[0] and "[/b]坏" in confusion.splitlines()[0]
    else:
        record = json.loads(Path("reports", run["run"], "run.json").read_text(encoding="utf-8"))
        wrong = record["scores"]["test"]["confusion"]
        worst = max((n, i, j) for i, row in enumerate(wrong) for j, n in enumerate(row) if i != j)
        assert run["label_names"][worst[1]] in confusion and run["label_names"][worst[2]] in confusion
    found = cli.ok("predict", "好房间", "--json").json[0]
    assert set(found["probabilities"]) == set(names)
    line = cli.ok("predict", "好房间").out.split("\t")
    assert line[0] == found["label"] in names
    file = next(Path("cache").glob("odd/*/train-*.h5")).name
    assert cli.ok("cache", "info", file, "--json").json["files"][0]["label_names"] == run["label_names"]
    shown = cli.ok("cache", "info", file).out
    assert widest(shown) <= 80 and all(name in shown.replace("\n             ", "") for name in names), shown


def test_compare_numbers_confusion_columns_with_equal_names(cli: Cli, work: Path) -> None:
    names = ["neutral-positive", "neutral-possible", "neutral-negative"]
    for split in SPLITS:
        write_rows(Path(f"odd/{split}.jsonl"), [("好坏差"[i % 3] * (i + 1), names[i % 3]) for i in range(12)])
    cli.ok("extract", "--all-splits", "--dataset", "odd")
    run = cli.ok("train-head", "--epochs", "2", "--json", "--dataset", "odd").json["run"]
    matrix = cli.ok("compare", run).out.partition("true \\ predicted")[2]
    head = matrix.splitlines()[0].split()
    assert len(head) == len(set(head)) == 3, head


def test_predict_table_keeps_brackets(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", cli.ok("predict", "[red]好[/red]", "坏[/]").out)
    assert "[red]好[/red]" in text and "坏[/]" in text and widest(text) <= 80


# --- which run is the best ----------------------------------------------------------------------


def scores(accuracy: float, loss: float = 0.5) -> dict[str, float]:
    return {"accuracy": accuracy, "macro_f1": accuracy, "log_loss": loss}


@pytest.mark.parametrize(
    ("linear", "logistic", "best"),
    [
        ((0.90, 0.5, 0.10), (0.80, 0.1, 0.99), LINEAR),  # never by test
        ((0.80, 0.1, 0.99), (0.90, 0.5, 0.10), LOGISTIC),
        ((0.90, 0.3, 0.10), (0.90, 0.2, 0.05), LOGISTIC),  # a tie: by validation loss
        ((0.90, 0.2, 0.10), (0.90, 0.3, 0.95), LINEAR),
    ],
)
def test_the_best_run_is_the_best_on_validation(
    linear: tuple[float, ...], logistic: tuple[float, ...], best: str, cli: Cli, trained: Path
) -> None:
    for name, (accuracy, loss, test) in ((LINEAR, linear), (LOGISTIC, logistic)):
        edit_run(name, metrics={"validation": scores(accuracy, loss), "test": scores(test)})
    assert cli.ok("compare", "--json").json["best"] == best
    marked = [line for line in cli.ok("compare").out.splitlines() if LINEAR in line or LOGISTIC in line]
    assert [("*" in line.split()[0], best in line) for line in marked] == [(True, True), (False, False)]
    assert f"using {best} " in cli.ok("predict", "好").err


def test_concurrent_runs_have_distinct_names(trained: Path) -> None:
    count = 6
    gate = threading.Barrier(count)
    codes: list[int] = []

    def train() -> None:
        gate.wait()
        codes.append(main(["train-head", "--epochs", "2", "--quiet", "--json"]))

    threads = [threading.Thread(target=train) for _ in range(count)]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [0] * count
    runs = sorted(path.parent for path in Path("reports").glob("linear-*/run.json"))
    assert len(runs) == count + 1 and not list(Path("reports").glob(".tmp-*"))
    for folder in runs:
        assert json.loads((folder / "run.json").read_text())["run"] == folder.name
        assert {path.name for path in folder.iterdir()} >= {"head.safetensors", "head.json"}


def test_read_only_commands_change_no_file(cli: Cli, trained: Path) -> None:
    before = contents(trained)
    for argv in (
        ["compare"],
        ["compare", LINEAR],
        ["cache", "ls"],
        ["cache", "info", "--all"],
        ["predict", "好"],
    ):
        cli.ok(*argv)
    assert contents(trained) == before


def test_negative_views_need_no_equals_sign(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--all-splits", "--views", "-1/mean,last/cls", "--quiet")
    run = cli.ok(
        "train-head", "--views", "-1/mean,last/cls", "--view", "-1/mean", "--epochs", "1", "--json"
    ).json
    assert run["view"].endswith("/mean")
