from __future__ import annotations

import pytest

from featcache.errors import UsageError
from featcache.system.units import (
    DAY,
    age_text,
    count_text,
    interval_text,
    parse_age,
    parse_count,
    parse_size,
    percent_text,
    seconds_text,
    share_text,
    short_count_text,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10**10), ("500 MB", 5 * 10**8), ("1.5tb", 15 * 10**11), ("8GiB", 2**33), ("0", 0),
        ("123", 123), ("7B", 7), ("2k", 2000), (" 1 kB ", 1000), ("1KiB", 1024), ("4g", 4 * 10**9),
        ("512B", 512), ("4.001GB", 4_001_000_000),
    ],
)  # fmt: skip
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "nan", "inf", "10XB", "1.2.3GB", "10 GB 5", "١GB"])
def test_parse_size_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageError, match=r"^'.*' is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY), ("12h", 43200), ("90m", 5400), ("8w", 56 * DAY), ("0s", 0)]
)
def test_parse_age(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1e3d", "nan d"])
def test_parse_age_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--older-than '.*' is not an age"):
        parse_age(text, "--older-than")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2_000_000", 2 * 10**6), ("2,000", 2000), ("100M", 10**8), ("1e9", 10**9), ("1.5k", 1500),
        ("1B", 10**9),
    ],
)  # fmt: skip
def test_parse_count(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", " ", "1e400", "nan", "inf", "1e-3", "M", "4GB", "1__e", "0x10"])
def test_parse_count_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--rows '.*' is not a whole number above 0"):
        parse_count(text, "--rows")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (4e9, "4.0 GB"), (2.5e15, "2500.0 TB")]
)
def test_size_text(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.123, "0.12 s"), (12.34, "12.3 s"), (75, "1 min 15 s"), (3600, "1 h 0 min"),
        (3700, "1 h 1 min"), (40 * 3600, "40 h 0 min"), (3 * DAY, "3.0 days"),
    ],
)  # fmt: skip
def test_seconds_text(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.9, "59 s"), (90, "1 min"), (10_000, "2 h"), (200_000, "2 d")]
)
def test_age_text(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_percent_share_and_interval_texts() -> None:
    assert percent_text(0.8975) == "89.75" and percent_text(0.8975, " %") == "89.75 %"
    assert percent_text(None, " %") == percent_text(float("nan"), " %") == "-"
    assert share_text(1, 8) == "12.5 %" and share_text(0, 0) == "-"
    assert interval_text(0.85, 0.89) == "[85.00, 89.00]" and interval_text(None, 0.89) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (118.25, "118.2"),
        (26_500, "26,500"),
        (9.74e10, "97.4 billion"),
        (1e6, "1.0 million"),
    ],
)
def test_count_text(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (312.4, "312"), (16_023, "16,023"), (99_999.4, "99,999"), (99_999.6, "100k"),
        (3_392_400, "3,392k"), (9_999_499, "9,999k"), (9_999_500, "10M"), (4e9, "4,000M"),
    ],
)  # fmt: skip
def test_short_count_text_has_at_most_six_characters(count: float, text: str) -> None:
    assert short_count_text(count) == text and len(text) <= 6
