"""`--train` as a part of the backbone."""

from __future__ import annotations

import pytest

from featcache.errors import UsageError
from featcache.finetuning.parts import parse_part


@pytest.mark.parametrize(
    "text", ["top-blocks:0", "top-blocks:4", "top-blocks:-1", "top", "", "blocks:2", "head"]
)
def test_parse_part_refuses_unknown_parts(text: str) -> None:
    with pytest.raises(UsageError, match="--train"):
        parse_part(text, 3)


def test_parse_part() -> None:
    assert parse_part("top-blocks:2", 12).cut == 10
    assert parse_part("top-blocks:12", 12).cut == 0
    assert parse_part("all", 12).cut is None
