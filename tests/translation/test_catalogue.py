"""The catalogue: nothing that is said lacks its Chinese, placeholders agree, and the `.mo` is the `.po`."""

from __future__ import annotations

import gettext
import re
from string import Formatter

import pytest

from tests.support.catalogue import MO, PO, Key, Message, collected, compiled, po_text, read_po

KNOWN = read_po()
HAN = "[\u4e00-\u9fff]"
SAME = re.compile("F1|MAE|RMSE|R²|token|(--|pip install |featcache ).*")  # the same in Chinese


@pytest.fixture(scope="module")
def found() -> dict[Key, Message]:
    return collected()


def placeholders(text: str) -> list[tuple[str, str, str]]:
    """Names with their format and conversion."""
    return sorted(
        (name, spec or "", how or "") for _, name, spec, how in Formatter().parse(text) if name is not None
    )


def test_every_message_of_the_source_is_translated_and_no_other(found: dict[Key, Message]) -> None:
    assert sorted(found.keys() - KNOWN.keys()) == [], "run: python -m tests.support.catalogue"
    assert sorted(KNOWN.keys() - found.keys()) == [], "run: python -m tests.support.catalogue"
    assert [key for key, message in KNOWN.items() if not message.translation] == []
    assert {key: message.plural for key, message in found.items()} == {
        key: message.plural for key, message in KNOWN.items()
    }


def test_collecting_finds_each_kind_of_message(found: dict[Key, Message]) -> None:
    for key in (
        ("", "accuracy"),  # noted
        ("", "Confusion matrix"),  # a template of a page
        ("", "{count:,} row"),  # ngettext
        ("column", "differs in"),  # a column of a table
        ("help", "Train the highest blocks with a head; the blocks below run once."),  # of a parser
        ("help", "learning rate of the head"),  # without its default
        ("help", "step by step"),  # noted with a context
        ("finished", "no run {name} in {reports_dir}"),  # raised as an f-string
        ("finished", "--input {source}: its ending is none of {names}, xlsx, zip"),  # by pieces
        ("finished", "label {names} in row {code} of {split} never occurs in train"),
    ):
        assert key in found


def test_placeholders_agree() -> None:
    texts = [(one.text, other) for one in KNOWN.values() for other in (one.translation, one.plural) if other]
    assert [pair for pair in texts if placeholders(pair[0]) != placeholders(pair[1])] == []


def test_the_compiled_catalogue_is_the_one_that_people_write() -> None:
    assert MO.read_bytes() == compiled(KNOWN), "run: python -m tests.support.catalogue"
    assert PO.read_text(encoding="utf-8") == po_text(KNOWN)
    with MO.open("rb") as file:
        made = gettext.GNUTranslations(file)
    for message in KNOWN.values():
        if message.plural:
            assert made.ngettext(message.text, message.plural, 5) == message.translation
        elif message.context:
            assert made.pgettext(message.context, message.text) == message.translation
        else:
            assert made.gettext(message.text) == message.translation


def test_translations_are_chinese_with_chinese_punctuation() -> None:
    odd: dict[Key, str] = {}
    for key, message in KNOWN.items():
        said = re.sub(r"{[^}]*}", "", message.translation)
        if re.search(r"(?<![-\w])[a-z]{2}", said) and not re.search(HAN, said) and not SAME.fullmatch(said):
            odd[key] = "no Chinese"
        elif re.search(rf"{HAN}[,;:!?()]|[,;:!?()]{HAN}", said):
            odd[key] = "punctuation of half width"
        elif re.search(rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9]{HAN}", said):
            odd[key] = "no blank between Chinese and Latin letters or digits"
    assert odd == {}
