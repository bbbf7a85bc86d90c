"""Tests of this folder run on one thread: with tiny models a second one only waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stock import one_thread


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield
