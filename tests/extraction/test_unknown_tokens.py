"""The share of unknown tokens is counted during extraction and kept beside the sealed file."""

from __future__ import annotations

import json

import pytest

from tests.support.extraction import Case

THAI = "สวัสดี"  # no character of it is in the tiny vocabulary


def with_unknown(case: Case, rows: int) -> Case:
    """The case, nothing extracted, with a word of another language in each of the first `rows` rows."""
    case = case.fresh()
    changed = case.rows()
    for row in changed[:rows]:
        row["text"] = f"{row['text']} {THAI}"
    case.write(changed)
    return case


def expected(case: Case) -> float:
    """A token a character, and one for the word of the other language."""
    texts = [row["text"] for row in case.rows()]
    unknown = sum(THAI in text for text in texts)
    return unknown / (sum(len(text.replace(f" {THAI}", "")) for text in texts) + unknown)


def test_the_share_is_stored_and_repeated(case: Case) -> None:
    case = with_unknown(case, 20)
    first = case.extract()
    assert first.unknown_tokens == pytest.approx(expected(case))
    assert case.extract().cached and case.extract().unknown_tokens == first.unknown_tokens
    record = json.loads(first.path.with_suffix(".json").read_bytes())
    assert record["made"]["unknown_tokens"] == first.unknown_tokens


def test_no_unknown_tokens(case: Case) -> None:
    assert case.extract().unknown_tokens == 0.0


def test_the_sealed_file_does_not_have_it(case: Case) -> None:
    case = with_unknown(case, 20)
    case.extract()
    assert not {"unknown", "own"} & set(case.find().sealed.names)


def test_without_a_record_it_is_not_known(case: Case) -> None:
    made = case.extract()
    made.path.with_suffix(".json").unlink()
    again = case.extract()  # found by its rows
    assert again.path == made.path and again.unknown_tokens is None


def test_some_rows_of_a_file_with_unknown_tokens(case: Case) -> None:
    """Which of its rows have them is not kept: nothing is said rather than something wrong."""
    case = with_unknown(case, 5)
    case.extract()
    case.write(case.rows()[5:])
    after = case.extract()
    assert after.encoded == 0 and after.unknown_tokens is None


def test_some_rows_of_a_file_without_unknown_tokens(case: Case) -> None:
    case.write(case.rows()[5:])
    assert case.extract().unknown_tokens == 0.0


def test_copied_rows_count_by_the_share_of_their_file(case: Case) -> None:
    case = with_unknown(case, 60)
    before = case.extract()
    more = case.rows()
    case.write([*more, {"text": "好坏", "label": "good", "name": "书"}])
    after = case.extract()
    assert (after.encoded, after.rows) == (1, 61)
    assert before.unknown_tokens is not None and after.unknown_tokens is not None
    assert 0.95 * before.unknown_tokens < after.unknown_tokens < before.unknown_tokens
