"""`--lang`: tables, notes and errors in Chinese; what programs read is the same in both languages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.chinese import english_words
from tests.support.cli_tools import COMMAND, Cli, widest

LABELS = "good bad text label"  # and columns


def test_the_flag_comes_before_the_variable_and_that_before_the_locale(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = cli.ok("compare").out
    assert "val., test: accuracy" in english
    chinese = cli.ok("compare", "--lang", "zh").out
    assert "验证、测试：这两个数据集上的准确率" in chinese
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert cli.ok("compare").out == english  # FEATCACHE_LANG=en, see conftest.py
    monkeypatch.setenv("FEATCACHE_LANG", "zh")
    assert cli.ok("compare").out == cli.ok("compare", "--lang=zh").out == chinese
    assert cli.ok("compare", "--lang", "en").out == english
    monkeypatch.delenv("FEATCACHE_LANG")
    assert cli.ok("compare").out == chinese
    assert "未知的参数 '--nothing'" in cli("compare", "--nothing").err


def test_an_unknown_language_is_refused(cli: Cli, trained: Path) -> None:
    cli.refused(2, ["compare", "--lang", "fr"], "unknown --lang 'fr'", "en, zh")


def test_json_and_exit_codes_do_not_depend_on_the_language(cli: Cli, trained: Path) -> None:
    for argv in (["compare"], ["predict", "房间很干净"], ["inspect"], ["runs", "ls"]):
        english, chinese = (cli.ok(*argv, "--json", "--lang", one) for one in ("en", "zh"))
        assert chinese.json == english.json, argv
    english, chinese = (cli("compare", "--base", "nothing", "--lang", one) for one in ("en", "zh"))
    assert chinese.code == english.code == 6
    assert "no run 'nothing' in reports" in english.err
    assert "错误：reports 中没有名为 'nothing' 的运行" in chinese.err
    assert "错误：" in cli("compare", "--base", "nothing", "--json", "--lang", "zh").err


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_and_have_no_english_words(
    columns: int, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FEATCACHE_LANG", "zh")
    for argv in (
        ["compare"],
        ["compare", "linear-last-cls-1"],
        ["extract", "--all-splits"],
        ["predict", "房间很干净", "电池一天就坏了"],
        ["train-head", "--epochs", "3"],
    ):
        said = cli.ok(*argv)
        assert widest(said.out) <= columns, said.out
        assert english_words(said.out + said.err, LABELS) == [], said


def test_plan_and_cache_have_no_english_words(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_LANG", "zh")
    values = "reviews train validation test float cpu arctic inference"
    for argv in (
        ["cache", "ls"],
        ["cache", "verify"],
        ["cache", "gc", "--max-size", "1kB", "--dry-run"],
        ["plan", "--sample-seconds", "0.05", "--device", "cpu", "--rows", "2e9", "--price", "0.4"],
        ["plan", "--rows", "1e9", "--tokens", "50", "--gpus", "64", "--tflops", "989"],
    ):
        said = cli.ok(*argv)
        shown = re.split(r"\n(?:featcache|torchrun) ", said.out)[0] + said.err  # without the command of plan
        assert english_words(shown, LABELS, values) == [], shown
    names = {
        line.split()[0] for line in cli.ok("cache", "info", "--all").out.splitlines() if line[:1].strip()
    }
    assert {"状态", "数据集", "指纹"} <= names and not any(name.isascii() for name in names)


def test_run_is_chinese_from_the_first_note_to_the_next_commands(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_LANG", "zh")
    said = cli.ok("run")
    for words in ("数据检查", "结论", "建议使用", "下一步：", "与 * 之差", "数据泄漏"):
        assert words in said.out + said.err, words
    assert english_words(said.out + said.err, LABELS) == [], said
    assert widest(said.out) <= 80


def test_errors_begin_in_chinese(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_LANG", "zh")
    for code, argv, words in (
        (2, ["trainhead"], "未知的 command 'trainhead'"),
        (2, ["train-head", "--epochs", "x"], "--epochs：需要整数，得到 'x'"),
        (2, ["extract"], "没有指定数据集"),
        (3, ["extract", "--all-splits", "--dataset", "nothing.csv"], "没有这个文件或文件夹：nothing.csv"),
        (3, ["extract", "--all-splits", "--text-column", "nothing"], "没有列 'nothing'"),
        (5, ["train-head"], "缓存中没有符合这些设置的 train 特征"),
        (6, ["predict", "一"], "reports 中没有训练好的分类头"),
        (6, ["report"], "reports 中没有任何运行"),
    ):
        said = cli(*argv)
        assert said.code == code and said.out == "", said
        first = said.err.strip().splitlines()[0]
        assert first.startswith("错误：") and words in first, said.err


def test_a_terminal_that_cannot_show_chinese_gets_english(trained: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "zh_CN.UTF-8", "PYTHONIOENCODING": "ascii"}
    asked = subprocess.run([COMMAND, "compare"], env=environ, capture_output=True, check=True)
    assert b"val., test: accuracy" in asked.stdout
