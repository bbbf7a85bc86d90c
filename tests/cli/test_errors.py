"""What cannot be done: a sentence that says so, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from safetensors.numpy import load_file

from featcache.heads import linear_stack
from tests.support.cli_tools import (
    COMMAND,
    Cli,
    Result,
    check_refusal,
    contents,
    environment,
    interruptible,
    read_rows,
    shell,
    write_rows,
)
from tests.support.review_files import write_reviews
from tests.support.tiny import build

USAGE, DATA, MODEL, CACHE, HEAD = 2, 3, 4, 5, 6
LINEAR = "linear-last-cls-1"
GOOD = [("好房间", "good"), ("坏电池", "bad"), ("很好", "good"), ("很差", "bad")] * 3

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through the encoder, call by call."""
    from featcache.backbone.encoder import Encoder

    calls: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, tokens: Any, *rest: Any) -> Any:
        calls.append(len(tokens.lengths))
        return encode(self, tokens, *rest)

    monkeypatch.setattr(Encoder, "encode", counting)
    return calls


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("extrct", ("extrct", "extract")),
        ("extract --split train --max-lenght 3", ("--max-lenght", "did you mean", "--max-length")),
        ("extract --splt train", ("--splt", "did you mean", "--split")),
        ("train-head --epoch-count 3", ("--epoch-count", "--epochs", "featcache train-head --help")),
        ("extract", ("--split", "--all-splits")),
        ("extract --split train --all-splits", ("--split", "--all-splits")),
        ("extract --split dev2", ("--split", "'dev2'", "validation")),
        ("extract --all-splits --pooling mean --views last/cls", ("--pooling", "--views")),
        ("extract --all-splits --dataset reviews --data-files train=a.tsv", ("--dataset", "--data-files")),
        ("extract --all-splits --dtype nonsense", ("--dtype", "'nonsense'", "float32", "bfloat16")),
        ("extract --all-splits --storage float8", ("--storage", "'float8'", "float16")),
        ("extract --all-splits --max-length many", ("--max-length", "whole number", "'many'")),
        ("extract --all-splits --max-length 0", ("--max-length 0",)),
        ("extract --all-splits --max-length 100000", ("--max-length 100000", "64 tokens")),
        ("extract --all-splits --batch-tokens 0", ("--batch-tokens", "0")),
        ("extract --all-splits --batch-tokens -5", ("--batch-tokens", "-5")),
        ("extract --all-splits --pooling meen", ("meen", "cls, mean")),
        ("extract --all-splits --views mean", ("'mean'", "last/cls")),
        ("extract --all-splits --views 99/mean", ("99/mean", "3 blocks")),
        ("extract --all-splits --device nonsense", ("--device nonsense", "--device cpu")),
        ("extract --all-splits --validation-share 1", ("--validation-share 1", "below 1")),
        ("train-head --head svm", ("--head", "'svm'", "logistic")),
        ("train-head --lr fast", ("--lr", "'fast'")),
        ("train-head --seed 1.5", ("--seed", "whole number", "1.5")),
        ("predict --top-k 0 好", ("--top-k 0", "at least 1")),
        ("predict --top-k x 好", ("--top-k", "'x'")),
        ("predict 好 --pair 甲 --pair 乙", ("1 text but", "2 --pair")),
        ("cache rm", ("no files are named", "--all")),
        ("cache lss", ("'lss'", "did you mean ls?")),
        ("compare --config gone.toml", ("gone.toml", "featcache init")),
        ("demo --rows 3", ("--rows 3", "100")),
    ],
)
def test_invalid_command_lines_are_refused(line: str, words: tuple[str, ...], cli: Cli, work: Path) -> None:
    cli.refused(USAGE, line.split(), *words)


@pytest.mark.parametrize("command", ["train-head", "run"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--weight-decay", "-1"),
        ("--C", "-1"),
        ("--C", "nan"),
    ],
)
def test_invalid_numbers_of_a_head_are_refused_before_extraction(
    command: str, flag: str, value: str, cli: Cli, trained: Path, encoded: list[int]
) -> None:
    """`run` checks --epochs before it extracts, which may take an hour."""
    if command == "run":
        cli.ok("cache", "rm", "--all")
    cli.refused(USAGE, [command, flag, value], flag)
    assert encoded == []


@pytest.mark.parametrize("seed", ["-1", str(2**40)])
def test_any_whole_number_is_a_seed(seed: str, cli: Cli, trained: Path) -> None:
    for head in ("linear", "logistic"):
        assert cli.ok("train-head", "--head", head, "--epochs", "2", "--seed", seed, "--json").json
    assert cli.ok("train-head", "--head", "exact", "--folds", "3", "--seed", seed, "--json").json
    assert cli.ok("finetune", "--epochs", "1", "--train", "top-blocks:1", "--seed", seed, "--json").json
    assert cli.ok("inspect", "--seed", seed, "--json").json
    assert cli.ok("plan", "--sample-seconds", "0.05", "--seed", seed, "--json").json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[backbone\n", ("featcache.toml", "line 1")),
        ("[backbone]\nmodle = 'x'\n", ("featcache.toml", "modle", "did you mean 'model'?")),
        ("[backbon]\nmodel = 'x'\n", ("featcache.toml", "[backbon]", "did you mean 'backbone'?")),
        ("[head]\nepochs = 'many'\n", ("--epochs", "'many'")),
        ("[head]\nepochs = inf\n", ("--epochs", "whole number")),
        ("[backbone]\ndtype = 'bf16'\n", ("--dtype", "'bf16'", "bfloat16")),
    ],
)
def test_an_invalid_settings_file_is_refused(
    content: str, words: tuple[str, ...], cli: Cli, trained: Path
) -> None:
    Path("featcache.toml").write_text(content)
    for command in ("compare", "extract --all-splits", "predict 好"):
        cli.refused(USAGE, command.split(), *words)


def test_traceback_is_shown_only_with_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_refusal(shell("compare"), HEAD, "no runs in reports", "featcache train-head")
    debug = shell("compare", "--debug")
    assert "Traceback" in debug.err and "no runs in reports" in debug.err
    assert debug.code == HEAD  # seeing more changes nothing else


# --- hub, model ---------------------------------------------------------------------------------


def test_errors_without_a_hub_name_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = str(tmp_path / "hub")
    for argv in (["extract", "--all-splits"], ["run"], ["train-head"]):
        result = shell(*argv, HF_HOME=hub)
        check_refusal(result, MODEL, "bert-base-chinese", "--model FOLDER", "HF_ENDPOINT", "embedded encoder")
    result = shell("extract", "--all-splits", "--model", tiny("bert"), HF_HOME=hub)
    ways = ("--dataset FOLDER", "--data-files", "HF_ENDPOINT", "featcache demo")
    check_refusal(result, DATA, "lansinuote/ChnSentiCorp", *ways)
    lines = result.err.splitlines()
    assert all(line.startswith("       ") for line in lines[1:]), lines  # indented below the sentence


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", ("./nowhere", "--model FOLDER")),
        ("empty", ("empty", "config.json")),
        ("no-weights", ("no-weights", "safetensors")),
        ("no-tokenizer", ("no-tokenizer", "tokenizer")),
        ("cut", ("cut", "download complete?")),
        ("what is this", ("what is this", "hub id")),
    ],
)
def test_extract_names_a_model_that_cannot_be_loaded(
    model: str, words: tuple[str, ...], cli: Cli, work: Path, tiny: Callable[[str], Path]
) -> None:
    Path("empty").mkdir()
    for name, lacks in (("no-weights", "model.*"), ("no-tokenizer", "tokenizer*"), ("cut", "")):
        shutil.copytree(tiny("bert"), name, ignore=shutil.ignore_patterns(lacks))
    weights = Path("cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    cli.refused(MODEL, ["extract", "--split", "train", "--model", model], *words)


# --- texts and labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        (GOOD, "--text-column review", ("'review'", "'text', 'label'", "--text-column")),
        (GOOD, "--label-column stars", ("'stars'", "'text', 'label'", "--label-column")),
        (GOOD, "--label-names good,other", ("'bad'", "row 2 of train", "--label-names", "good, other")),
        ([], "", ("odd/train.jsonl", "empty")),
        ([*GOOD, ("", "good")], "", ("row 13 of train", "text", "--skip-bad-rows")),
        ([*GOOD, (" \n", "good")], "", ("row 13 of train", "text", "--skip-bad-rows")),
        ([GOOD[0], (None, "good"), *GOOD], "", ("row 2 of train", "text", "--skip-bad-rows")),
        ([*GOOD, ("好", None)], "", ("row 13 of train", "label", "--skip-bad-rows")),
        ([*GOOD, (7, "good")], "", ("row 13 of train", "int")),
        ([("好", "good"), ("很好", "good")] * 4, "", ("the same", "'good'", "--label-column")),
        ([("好", 0.5), ("坏", 1.5)] * 4, "", ("0.5", "row 1 of train", "regression")),
        ([("好", ["good"]), ("坏", "bad")] * 4, "", ("row 2 of train is no list", "row 1 of train")),
    ],
)
def test_extract_names_rows_that_cannot_be_used(
    rows: list[tuple[Any, Any]], flags: str, words: tuple[str, ...], cli: Cli, work: Path
) -> None:
    write_rows(Path("odd/train.jsonl"), rows)
    argv = ["extract", "--split", "train", "--dataset", "odd", *flags.split()]
    cli.refused(DATA, argv, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dataset ./gone", ("no such file or folder", "./gone")),
        ("--dataset empty", ("empty", "train.*")),
        ("--data-files train=gone.tsv", ("no such file", "gone.tsv", "train=")),
        ("--data-files train=odd.xyz", ("odd.xyz", ".csv")),
        ("--data-files trian=reviews/train.jsonl", ("'trian'", "train, validation, test")),
        ("--data-files train=header.csv", ("no rows", "header.csv")),
        ("--data-files train=cut.csv", ("cut.csv", "line 3", "cut short")),
        ("--data-files train=gbk.csv", ("gbk.csv", "UTF-8", "gb18030: 好坏", "--encoding")),
    ],
)
def test_extract_names_files_that_cannot_be_read(
    flags: str, words: tuple[str, ...], cli: Cli, work: Path
) -> None:
    Path("empty").mkdir()
    Path("odd.xyz").write_text("x")
    Path("header.csv").write_text("text,label\n")
    Path("cut.csv").write_text("text,label\n好,1\n坏")
    Path("gbk.csv").write_bytes("text,label\n好坏,1\n".encode("gb18030"))
    cli.refused(DATA, ["extract", "--split", "train", *flags.split()], *words)


def test_extract_names_a_missing_split(cli: Cli, work: Path) -> None:
    write_rows(Path("odd/train.jsonl"), GOOD)
    cli.refused(DATA, ["extract", "--split", "test", "--dataset", "odd"], "no test split", "train")
    result = cli.refused(DATA, ["run", "--dataset", "odd"], "no test split")  # before train is encoded
    assert "loading" not in result.err


def test_bad_rows_are_left_out_on_demand_and_counted(cli: Cli, work: Path) -> None:
    bad = [("", "good"), (None, "bad"), ("好", None)]
    write_rows(Path("odd/train.jsonl"), [*GOOD[:4], *bad, *GOOD[4:]])
    shutil.copy("reviews/validation.jsonl", "odd")
    result = cli.ok("extract", "--split", "train", "--dataset", "odd", "--skip-bad-rows", "--json")
    assert result.json["splits"][0]["rows"] == len(GOOD)
    assert re.search(r"left out 3 rows .*5, 6, 7 of train", result.err)


def test_extract_names_a_label_that_train_does_not_have(cli: Cli, work: Path) -> None:
    write_rows(Path("odd/train.jsonl"), GOOD)
    write_rows(Path("odd/validation.jsonl"), GOOD)
    write_rows(Path("odd/test.jsonl"), [*GOOD, ("书", "neutral")])
    argv = ["extract", "--all-splits", "--dataset", "odd"]
    cli.refused(DATA, argv, "'neutral'", "row 13 of test", "train", "bad, good")


# --- the cache ----------------------------------------------------------------------------------


def test_train_head_before_extract(cli: Cli, work: Path) -> None:
    cli.refused(CACHE, ["train-head"], "train split", "featcache extract --split train")
    cli.ok("extract", "--split", "train")
    cli.refused(CACHE, ["train-head"], "validation split", "featcache extract --split validation")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max-length 12", ("max_length", "16", "12")),
        ("--prompt query:", ("prompt", "query:")),
        ("--dtype bfloat16", ("dtype", "float32", "bfloat16")),
        ("--storage float32", ("storage", "float16", "float32")),
        ("--views last/max", ("views", "last/cls", "last/max")),
        ("--view last/max", ("last/cls, last/mean", "last/max")),
        ("--text-column text", ("text_column",)),
    ],
)
def test_train_head_with_other_settings_names_them(
    flags: str, words: tuple[str, ...], cli: Cli, trained: Path
) -> None:
    cli.refused(CACHE, ["train-head", *flags.split()], "train", *words)


def test_train_head_after_the_data_changed(cli: Cli, trained: Path) -> None:
    path = Path("reviews/train.jsonl")
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    cli.refused(CACHE, ["train-head"], "train", "sha256", "featcache extract --split train")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def newer_format(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"featcache cache 1\n", b"featcache cache 2\n", 1))


def another_tool(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["features"] = [[1.0, 2.0]] * 60


def flipped(path: Path) -> None:
    """One bit of a feature."""
    with h5py.File(path) as file:
        place = file["views/last-cls"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 1
    path.write_bytes(content)


DAMAGES = [cut_short, emptied, newer_format, another_tool, flipped]


def cached(split: str) -> Path:
    return next(Path("cache").glob(f"*/*/{split}-*.h5"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_file_is_named(damage: Callable[[Path], None], cli: Cli, trained: Path) -> None:
    path = cached("train")
    damage(path)
    cli.refused(
        CACHE, ["train-head", "--epochs", "3"], path.name, "format" if "format" in damage.__name__ else ""
    )
    listed = cli.ok("cache", "ls", "--json").json["files"]
    if damage is not flipped:  # ls looks at no feature
        assert [file["status"] == "sealed" for file in listed if file["path"] == str(path)] == [False]
        assert "damaged" in cli.ok("cache", "ls").out
        assert cli("cache", "info", path.name).code == CACHE


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_damage_no_work_is_done_twice(
    damage: Callable[[Path], None], cli: Cli, trained: Path, encoded: list[int]
) -> None:
    """`extract` either repairs the file, or names the damage before it encodes anything."""
    before = cli.ok("train-head", "--epochs", "3", "--json").json["metrics"]
    path = cached("train")
    damage(path)
    result = cli("extract", "--split", "train")
    if result.code:
        assert (sum(encoded), result.code) == (0, CACHE), result
        assert path.name in result.err and result.err.count("\n") > 1  # with a way out
        cli.ok("cache", "rm", path.name)
        cli.ok("extract", "--split", "train")
    if cli("train-head", "--epochs", "3").code:  # only the column that is read is checked
        assert damage is flipped
        cli.ok("cache", "rm", path.name)
        cli.ok("extract", "--split", "train")
    assert cli.ok("train-head", "--epochs", "3", "--json").json["metrics"] == before


def test_force_replaces_a_damaged_file(cli: Cli, trained: Path) -> None:
    path = cached("train")
    whole = path.read_bytes()
    cut_short(path)
    cli.ok("extract", "--split", "train", "--force")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("action", ["rm", "info"])
def test_cache_info_lists_files_for_an_unknown_name(action: str, cli: Cli, trained: Path) -> None:
    cli.refused(CACHE, ["cache", action, "nope"], "'nope'", *(cached(s).name for s in ("train", "test")))
    # A wrong name beside a right one: nothing is removed.
    cli.refused(CACHE, ["cache", action, cached("train").name, "nope"], "'nope'")


def test_an_empty_name_removes_nothing(cli: Cli, trained: Path) -> None:
    """`featcache cache rm "$FILE"` with FILE unset, and a single file in the cache."""
    left = cached("test")
    cli.ok("cache", "rm", cached("train").name, cached("validation").name)
    result = cli("cache", "rm", "")
    assert left.is_file(), result
    check_refusal(result, USAGE, "empty")


# --- runs and heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", ["compare nope", "predict --run nope 好"])
def test_predict_lists_runs_for_an_unknown_name(argv: str, cli: Cli, trained: Path) -> None:
    cli.refused(HEAD, argv.split(), "'nope'", LINEAR, "logistic-last-mean-1")
    for number in range(2, 30):
        shutil.copytree(f"reports/{LINEAR}", f"reports/linear-last-cls-{number}")
    err = cli.refused(HEAD, argv.split(), "'nope'").err
    names = [path.parent.name for path in Path("reports").glob("*/run.json")]
    left_out = [name for name in names if not re.search(rf"\b{name}\b", err)]
    assert not left_out or f"{len(left_out)} more" in err, err  # a list that is cut says so


@pytest.mark.parametrize("argv", ["compare", "predict 好"])
def test_without_a_run_the_next_step_is_named(argv: str, cli: Cli, work: Path) -> None:
    cli.refused(HEAD, argv.split(), "reports", "featcache train-head --epochs 100")


@pytest.mark.parametrize("texts", [[""], ["好", "  \n"], ["\u3000"]])
def test_an_empty_text(texts: list[str], cli: Cli, trained: Path) -> None:
    result = cli.refused(DATA, ["predict", *texts], f"text {len(texts)}", "empty")
    assert "using" not in result.err  # said before the model is loaded


def test_predict_refuses_a_head_of_other_features(cli: Cli, trained: Path, tmp_path: Path) -> None:
    other = build("bert", tmp_path / "other", seed=1)
    argv = ["predict", "--run", LINEAR, "--model", str(other), "好"]
    cli.refused(HEAD, argv, LINEAR, "model.safetensors", "--model FOLDER")
    gone = ["predict", "--run", LINEAR, "--model", str(tmp_path / "gone"), "好"]
    cli.refused(MODEL, gone, "gone")


def test_predict_finds_a_moved_backbone_with_model(cli: Cli, trained: Path, tmp_path: Path) -> None:
    run = json.loads(Path(f"reports/{LINEAR}/run.json").read_text())
    moved = shutil.copytree(run["backbone"]["model"], tmp_path / "moved")
    run["backbone"]["model"] = str(tmp_path / "gone")
    Path(f"reports/{LINEAR}/run.json").write_text(json.dumps(run))
    cli.refused(MODEL, ["predict", "--run", LINEAR, "好"], "gone", "--model")
    assert cli.ok("predict", "--run", LINEAR, "--model", str(moved), "--json", "好").json


@pytest.mark.parametrize("file", ["head.safetensors", "head.json", "run.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_predict_names_a_damaged_run(file: str, damage: str, cli: Cli, trained: Path) -> None:
    path = Path(f"reports/{LINEAR}/{file}")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.unlink()
    cli.refused(HEAD, ["predict", "--run", LINEAR, "好"], LINEAR)
    assert "logistic-last-mean-1" in cli.ok("compare").out  # the other run is as it was


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_an_interrupted_extraction_says_that_it_continues(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+C in the second of four units."""
    from featcache.cache.staging import Staging

    monkeypatch.setattr("featcache.extraction.partition.UNIT_ROWS", 16)
    commit = Staging.commit

    def stop(self: Staging, number: int, arrays: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        commit(self, number, arrays)

    argv = ("extract", "--split", "train")
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", stop)
        result = cli(*argv)
    assert result.code == 130 and result.out == ""
    assert "interrupted" in result.err and "continues" in result.err and "Traceback" not in result.err
    kept = list(Path("cache").rglob("block-*.safetensors"))
    rows = [len(load_file(path)["n_tokens"]) for path in kept]
    assert sum(rows) > 0 and not list(Path("cache").rglob("*.h5"))
    again = cli.ok(*argv, "--json")
    assert f"going on from {len(kept)} of" in again.err
    split = again.json["splits"][0]
    assert split["rows"] == 60 and 0 < split["encoded"] <= 60 - sum(rows)
    assert not list(Path("cache").rglob("*.partial")) and not list(Path("cache").rglob(".tmp-*"))


@pytest.mark.slow
def test_extract_continues_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 5000
    alone = {"HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}  # steady on a busy machine
    model = build("bert", tmp_path / "slow", hidden_size=192, intermediate_size=512)
    write_reviews(tmp_path / "reviews", rows)
    monkeypatch.chdir(tmp_path)
    argv = [
        "extract",
        "--split",
        "train",
        "--model",
        str(model),
        "--dataset",
        "reviews",
        "--dtype",
        "float32",
    ]
    with subprocess.Popen(
        [COMMAND, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**alone),
        preexec_fn=interruptible,
    ) as process:
        units = "cache/reviews/slow/*.partial/block-*.safetensors"
        until = time.monotonic() + 60
        while not list(Path().glob(units)):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = (stream.decode() for stream in process.communicate(timeout=30))
    assert process.returncode == 130, err
    assert "interrupted" in err and "continues" in err
    assert "Traceback" not in err and out == ""
    kept = {path.name: len(load_file(path)["n_tokens"]) for path in Path().glob(units)}
    assert 0 < sum(kept.values()) < rows and not list(Path("cache").rglob("*.h5"))
    again = shell(*argv, "--json", **alone)
    assert again.code == 0, again
    assert f"going on from {len(kept)} of" in again.err
    split = again.json["splits"][0]
    distinct = len({row["text"] for row in read_rows("reviews/train.jsonl")})
    assert split["rows"] == rows and split["encoded"] == distinct - sum(kept.values())
    assert not list(Path("cache").rglob("*.partial")) and not list(Path("cache").rglob(".tmp-*"))


def at_the_prompt(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, *typed: str | type[BaseException]
) -> tuple[Result, list[str | type[BaseException]]]:
    """`predict` with these lines or exceptions from the terminal, and those that were not asked for."""
    left = list(typed)

    def line(*_: str) -> str:
        found = left.pop(0)
        if isinstance(found, str):
            return found
        raise found

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", line)
    return cli("predict"), left


def test_ctrl_c_at_the_prompt_clears_and_twice_quits(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = KeyboardInterrupt
    result, left = at_the_prompt(cli, monkeypatch, stop, "text 3", stop, stop, "text 4")
    assert result.code == 0 and left == ["text 4"]
    assert result.out.count("text 3") == 1 and result.err.count("Ctrl-C again quits") == 2


@pytest.mark.parametrize("word", ["q", " Q ", ":quit", "exit", EOFError])
def test_words_that_quit_the_prompt(
    word: str | type[BaseException], cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, left = at_the_prompt(cli, monkeypatch, word, "text 4")
    assert result.code == 0 and left == ["text 4"] and result.out == ""


def test_commands_at_the_prompt_are_no_texts(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = at_the_prompt(cli, monkeypatch, "help", ":help", ":top 3", "   ", ":)", "q")
    assert result.code == 0 and result.err.count("each line is a text to label") == 2
    assert "there is no command :top, and nothing was labelled" in result.err
    assert len(result.out.splitlines()) == 1 and ":)" in result.out  # a smiley is a text


def test_an_unexpected_error_is_reported_as_a_defect(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("made up [/red]")

    monkeypatch.setattr("featcache.runs.run.list_runs", broken)
    before = contents(trained)
    result = cli("compare")
    assert result.code == 1 and contents(trained) == before
    for words in ("ZeroDivisionError", "made up [/red]", "defect of featcache", "--debug"):
        assert words in result.err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["trainhead"], 2, "did you mean train-head?"),
        (["swep"], 2, "did you mean sweep?"),
        (["xyzzy"], 2, "there are: init, extract, import, train-head"),
        (["train-head", "--head", "exakt"], 2, "did you mean exact?"),
        (["train-head", "--epoch", "3"], 2, "did you mean --epochs?"),
        (["predict", "x", "--run", "linear-last-cls"], 6, "did you mean linear-last-cls-1?"),
        (["extract", "--all-splits", "--text-column", "txt"], 3, "(did you mean 'text'?)"),
        (["run", "./review"], 3, "did you mean reviews?"),
        (
            ["extract", "--split", "test", "--data-files", "test=reviews/tset.jsonl"],
            3,
            "did you mean reviews/test.jsonl?",
        ),
        (["finetune", "--max-length", "8"], 2, "a fine-tuned head always answers"),
    ],
)
def test_a_mistyped_name_gets_the_one_that_may_be_meant(
    argv: list[str], code: int, words: str, cli: Cli, trained: Path
) -> None:
    if argv[0] == "finetune":
        path = Path("featcache.toml")
        text = path.read_text(encoding="utf-8").replace("# coverage =", "coverage = 0.9 #")
        path.write_text(text, encoding="utf-8")
    cli.refused(code, argv, words)


def test_a_gpu_without_room_is_said_with_the_way_out(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(linear_stack, "head_device", full)
    cli.refused(1, ["train-head", "--head", "linear"], "the GPU has not enough free memory", "--device cpu")
