"""English counts of one."""

from __future__ import annotations

import re
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import HeadError
from featcache.translation.agreement import COUNTED, agreed
from featcache.translation.language import gettext, in_language
from featcache.translation.sentences import translated
from tests.support.catalogue import read_po


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("1 rows", "1 row"),
        ("1 rows, 2 labels", "1 row, 2 labels"),
        ("21 rows, 0.1 rows, 1,001 rows, 2-1 rows", "21 rows, 0.1 rows, 1,001 rows, 2-1 rows"),
        ("1 test rows are wrong. Read them.", "1 test row is wrong. Read them."),
        ("1 clean validation rows that do not leak", "1 clean validation row that does not leak"),
        ("1 of 3 texts were truncated", "1 of 3 texts was truncated"),
        ("1 of 1 texts were truncated", "1 of 1 text was truncated"),
        ("1 texts were long and were truncated", "1 text was long and was truncated"),
        ("1 of 3 texts (33.3%) were long and were cut", "1 of 3 texts (33.3%) was long and was cut"),
        ("1 of 33 test rows (3.0 %) repeat a text", "1 of 33 test rows (3.0 %) repeats a text"),
        ("2 of 9 and 1 of 3 test rows repeat it", "2 of 9 and 1 of 3 test rows repeat it"),
        ("2 train rows, 1 test rows are long", "2 train rows, 1 test row are long"),
        ("on 1 of 1,204 test rows", "on 1 of 1,204 test rows"),
        ("1 classes, 1 queries, 1 epochs", "1 class, 1 query, 1 epoch"),
        ("row 1 has the labels", "row 1 has the labels"),
        ("no column '1 rows'", "no column '1 rows'"),
        ("1 times the tokens", "1 times the tokens"),
        ("my 1 rows.csv is empty", "my 1 rows.csv is empty"),
        ("at least 1 rows.", "at least 1 row."),
    ],
)
def test_examples(said: str, right: str) -> None:
    assert agreed(said) == right


@given(st.integers(0, 10**9), st.sampled_from(COUNTED))
def test_only_a_count_of_one_changes(count: int, noun: str) -> None:
    said = f"{count:,} {noun}"
    assert (agreed(said) == said) is (count != 1)


# Words with an s at their end that may follow a value, and are no counted nouns.
OTHERS = {
    "begins", "breaks", "class", "classifies", "closes", "contains", "costs", "counts", "describes",
    "differs", "does", "exists", "fails", "features", "fits", "gives", "has", "holds", "is", "lacks",
    "leaves", "lists", "matches", "moves", "needs", "points", "predicts", "reads", "redirects",
    "refuses", "says", "sends", "shows", "stands", "takes", "times", "unpacks", "wants", "was",
    "weights",
}  # fmt: skip


def test_no_sentence_has_a_plural_after_a_one() -> None:
    """Every sentence of the catalogue, with 1 in its placeholders: a new noun belongs into COUNTED."""
    plural = re.compile(r"(?<!row )(?<!of )\b1 (?:(?:train|test|clean|other|different|more) )?([a-z]+s)\b")
    odd = {}
    for message in read_po().values():
        if message.plural:
            continue
        texts = Formatter().parse(message.text)
        said = agreed("".join(text + ("1" if name is not None else "") for text, name, *_ in texts))
        if found := set(plural.findall(said)) - OTHERS:
            odd[message.text] = found
    assert odd == {}


def test_sentences_and_errors_are_made_so_and_texts_of_others_stay() -> None:
    assert gettext("{rows:,} rows. On the line both are equal.", rows=1).startswith("1 row. ")
    assert gettext("always {label}", label="1 rows") == "always 1 rows"
    assert gettext("{label} ({rows:,} rows)", label="1 days", rows=3) == "1 days (3 rows)"
    assert translated(HeadError("train has 1 rows; a learning curve needs at least 2").what) == (
        "train has 1 row; a learning curve needs at least 2"
    )
    with in_language("zh"):
        assert gettext("{size} rows", size=1) == "1 行"
