"""Finished sentences, of errors above all, in Chinese."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featcache.cache.cache import Cache
from featcache.errors import FeatcacheError, HeadError
from featcache.runs.run import load_run
from featcache.settings import build_settings
from featcache.translation.language import in_language
from featcache.translation.sentences import translated
from tests.support.catalogue import FINISHED, read_po

KNOWN = [message for message in read_po().values() if message.context == FINISHED]
VALUE = "Q7x"  # no sentence, and no part of one


def filled(template: str) -> str:
    """`template` with a value of its own in each placeholder."""
    return by_name(template, template)


def by_name(template: str, translation: str) -> str:
    """The translation with the values that `filled` gives the names of the template."""
    names = [name for _, name, *_ in Formatter().parse(template) if name]
    return translation.format(**{name: f"{VALUE}{number}" for number, name in enumerate(names)})


def test_every_template_is_found_by_its_own_sentences() -> None:
    """No other template takes them, but one that says the same."""
    with in_language("zh"):
        said = {one.text: translated(filled(one.text)) for one in KNOWN}
    wanted = {one.text: by_name(one.text, one.translation) for one in KNOWN}
    assert {text: found for text, found in said.items() if found != wanted[text]} == {}


def test_english_and_sentences_that_nobody_knows_stay() -> None:
    assert translated("no run a in reports") == "no run a in reports"
    with in_language("zh"):
        assert translated("the moon is made of cheese") == "the moon is made of cheese"
        assert translated("") == ""


@given(st.text(max_size=40), st.text(max_size=40))
@example("{x}", "{}")
@example("a in b", "c in d")
@example("\\d+(", "\n")
def test_any_value_stays_as_it_is(name: str, folder: str) -> None:
    with in_language("zh"):
        said = translated(f"no run '{name}' in <{folder}>")
    assert said.endswith("的运行") and "中没有名为" in said
    assert {*re.findall(r"\w+", name), *re.findall(r"\w+", folder)} <= {*re.findall(r"\w+", said)} or (
        re.search(r" in <|[;:] ", name + folder)
    )


def test_sentences_in_sentences_are_translated_too() -> None:
    with in_language("zh"):
        inner = "the hub at https://hub is not found: its name cannot be resolved"
        outer = f"cannot fetch the dataset a/b: {inner}, and no copy is on this disk"
        assert translated(outer) == (
            "无法获取数据集 a/b：找不到模型库 https://hub：其名称无法解析，本机也没有副本"
        )
        assert translated("cannot write a.h5: No space left on device") == "无法写入 a.h5：设备上没有空间"
        assert translated("--epochs: wants a whole number, got 'x'") == "--epochs：需要整数，得到 'x'"
        assert translated("text: review; label: stars; not read: id, date") == (
            "文本：review；标签：stars；未读取：id, date"
        )


def test_errors_that_users_meet_are_said_in_chinese(tmp_path: Path) -> None:
    """Raised by the real code, so that the templates are those of the source."""
    from featcache.extraction.api import find_features

    Cache.open(str(tmp_path / "cache"))
    settings = build_settings({"cache_dir": str(tmp_path / "cache"), "model": str(tmp_path / "model")})
    raised = {
        lambda: load_run(tmp_path, "linear-1"): f"{tmp_path} 中没有名为 'linear-1' 的运行",
        lambda: build_settings({"epochs": "0"}): "--epochs 0：必须是不小于 1 的数",
        lambda: build_settings({"head_kind": "x"}): "未知的设置 'head_kind'",
        lambda: find_features(settings, "train"): f"没有模型文件夹 {tmp_path / 'model'}",
    }
    for call, said in raised.items():
        with pytest.raises(FeatcacheError) as error:
            call()
        with in_language("zh"):
            assert translated(error.value.what) == said
    assert HeadError("x").what == "x"
