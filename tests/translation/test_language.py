"""Which language is spoken, and by whom."""

from __future__ import annotations

import threading

import pytest

from featcache.translation.language import (
    gettext,
    in_language,
    language,
    language_from,
    listed,
    ngettext,
    paragraph,
    pgettext,
)


def test_the_variable_comes_before_the_locale_and_the_first_locale_counts() -> None:
    for environ, chosen in (
        ({"FEATCACHE_LANG": "zh", "LANG": "en_US.UTF-8"}, "zh"),
        ({"FEATCACHE_LANG": "en", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "zh_TW", "LANG": "en_US"}, "zh"),
        ({"LANG": "zh_CN.GBK"}, "zh"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ):
        assert language_from(environ) == chosen, environ


def test_without_variables_the_locale_of_the_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, chosen in (
        ("Chinese (Simplified)_China", "zh"),
        ("zh_CN", "zh"),
        ("de_DE", "en"),
        (None, "en"),
    ):
        monkeypatch.setattr("locale.getlocale", lambda name=name: (name, "UTF-8"))
        assert language_from({}) == chosen


def test_english_is_what_the_source_says() -> None:
    assert language() == "en" and gettext("accuracy") == "accuracy" and gettext("") == ""
    assert gettext("a {brace} without values") == "a {brace} without values"
    assert ngettext("{count:,} row", "{count:,} rows", 1) == "1 row"
    assert ngettext("{count:,} row", "{count:,} rows", 1234) == "1,234 rows"
    assert listed(["a", "b", "c"]) == "a, b, c" and paragraph(["A.", "B."]) == "A. B." and paragraph([]) == ""


def test_chinese_is_spoken_within_the_block_alone() -> None:
    with in_language("zh"):
        assert gettext("accuracy") == "准确率" and gettext("") == ""
        assert gettext("{split} {score}", split="测试集", score="准确率") == "测试集准确率"
        assert ngettext("{count:,} row", "{count:,} rows", 1234) == "1,234 行"
        assert pgettext("column", "train") == "训练" and gettext("train") == "训练集"
        assert gettext("nobody has said this") == "nobody has said this"
        assert listed(["甲", "乙"]) == "甲、乙" and paragraph(["甲。", "乙。"]) == "甲。乙。"
        with in_language("en"):
            assert gettext("accuracy") == "accuracy"
        assert language() == "zh"
    assert language() == "en"


def test_threads_have_languages_of_their_own() -> None:
    both, said = threading.Barrier(2), {}

    def speak(chosen: str) -> None:
        with in_language(chosen):
            both.wait(10)
            said[chosen] = gettext("accuracy")
            both.wait(10)

    threads = [threading.Thread(target=speak, args=[chosen]) for chosen in ("en", "zh")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {"en": "accuracy", "zh": "准确率"} and language() == "en"
