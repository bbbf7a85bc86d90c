"""The values of one JSON array, told apart without parsing them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from featcache.data.formats.json_rows import elements


@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.lists(st.text(), max_size=2))
    ),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 40),
)
def test_elements_of_any_array(rows: list[Any], indent: int | None, size: int) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    blocks = (text[at : at + size] for at in range(0, len(text), size))
    assert [json.loads(value) for _, value in elements(blocks, "a file", 1 << 20)] == rows
